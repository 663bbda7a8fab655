"""Files that are there as a whole or not at all, and our JSON files, which name their format.

A file is written beside its place and renamed when it is complete. Readers therefore never see half
a file, a full disk or a kill leaves what was there before, and several processes may write the same
file at once: each writes beside it under a name of its own, and the last one to finish wins.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import pathlib
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from safetensors import SafetensorError

from daisy_jax.errors import InputError, delayed_signals


@contextlib.contextmanager
def whole_files(*paths: pathlib.Path) -> Iterator[tuple[pathlib.Path, ...]]:
    """Yields paths to write to; when the block ends, they take the places of `paths` in this order.

    Folders are made if absent. Paths that were not written to are left out. If the block raises,
    nothing takes any place, and what was written is removed.

    Raises:
      OSError: a path cannot be written, or is a folder.
    """
    partials = tuple(map(_partial, paths))
    for folder in {path.parent for path in paths}:
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
    for path in paths:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    try:
        partials[0].touch()
        mode = partials[0].stat().st_mode  # as this process makes files
        partials[0].unlink()
        yield partials
        with delayed_signals():  # not between two that belong together
            for path, partial in zip(paths, partials, strict=True):
                if partial.exists():
                    partial.chmod(mode)  # safetensors lets the owner alone read
                    partial.replace(path)
    except SafetensorError as error:  # which is what safetensors raises when a disk is full
        raise OSError(f"{paths[0]}: cannot be written ({error})") from error
    finally:
        for partial in partials:
            partial.unlink(missing_ok=True)


def _partial(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f".{path.name}.{platform.node()}-{os.getpid()}.partial")


def _sweep(folder: pathlib.Path) -> None:
    """Removes what processes of this machine left that were killed while they wrote there."""
    if os.name != "posix":  # elsewhere signal 0 is not a question
        return
    for left in folder.glob(f".*.{platform.node()}-*.partial"):
        try:
            os.kill(int(left.name.removesuffix(".partial").rpartition("-")[2]), 0)
        except ProcessLookupError:
            left.unlink(missing_ok=True)
        except (ValueError, OSError):
            pass


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text file as a whole, in UTF-8."""
    with whole_files(path) as (partial,):
        partial.write_text(text, encoding="utf-8")


def write_json(path: pathlib.Path, content: object) -> None:
    """Writes a JSON file as a whole. NaN and infinities, which JSON does not have, become null."""
    write_text(path, json.dumps(_finite(content), indent=2, allow_nan=False) + "\n")


def write_rows(path: pathlib.Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Writes rows of a table as a whole Parquet file."""
    import pyarrow
    import pyarrow.parquet

    with whole_files(path) as (partial,):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), partial)


def _finite(content: object) -> object:
    """The content with null in the place of numbers that JSON does not have."""
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content


def read_json(path: pathlib.Path, wanted: str, remedy: str) -> dict[str, Any]:
    """The content of a file whose "format" is `wanted`.

    Args:
      path: the file.
      wanted: name and version.
      remedy: what to do about another file, such as "make it again".

    Raises:
      InputError: it is not JSON, or of another format. One line that names the file.
      OSError: it cannot be opened.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); {remedy}") from None
    found = content.get("format") if isinstance(content, dict) else None
    if found != wanted:
        raise InputError(
            f"{path}: format is {found!r}, this version reads {wanted!r}; {remedy}, or install the "
            "daisy_jax that wrote it"
        )
    return content


def differences(
    before: Mapping[str, object], now: Mapping[str, object]
) -> dict[str, tuple[object, object]]:
    """By name, what differs between two sets of settings: both values, None for what is not set."""
    pairs = {name: (before.get(name), now.get(name)) for name in before.keys() | now.keys()}
    return {name: pairs[name] for name in sorted(pairs) if pairs[name][0] != pairs[name][1]}


def files_digest(paths: Iterable[pathlib.Path]) -> str | None:
    """SHA-256 of the bytes of some files, one after the other; None if one is missing."""
    digest = hashlib.sha256()
    try:
        for path in paths:
            with open(path, "rb") as stream:
                while block := stream.read(1 << 22):
                    digest.update(block)
    except FileNotFoundError:
        return None
    return digest.hexdigest()
