"""Shards of feature stores: how they are written, checked and found again.

A store is a folder with `features-00000.safetensors`, ... (float16 [items, frames, dim], or int32
[items, frames], under each utterance's identifier) and `index/00000.parquet`, ..., one table in
as many parts: a row an utterance with its path, shard, frames, where it left, its mean entropy at
every layer, and how well each layer's labels agree with the last one's. In the place of a shard's
one file there may be `npy/ID.npy`, one for each utterance. A part is written behind its shard, so
that its presence says that the shard is whole. What they belong to (model, tap, items, corpus) and
the shard's digest stand in the part's metadata.
"""

import json
import pathlib
from typing import NamedTuple

import numpy as np
from safetensors.numpy import save_file

from daisy_jax.errors import InputError
from daisy_jax.whole_files import files_digest, whole_files

FORMAT = "daisy_jax_features/3"
INDEX = "index"


class Row(NamedTuple):
    """One utterance of the index."""

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


def shard_file(folder: pathlib.Path, number: int) -> pathlib.Path:
    """Where a shard's features are."""
    return folder / f"features-{number:05}.safetensors"


def part_file(folder: pathlib.Path, number: int) -> pathlib.Path:
    """Where a shard's part of the index is."""
    return folder / INDEX / f"{number:05}.parquet"


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
    """Writes one shard and its part of the index; without the part the shard counts for nothing.

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

    part, kept = part_file(folder, number), dict(source)
    files = shard_files(folder, number, rows, source) if features else []
    try:
        with whole_files(*files, part) as (*partials, table):
            if source.get("layout") == "npy":
                for row, partial in zip((row for row in rows if row.frames), partials, strict=True):
                    value = features[row.id]
                    with open(partial, "wb") as stream:  # np.save would add an ending
                        np.save(stream, value[0] if len(value) == 1 else value)
            elif features:
                # safetensors writes arrays that are not C-contiguous wrongly, without an error.
                whole = {name: np.ascontiguousarray(value) for name, value in features.items()}
                save_file(whole, partials[0], {"format": FORMAT})
            if features:
                kept["sha256"] = str(files_digest(partials))
            written = pyarrow.Table.from_pylist([row._asdict() for row in rows], _schema())
            metadata = {FORMAT: json.dumps(kept)}
            pyarrow.parquet.write_table(written.replace_schema_metadata(metadata), table)
    except (pyarrow.ArrowException, OSError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise OSError(
            f"{(*files, part)[0]}: cannot be written ({why}); make room and start again"
        ) from error


def shard_files(
    folder: pathlib.Path, number: int, rows: list[Row], source: dict[str, str]
) -> list[pathlib.Path]:
    """The files of a shard."""
    if source.get("layout") == "npy":
        return [npy_file(folder, row.id) for row in rows if row.frames]
    return [shard_file(folder, number)]


def finished_part(
    folder: pathlib.Path, number: int, source: dict[str, str], verify: bool = False
) -> list[Row] | None:
    """The rows of a shard that is there already; None if it is not.

    Args:
      folder: the store.
      number: of the shard.
      source: what it must belong to.
      verify: take it for missing if its bytes are not those that were written, or if its part of
        the index cannot be read.

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
    if verify and digest is not None:
        there = files_digest(shard_files(folder, number, rows, source))
        return rows if there == digest else None
    return rows


def _schema():
    import pyarrow as pa

    vector = pa.list_(pa.float32())
    types = {"id": pa.string(), "path": pa.string(), "shard": pa.int32(), "samples": pa.int64()}
    types |= {"frames": pa.int32(), "exit_layer": pa.int32(), "forced": pa.bool_()}
    types |= {"entropy": vector, "agreement": vector, "error": pa.string()}
    return pa.schema(list(types.items()))


def read_part(path: pathlib.Path) -> tuple[list[Row], dict[str, str]]:
    """The rows and the source of one part of an index.

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
            f"{path}: not a whole part of an index ({str(error)[:80]}); remove it, and its shard "
            "is made again"
        ) from None
