"""Shards of feature stores: how they are written, checked and found again.

A store is a folder with `features-00000.safetensors`, ... (float16 [items, frames, dim], or int32
[items, frames], under each utterance's identifier) and `index/00000.parquet`, ..., one table in
as many parts: a row an utterance with its path, shard, frames, where it left, its mean entropy at
every layer, and how well each layer's labels agree with the last one's. In the place of a shard's
one file there may be `npy/ID.npy`, one for each utterance. A part is written behind its shard, so
that its presence says that the shard is whole. What they belong to (model, tap, items, corpus) and
the digests of the shard and of the rows stand in the part's metadata.
"""

import hashlib
import json
import math
import os
import pathlib
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Shaped
from safetensors.numpy import save_file

from daisy_jax.errors import InputError
from daisy_jax.whole_files import (
    contiguous,
    differences,
    files_digest,
    is_inside,
    parse_json,
    whole_files,
)

if TYPE_CHECKING:
    import pyarrow

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
    size: int = 0
    """Bytes of its file when it was encoded; 0 where it was no file of its own."""
    modified: int = 0
    """When that file was last written to then, in nanoseconds since the epoch."""

    @property
    def is_changed(self) -> bool:
        """Whether its file is there and is another one now."""
        try:
            status = os.stat(self.path)
        except OSError:
            return False
        now = status.st_size, status.st_mtime_ns
        return bool(self.size) and now != (self.size, self.modified)


class Part(NamedTuple):
    """A shard's part of the index."""

    rows: list[Row]
    source: dict[str, str]
    """What the features belong to."""
    sha256: str | None
    """Of the shard's files; None if it has none."""
    size: int | None = None
    """Bytes of the shard's files; None if it has none, and in earlier versions."""

    def has_its_size(self, folder: pathlib.Path, number: int) -> bool:
        """Whether the files of shard `number` are there and as long as they were written."""
        if self.size is None:
            return True
        files = shard_files(folder, number, self.rows, self.source)
        try:
            return sum(file.stat().st_size for file in files) == self.size
        except OSError:
            return False

    def is_whole(self, folder: pathlib.Path, number: int) -> bool:
        """Whether the bytes of shard `number` are those that were written."""
        files = shard_files(folder, number, self.rows, self.source)
        return self.sha256 is None or files_digest(files) == self.sha256


def shard_file(folder: pathlib.Path, number: int) -> pathlib.Path:
    """Where a shard's features are."""
    return folder / f"features-{number:05}.safetensors"


def part_file(folder: pathlib.Path, number: int) -> pathlib.Path:
    """Where a shard's part of the index is."""
    return folder / INDEX / f"{number:05}.parquet"


def part_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """All parts of the index that are there, by number."""
    return sorted((folder / INDEX).glob("[0-9]*.parquet"))


def npy_file(folder: pathlib.Path, id: str) -> pathlib.Path:
    """Where an utterance's features are, if it has a file of its own."""
    return folder / "npy" / f"{id}.npy"


def write_shard(
    folder: pathlib.Path,
    number: int,
    features: dict[str, Shaped[np.ndarray, "items frames *dim"]],
    rows: list[Row],
    source: dict[str, str],
) -> None:
    """Writes one shard and its part of the index; without the part the shard counts for nothing.

    Features are given by identifier; none, for entropies alone. `source` is what they belong to,
    the same in all shards of a store. With "layout": "npy" in it each utterance has a file of its
    own, without an axis of items if there is only one.

    Raises:
      OSError: the disk is full, or else; no half-written file stays.
    """
    import pyarrow
    import pyarrow.parquet

    part, kept = part_file(folder, number), dict(source)
    files = shard_files(folder, number, rows, source) if features else []
    # Two machines may write one shard at once, and each may be killed at any moment. So everything
    # is written beside its place, and the part of the index takes its place last: as long as it is
    # not there, what lies there of the shard counts for nothing and is written again. Readers look
    # at the parts alone, and so never see half a shard. The digest inside the part tells a shard of
    # which one machine's file and another one's part have stayed.
    try:
        with whole_files(*files, part, replaces=[part]) as (*partials, table):
            if source.get("layout") == "npy":
                for row, partial in zip((row for row in rows if row.frames), partials, strict=True):
                    value = features[row.id]
                    with open(partial, "wb") as stream:  # np.save would add an ending
                        np.save(stream, value[0] if len(value) == 1 else value)
            elif features:
                save_file(contiguous(features), partials[0], {"format": FORMAT})
            if features:
                kept["sha256"] = str(files_digest(partials))
                kept["bytes"] = str(sum(partial.stat().st_size for partial in partials))
            written = pyarrow.Table.from_pylist([row._asdict() for row in rows], _schema())
            kept["rows"] = _rows_digest(written, kept)
            metadata = {FORMAT: json.dumps(kept)}
            pyarrow.parquet.write_table(written.replace_schema_metadata(metadata), table)
    except pyarrow.ArrowException as error:
        raise OSError(f"{part}: cannot be written ({error})") from error


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

    It is taken for missing if its files are not as long as they were written; with `verify` also if
    their bytes are others, or if its part of the index cannot be read.

    Raises:
      InputError: it belongs to something else than `source`.
    """
    path = part_file(folder, number)
    if not path.is_file():
        return None
    try:
        part = read_part(path)
    except InputError:
        if verify:
            return None
        raise
    changes = differences(part.source, source)
    if changes:
        said = "; ".join(f"{name} {old} and not {new}" for name, (old, new) in changes.items())
        raise InputError(
            f"{folder}: holds features of something else ({said}); give another folder, or remove "
            "this one"
        )
    whole = part.is_whole if verify else part.has_its_size
    return part.rows if whole(folder, number) else None


def _schema() -> "pyarrow.Schema":
    import pyarrow as pa

    vector = pa.list_(pa.float32())
    types = {"id": pa.string(), "path": pa.string(), "shard": pa.int32(), "samples": pa.int64()}
    types |= {"frames": pa.int32(), "exit_layer": pa.int32(), "forced": pa.bool_()}
    types |= {"entropy": vector, "agreement": vector, "error": pa.string()}
    types |= {"size": pa.int64(), "modified": pa.int64()}
    return pa.schema(list(types.items()))


def _rows_digest(table: "pyarrow.Table", source: dict[str, str]) -> str:
    """SHA-256 of what a part holds, beside this."""
    content = [table.to_pylist(), {key: source[key] for key in sorted(source)}]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def read_part(path: pathlib.Path) -> Part:
    """Reads one part of an index.

    Raises:
      InputError: it is not a whole part of this version.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
        text = (table.schema.metadata or {})[FORMAT.encode()].decode()
        source = parse_json(str(path), text, dict[str, str], "remove it")
        rows = source.pop("rows", None)
        if rows is not None and rows != _rows_digest(table, source):
            raise ValueError("its rows are not those that were written")
        digest, size = source.pop("sha256", None), source.pop("bytes", None)
        # Parts of earlier versions have no size and no time.
        types = [field for field in _schema() if field.name in table.column_names]
        held = table.cast(pyarrow.schema(types)).to_pylist()
        part = Part(
            [Row(**row) for row in held], source, digest, None if size is None else int(size)
        )
        _check(part.rows, int(path.stem))
        return part
    except (pyarrow.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).removeprefix(f"{path}: ").split())[:120]
        raise InputError(
            f"{path}: not a whole part of an index ({reason}); remove it, and its shard is made "
            "again"
        ) from None


def _check(rows: list[Row], number: int) -> None:
    """Raises a ValueError for rows that no part of this number can have."""
    for row in rows:
        whole = (row.id, row.path, row.shard, row.samples, row.frames)
        if None in whole or row.entropy is None or row.agreement is None:
            raise ValueError("a row lacks a value")
        if not is_inside(row.id):
            raise ValueError(f"{row.id!r} leads out of the store")
        if row.shard != number or min(row.samples, row.frames, row.exit_layer) < 0:
            raise ValueError(f"the row of {row.id!r} belongs elsewhere or has negative numbers")
        if any(math.isnan(value) for value in (*row.entropy, *row.agreement)):
            raise ValueError(f"the row of {row.id!r} holds NaN")
