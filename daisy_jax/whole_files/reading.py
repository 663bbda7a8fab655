"""Files of text, JSON and arrays, read if they are what they should be; digests of files."""

import contextlib
import hashlib
import json
import os
import pathlib
import types
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeAlias, TypeVar

import numpy as np
from jaxtyping import Float32, Shaped

from daisy_jax.errors import InputError, require_file

Schema = TypeVar("Schema")
Path: TypeAlias = str | os.PathLike[str]
Kind: TypeAlias = type[Schema] | types.GenericAlias
"""A schema: a dataclass, a TypedDict, or a builtin type such as dict[str, object]."""


def read_text(path: Path, errors: str = "strict", remedy: str = "save it as UTF-8") -> str:
    """The content of a text file in UTF-8, with or without a mark at its beginning.

    Args:
      path: the file.
      errors: as of `bytes.decode`; "surrogateescape" takes every file.
      remedy: what to do about a file that is not UTF-8.

    Raises:
      InputError: it is a pipe, a device or a folder, or not UTF-8.
      OSError: it cannot be opened.
    """
    require_file(path)
    try:
        return pathlib.Path(path).read_text(encoding="utf-8-sig", errors=errors)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (at byte {error.start}); {remedy}") from None


def read_json(path: Path, schema: Kind[Schema], remedy: str, wanted: str | None = None) -> Schema:
    """The content of a JSON file, held against its schema.

    Args:
      path: the file.
      schema: what it must hold.
      remedy: what to do about another file, such as "make it again".
      wanted: what its "format" must be, name and version; None: it has none.

    Raises:
      InputError: it is not JSON, of another format, or holds something else. One line that names
        the file and the place in it.
      OSError: it cannot be opened.
    """
    return parse_json(os.fspath(path), read_text(path, remedy=remedy), schema, remedy, wanted)


def parse_json(
    path: str,
    text: str,
    schema: Kind[Schema],
    remedy: str,
    wanted: str | None = None,
) -> Schema:
    """As `read_json`, of a text that stands in the place `path`."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error}); {remedy}") from None
    if wanted is not None:
        found = content.get("format") if isinstance(content, dict) else None
        if found != wanted:
            raise InputError(
                f"{path}: format is {found!r}, this version reads {wanted!r}; {remedy}, or install "
                "the daisy_jax that wrote it"
            )
    return checked(path, content, schema, remedy)


def checked(path: str, content: object, schema: Kind[Schema], remedy: str) -> Schema:
    """What JSON or TOML held in the place `path`, as its schema; raises as `read_json`."""
    import msgspec

    try:
        return msgspec.convert(content, schema)
    except msgspec.ValidationError as error:
        raise InputError(f"{path}: {error}; {remedy}") from None


def read_array(path: Path, mmap: bool = False) -> Shaped[np.ndarray, "..."]:
    """The array of a .npy file, in memory or mapped.

    Raises:
      InputError: the file is none of `numpy.save`, or cut off.
      OSError: it cannot be opened.
    """
    with _of_numpy(path, "numpy.save"):
        content = np.load(path, mmap_mode="r" if mmap else None, allow_pickle=False)
        if not isinstance(content, np.ndarray):
            raise ValueError("it holds several arrays")
        return content


def read_arrays(path: Path, *names: str) -> tuple[Shaped[np.ndarray, "..."], ...]:
    """Some arrays of a .npz file.

    Raises:
      InputError: the file is none of `numpy.savez`, or cut off, or lacks one of the names.
      OSError: it cannot be opened.
    """
    with _of_numpy(path, "numpy.savez"), np.load(path, allow_pickle=False) as content:
        if not isinstance(content, Mapping):
            raise ValueError("it holds one array")
        return tuple(content[name] for name in names)


def read_numbers(path: Path) -> Float32[np.ndarray, "..."]:
    """The array of a .npy file of real numbers; raises as `read_array`, and for NaN."""
    return numbers_of(path, read_array(path))


def numbers_of(path: Path, array: Shaped[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
    """What a file holds as float32; an InputError if it is no real number somewhere."""
    if array.dtype.kind not in "iuf":
        raise InputError(f"{path}: holds {array.dtype} where numbers were wanted")
    with np.errstate(over="ignore"):
        numbers = np.asarray(array, np.float32)
    if not np.all(np.isfinite(numbers)):
        raise InputError(f"{path}: holds NaN or infinite numbers; make it again")
    return numbers


@contextlib.contextmanager
def _of_numpy(path: Path, writer: str) -> Iterator[None]:
    require_file(path)
    try:
        yield
    except (ValueError, TypeError, KeyError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: no file of {writer} ({reason}); write it again") from None


def is_inside(name: str) -> bool:
    """Whether a path that somebody wrote down lies below the folder that it is taken from."""
    path = pathlib.PurePath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def differences(
    before: Mapping[str, object], now: Mapping[str, object]
) -> dict[str, tuple[object, object]]:
    """By name, what differs between two sets of settings: both values, None for what is not set."""
    pairs = {name: (before.get(name), now.get(name)) for name in before.keys() | now.keys()}
    return {name: pairs[name] for name in sorted(pairs) if pairs[name][0] != pairs[name][1]}


def files_digest(paths: Iterable[pathlib.Path]) -> str | None:
    """SHA-256 of the bytes of some files, one after the other; None if one is missing.

    Raises:
      InputError: one is a pipe, a device or a folder.
    """
    digest = hashlib.sha256()
    try:
        for path in paths:
            require_file(path)
            with open(path, "rb") as stream:
                while block := stream.read(1 << 22):
                    digest.update(block)
    except FileNotFoundError:
        return None
    return digest.hexdigest()
