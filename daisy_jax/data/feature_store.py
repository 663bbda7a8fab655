"""Features by utterance, in shards that are written once and read at random.

A store is a folder with `features-00000.safetensors`, ... (float16 [items, frames, dim], or int32
[items, frames], under each utterance's identifier) and `manifest/00000.parquet`, ..., one table in
as many parts: a row an utterance with its path, shard, frames, where it left, its mean entropy at
every layer, and how well each layer's labels agree with the last one's. In the place of a shard's
one file there may be `npy/ID.npy`, one for each utterance. A part is written behind its shard, so
that its presence says that the shard is whole. What they belong to (model, tap, items, corpus) and
the shard's digest stand in the part's metadata.
"""

import functools
import hashlib
import json
import os
import pathlib
import platform
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from daisy_jax import audio
from daisy_jax.data.corpus import Corpus, Selection
from daisy_jax.errors import InputError

FORMAT = "daisy_jax_features/2"
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
    exit_layer: int
    """Where it left, 1 to L; L where all layers were run."""
    forced: bool
    """It left because no threshold was met."""
    entropy: list[float]
    """[L], nats, +inf where it was not evaluated; empty without branches."""
    agreement: list[float]
    """[L], share of the frames whose label is that of the last layer's branch; empty where the
    layers behind the exit were not run."""
    error: str | None
    """Why it could not be read; None if it could."""


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


def npy_file(folder: pathlib.Path, id: str) -> pathlib.Path:
    """Where an utterance's features are, if it has a file of its own."""
    return folder / "npy" / f"{id}.npy"


def write_shard(
    folder: pathlib.Path,
    number: int,
    features: dict[str, np.ndarray],
    rows: list[Row],
    source: dict[str, str],
) -> None:
    """Writes one shard and its part of the manifest; without the part the shard counts for nothing.

    Args:
      folder: the store.
      number: of the shard.
      features: [items, frames, dim] or [items, frames] by identifier; none, for entropies alone.
      rows: of the shard's utterances.
      source: what they belong to, the same in all shards of a store. With "layout": "npy" each
        utterance has a file of its own, without an axis of items if there is only one.

    Raises:
      OSError: the disk is full, or else; no half-written file stays.
    """
    import pyarrow
    import pyarrow.parquet

    (folder / MANIFEST).mkdir(parents=True, exist_ok=True)
    shard, part = shard_file(folder, number), part_file(folder, number)
    partial = _partial(part)
    kept = dict(source)
    try:
        # safetensors writes arrays that are not C-contiguous wrongly, without an error.
        whole = {name: np.ascontiguousarray(value) for name, value in features.items()}
        digest = hashlib.sha256()
        if source.get("layout") == "npy":
            for row in rows:
                if row.frames and whole:
                    value = whole[row.id]
                    alone = value[0] if len(value) == 1 else value
                    _replace(npy_file(folder, row.id), digest, functools.partial(_save_npy, alone))
        elif whole:
            metadata = {"format": FORMAT}
            _replace(shard, digest, lambda path: save_file(whole, path, metadata))
        if whole:
            kept["sha256"] = digest.hexdigest()
        table = pyarrow.Table.from_pylist([row._asdict() for row in rows], _schema())
        metadata = {FORMAT: json.dumps(kept)}
        pyarrow.parquet.write_table(table.replace_schema_metadata(metadata), partial)
        os.replace(partial, part)
    except (SafetensorError, pyarrow.ArrowException, OSError) as error:
        why = getattr(error, "strerror", None) or error
        raise OSError(f"{shard}: cannot be written ({why}); make room and start again") from error
    finally:
        partial.unlink(missing_ok=True)
    _sweep(shard)
    _sweep(part)


def _partial(path: pathlib.Path) -> pathlib.Path:
    """Two runs may make the same store at once: each its own, and what is whole is the same."""
    return path.with_name(f".{path.name}.{platform.node()}-{os.getpid()}.partial")


def _sweep(path: pathlib.Path) -> None:
    """Removes what processes of this machine left that were killed while they wrote this file."""
    for left in path.parent.glob(f".{path.name}.{platform.node()}-*.partial"):
        owner = left.name.removesuffix(".partial").rpartition("-")[2]
        try:
            os.kill(int(owner), 0)
        except ProcessLookupError:
            left.unlink(missing_ok=True)
        except (ValueError, OSError):
            pass


def _replace(path: pathlib.Path, digest: Any, save: Callable[[pathlib.Path], None]) -> None:
    """Writes a file, whole or not at all, and adds its bytes to a digest."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path)
    try:
        partial.touch()
        mode = partial.stat().st_mode
        save(partial)
        os.chmod(partial, mode)  # safetensors' files are the owner's alone
        _add(partial, digest)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _save_npy(value: np.ndarray, path: pathlib.Path) -> None:
    with open(path, "wb") as stream:  # np.save would add an ending
        np.save(stream, value)


def _add(path: pathlib.Path, digest: Any) -> None:
    with open(path, "rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)


def _files(
    folder: pathlib.Path, number: int, rows: list[Row], source: dict[str, str]
) -> list[pathlib.Path]:
    """The files of a shard."""
    if source.get("layout") == "npy":
        return [npy_file(folder, row.id) for row in rows if row.frames]
    return [shard_file(folder, number)]


def _digest(paths: list[pathlib.Path]) -> str | None:
    """SHA-256 of some files, one after the other; None if one is missing."""
    digest = hashlib.sha256()
    try:
        for path in paths:
            _add(path, digest)
    except FileNotFoundError:
        return None
    return digest.hexdigest()


def finished_part(
    folder: pathlib.Path, number: int, source: dict[str, str], verify: bool = False
) -> list[Row] | None:
    """The rows of a shard that is there already; None if it is not.

    Args:
      folder: the store.
      number: of the shard.
      source: what it must belong to.
      verify: take it for missing if its bytes are not those that were written, or if its part of
        the manifest cannot be read.

    Raises:
      InputError: it belongs to something else.
    """
    part = part_file(folder, number)
    if not part.is_file():
        return None
    try:
        rows, kept = read_part(part)
    except InputError:
        if verify:
            return None
        raise
    found = {k: v for k, v in kept.items() if k != "sha256"}
    if found != source:
        changed = [k for k in found.keys() | source.keys() if found.get(k) != source.get(k)]
        changes = "; ".join(f"{k} {found.get(k)} and not {source.get(k)}" for k in sorted(changed))
        raise InputError(
            f"{folder}: holds features of something else ({changes}); give another folder, or "
            "remove this one"
        )
    digest = kept.get("sha256")
    if verify and digest is not None and _digest(_files(folder, number, rows, source)) != digest:
        return None
    return rows


def _schema():
    import pyarrow as pa

    vector = pa.list_(pa.float32())
    types = {"id": pa.string(), "path": pa.string(), "shard": pa.int32(), "samples": pa.int64()}
    types |= {"frames": pa.int32(), "exit_layer": pa.int32(), "forced": pa.bool_()}
    types |= {"entropy": vector, "agreement": vector, "error": pa.string()}
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
        self.items: list[int | str] = json.loads(self.source["items"])
        """What is stored: of 0 to L, none if there are only entropies; or one of "exit", "pooled",
        "labels" and "units"."""
        self._npy = self.source.get("layout") == "npy"
        lacking = [
            shard_file(self.folder, number)
            for number in {row.shard for row in self.rows if row.frames}
            if self.items and not self._npy and not shard_file(self.folder, number).is_file()
        ]
        if lacking:
            raise InputError(f"{lacking[0]}: is missing; remove its part of the manifest, too")
        self.frames = np.asarray([row.frames for row in self.rows], np.int32)
        self.entropy = np.asarray([row.entropy for row in self.rows if row.frames], np.float32)
        """float32 [readable utterances, L]."""
        self.errors = {row.path: row.error for row in self.rows if row.error is not None}
        """Files that could not be read, and why."""
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
        """Features of one utterance, or a part of them.

        float16 [items, frames, dim]; labels and units are int32 [1, frames].

        Raises:
          InputError: they are not there as the manifest says.
        """
        row = self.rows[index]
        chosen = slice(*items.indices(len(self.items))), slice(*frames.indices(row.frames))
        try:
            if self._npy:
                stored = np.load(npy_file(self.folder, row.id), mmap_mode="r")
                return np.array((stored[None] if len(self.items) == 1 else stored)[chosen])
            return self._shard(row.shard).get_slice(row.id)[chosen]
        except (SafetensorError, OSError, ValueError) as error:
            raise InputError(
                f"{_files(self.folder, row.shard, [row], self.source)[0]}: {row.id} cannot be read "
                f"({error}); remove {part_file(self.folder, row.shard)}, and the shard is made "
                "again"
            ) from None

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
            rows, kept = read_part(part)
            digest, files = kept.get("sha256"), _files(self.folder, int(part.stem), rows, kept)
            if digest is not None and _digest(files) != digest:
                problems.append(f"{files[0]}: its bytes have changed; remove it and {part}")
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
