"""Files that are there as a whole or not at all.

A file is written beside its place and renamed when it is complete. Readers therefore never see half
a file, a full disk or a kill leaves what was there before, and several processes may write the same
file at once: each writes in a folder of its own beside it, and the last one to finish wins.
"""

import contextlib
import errno
import json
import math
import os
import pathlib
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping

from safetensors import SafetensorError

from daisy_jax.errors import delayed_signals

ABANDONED = 7 * 86_400
"""Seconds without a change after which what is being written is taken for left over."""


@contextlib.contextmanager
def whole_files(
    *paths: pathlib.Path, replaces: Iterable[pathlib.Path] = ()
) -> Iterator[tuple[pathlib.Path, ...]]:
    """Yields paths to write to; when the block ends, they take the places of `paths` in this order.

    Folders are made if absent. Paths that were not written to are left out. If the block raises,
    nothing takes any place, and what was written is removed. What `replaces` names is removed
    before: files that would not belong to the new ones.

    Raises:
      OSError: a path cannot be written, or is a folder; it names the path.
    """
    for path in paths:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    # Beside each file, a folder of this process alone, in which nobody can have put anything.
    beside: dict[pathlib.Path, pathlib.Path] = {}
    try:
        for folder in {path.parent for path in paths}:
            beside[folder] = _folder_inside(folder)
        partials = tuple(beside[path.parent] / path.name for path in paths)
        partials[0].touch()
        mode = partials[0].stat().st_mode  # as this process makes files
        partials[0].unlink()
        yield partials
        with delayed_signals():  # not between two that belong together
            for path in replaces:
                path.unlink(missing_ok=True)
            for path, partial in zip(paths, partials, strict=True):
                if partial.exists():
                    partial.chmod(mode)  # safetensors lets the owner alone read
                    partial.replace(path)
    except SafetensorError as error:  # which is what safetensors raises when a disk is full
        code = re.search(r"os error (\d+)", str(error))
        if code is None:
            raise OSError(f"{paths[0]}: cannot be written ({error})") from error
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(paths[0])) from error
    except OSError as error:
        raise _of_target(error, paths[0], beside) from error
    finally:
        for partial in beside.values():
            shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def whole_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a folder to fill, which takes the place of `path` when the block ends.

    If another process has made `path` meanwhile, that stays. If the block raises, nothing does.

    Raises:
      OSError: the folder cannot be written; it names the path.
    """
    beside: dict[pathlib.Path, pathlib.Path] = {}
    try:
        beside[path.parent] = _folder_inside(path.parent)
        inside = beside[path.parent] / path.name
        inside.mkdir()  # with the mode of this process' folders, which mkdtemp's does not have
        yield inside
        try:
            inside.rename(path)
        except OSError:
            if not path.is_dir():
                raise
    except OSError as error:
        raise _of_target(error, path, beside) from error
    finally:
        for partial in beside.values():
            shutil.rmtree(partial, ignore_errors=True)


def _folder_inside(folder: pathlib.Path) -> pathlib.Path:
    """A new folder in this one, for what this process alone writes; what dead ones left goes."""
    folder.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    prefix = f".{platform.node()}-{os.getpid()}-"
    return pathlib.Path(tempfile.mkdtemp(".partial", prefix, folder))


def cache_folder() -> pathlib.Path:
    """What the library keeps for a user: below $XDG_CACHE_HOME, or ~/.cache without it."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return pathlib.Path(root, "daisy_jax")


def _of_target(
    error: OSError, path: pathlib.Path, beside: Mapping[pathlib.Path, pathlib.Path]
) -> OSError:
    """The same error about the file that was to be there: `path`, if the error names none."""
    if error.errno is None:
        return error
    name = path if error.filename is None else pathlib.Path(os.fsdecode(error.filename))
    for folder, partial in beside.items():
        if partial in name.parents:
            name = folder / name.relative_to(partial)
    return OSError(error.errno, error.strerror or os.strerror(error.errno), str(name))


def is_written_to(folder: pathlib.Path) -> bool:
    """Whether a process is writing a file of this folder, or was killed while it did."""
    return any(folder.glob(".*-*.partial"))


def is_unused(folder: pathlib.Path) -> bool:
    """Whether nothing is in a folder but what dead processes began to write."""
    if not folder.exists():
        return True
    _sweep(folder)
    return not any(folder.iterdir())


def _sweep(folder: pathlib.Path) -> None:
    """Removes what processes left there that were killed while they wrote."""
    for left in folder.glob(".*-*.partial"):
        named = re.fullmatch(r"\.(?P<host>.+)-(?P<process>\d+)-\w{8}\.partial", left.name)
        if named and not _is_written(left, named["host"], int(named["process"])):
            shutil.rmtree(left, ignore_errors=True)


def _is_written(partial: pathlib.Path, host: str, process: int) -> bool:
    """Whether somebody may still be writing there."""
    try:
        if os.name == "posix" and host == platform.node():  # elsewhere 0 is not a question
            os.kill(process, 0)
        changes = [path.stat().st_mtime for path in (partial, *partial.iterdir())]
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return max(changes) > time.time() - ABANDONED


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text file as a whole, in UTF-8."""
    with whole_files(path) as (partial,):
        partial.write_text(text, encoding="utf-8")


def write_json(path: pathlib.Path, content: object) -> None:
    """Writes a JSON file as a whole. NaN and infinities, which JSON does not have, become null."""
    write_text(path, json_text(content))


def json_text(content: object) -> str:
    """The content of a JSON file, as `write_json` writes it."""
    return json.dumps(_finite(content), indent=2, allow_nan=False) + "\n"


def _finite(content: object) -> object:
    """The content with null in the place of numbers that JSON does not have."""
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content
