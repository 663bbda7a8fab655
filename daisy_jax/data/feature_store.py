"""Features by utterance, in shards that are written once and read at random.

A store is a folder with `features-00000.safetensors`, ... (float16 [items, frames, dim] under each
utterance's identifier; item 0 is what eq. (4) begins with, item k belongs to layer k) and
`manifest/00000.parquet`, ..., one table in as many parts: a row an utterance with its path, shard,
frames, its mean entropy at every layer, and how well each layer's labels agree with the last one's.
A part is written behind its shard, so that its presence says that the shard is whole. What they
belong to (model, tap, items, corpus) and the shard's digest stand in the part's metadata.
"""

import hashlib
import json
import os
import pathlib
import platform
import threading
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from daisy_jax import audio
from daisy_jax.data.corpus import Corpus, Selection
from daisy_jax.errors import InputError

FORMAT = "daisy_jax_features/1"
MANIFEST = "manifest"
SHARD_BYTES = 1_000_000_000
SHARD_UTTERANCES = 4096
"""Of stores without features, and of very short utterances."""
OPEN_SHARDS = 64
"""That one reader keeps mapped."""


class Row(NamedTuple):
    """One utterance of the manifest."""

    id: str
    path: str
    shard: int
    samples: int
    frames: int
    """0 if the utterance could not be read."""
    entropy: list[float]
    """[L], nats; empty without branches."""
    agreement: list[float]
    """[L], share of the frames whose label is that of the last layer's branch."""
    error: str | None


def plan_shards(frames: np.ndarray, bytes_per_frame: int) -> list[np.ndarray]:
    """Which utterances go into which shard: int arrays of places, in the corpus' order."""
    sizes = np.cumsum(frames * bytes_per_frame)
    shards, first = [], 0
    while first < len(frames):
        before = sizes[first - 1] if first else 0
        stop = int(np.searchsorted(sizes, before + SHARD_BYTES, side="right"))
        stop = min(max(stop, first + 1), first + SHARD_UTTERANCES)
        shards.append(np.arange(first, min(stop, len(frames))))
        first = stop
    return shards


def shard_file(folder: pathlib.Path, number: int) -> pathlib.Path:
    """Where a shard's features are."""
    return folder / f"features-{number:05}.safetensors"


def part_file(folder: pathlib.Path, number: int) -> pathlib.Path:
    """Where a shard's part of the manifest is."""
    return folder / MANIFEST / f"{number:05}.parquet"


def write_shard(
    folder: pathlib.Path,
    number: int,
    features: dict[str, np.ndarray],
    rows: list[Row],
    source: dict[str, str],
) -> None:
    """Writes one shard and its part of the manifest, both or neither.

    Args:
      folder: the store.
      number: of the shard.
      features: float16 [items, frames, dim] by identifier; none, for entropies alone.
      rows: of the shard's utterances.
      source: what they belong to; the same in all shards of a store.

    Raises:
      OSError: the disk is full, or else; nothing stays then.
    """
    import pyarrow
    import pyarrow.parquet

    (folder / MANIFEST).mkdir(parents=True, exist_ok=True)
    shard, part = shard_file(folder, number), part_file(folder, number)
    # Two runs may make the same store at once: each its own, and what is whole is the same.
    mine = f"{platform.node()}-{os.getpid()}.partial"
    partial = [path.with_name(f".{path.name}.{mine}") for path in (shard, part)]
    kept = dict(source)
    try:
        if features:
            # safetensors writes arrays that are not C-contiguous wrongly, without an error.
            whole = {name: np.ascontiguousarray(value) for name, value in features.items()}
            save_file(whole, partial[0], {"format": FORMAT})
            kept["sha256"] = _digest(partial[0])
        table = pyarrow.Table.from_pylist([row._asdict() for row in rows], _schema())
        metadata = {FORMAT: json.dumps(kept)}
        pyarrow.parquet.write_table(table.replace_schema_metadata(metadata), partial[1])
        if features:
            os.replace(partial[0], shard)
        os.replace(partial[1], part)
    except (SafetensorError, pyarrow.ArrowException) as error:
        raise OSError(f"{shard}: cannot be written ({error}); make room and start again") from error
    finally:
        for path in partial:
            path.unlink(missing_ok=True)


def _digest(path: pathlib.Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _schema():
    import pyarrow as pa

    vector = pa.list_(pa.float32())
    types = {"id": pa.string(), "path": pa.string(), "shard": pa.int32(), "samples": pa.int64()}
    types |= {"frames": pa.int32(), "entropy": vector, "agreement": vector, "error": pa.string()}
    return pa.schema(list(types.items()))


def read_part(path: pathlib.Path) -> tuple[list[Row], dict[str, str]]:
    """The rows and the source of one part of a manifest.

    Raises:
      InputError: it is not a whole part of this version.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
        source = json.loads(table.schema.metadata[FORMAT.encode()])
        return [Row(**row) for row in table.to_pylist()], source
    except (pyarrow.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: not a whole part of a manifest ({str(error)[:80]}); remove it, and its shard "
            "is made again"
        ) from None


class FeatureStore:
    """A finished store. An element is an utterance; Grain can iterate over it."""

    def __init__(self, folder: str | os.PathLike):
        """Opens one.

        Raises:
          InputError: there is none, or it is not finished, or its shards do not belong together.
        """
        self.folder = pathlib.Path(folder)
        parts = sorted((self.folder / MANIFEST).glob("[0-9]*.parquet"))
        if not parts:
            raise InputError(f"{folder}: no feature store there (no {MANIFEST} with any part)")
        read = [read_part(part) for part in parts]
        sources = [{k: v for k, v in source.items() if k != "sha256"} for _, source in read]
        self.source = sources[0]
        self.rows = [row for rows, _ in read for row in rows]
        count = int(self.source["shards"])
        if any(source != self.source for source in sources) or len(parts) != count:
            raise InputError(
                f"{folder}: {len(parts)} of {count} shards are there, or they are of different "
                "runs; start again what made it, or remove it"
            )
        self.items: list[int] = json.loads(self.source["items"])
        """Which items are stored: 0 to L; none if there are only entropies."""
        lacking = [
            shard_file(self.folder, number)
            for number in {row.shard for row in self.rows if row.frames}
            if self.items and not shard_file(self.folder, number).is_file()
        ]
        if lacking:
            raise InputError(f"{lacking[0]}: is missing; remove its part of the manifest, too")
        self.frames = np.asarray([row.frames for row in self.rows], np.int32)
        self.entropy = np.asarray([row.entropy for row in self.rows if row.frames], np.float32)
        """float32 [readable utterances, L]."""
        self.dim = int(self.source["dim"])
        self._open = threading.local()

    def __reduce__(self) -> tuple:
        # To another process goes the folder and not the open files.
        return FeatureStore, (self.folder,)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Everything of one utterance: the manifest's row, and its features if they are stored."""
        row = self.rows[index]
        element: dict[str, Any] = row._asdict()
        if self.items and row.frames:
            element["features"] = self.read(index)
        return element

    def read(
        self, index: int, frames: slice = slice(None), items: slice = slice(None)
    ) -> np.ndarray:
        """Features of one utterance, float16 [items, frames, dim], or a part of them.

        Raises:
          InputError: they are not there as the manifest says.
        """
        row = self.rows[index]
        try:
            stored = self._shard(row.shard).get_slice(row.id)
            found = stored[
                slice(*items.indices(len(self.items))), slice(*frames.indices(row.frames))
            ]
        except SafetensorError as error:
            raise InputError(
                f"{shard_file(self.folder, row.shard)}: {row.id} cannot be read ({error}); remove "
                f"{part_file(self.folder, row.shard)}, and the shard is made again"
            ) from None
        return found

    def _shard(self, number: int) -> Any:
        shards: dict[int, Any] = self._open.__dict__.setdefault("shards", {})
        if number not in shards:
            if len(shards) >= OPEN_SHARDS:
                shards.pop(next(iter(shards)))
            shards[number] = safe_open(shard_file(self.folder, number), framework="numpy")
        return shards[number]

    def verify(self) -> list[str]:
        """A line for each shard whose bytes are not those that were written."""
        problems = []
        for part in sorted((self.folder / MANIFEST).glob("[0-9]*.parquet")):
            digest = read_part(part)[1].get("sha256")
            shard = shard_file(self.folder, int(part.stem))
            if digest is not None and _digest(shard) != digest:
                problems.append(f"{shard}: its bytes have changed; remove it and {part}")
        return problems

    def of(self, corpus: Corpus) -> tuple[Corpus, np.ndarray]:
        """The readable utterances of a corpus, and the place of each in the store.

        Raises:
          InputError: an utterance is not in the store, or of another length.
        """
        places = {row.id: place for place, row in enumerate(self.rows)}
        missing = [name for name in corpus.names if name not in places]
        if missing:
            raise InputError(
                f"{self.folder}: has nothing of {len(missing)} utterances, the first is "
                f"{missing[0]}; give another folder"
            )
        found = np.asarray([places[name] for name in corpus.names])
        samples = np.asarray([self.rows[place].samples for place in found])
        if np.any(samples != corpus.lengths):
            name = corpus.names[int(np.argmax(samples != corpus.lengths))]
            raise InputError(f"{self.folder}: {name} has another length now; give another folder")
        readable = np.flatnonzero(self.frames[found] > 0)
        return Selection(corpus, readable), found[readable]


def bytes_needed(lengths: np.ndarray, items: int, dim: int) -> int:
    """What the features of utterances of `lengths` samples take."""
    return int(audio.frame_count(lengths).sum()) * items * dim * 2
