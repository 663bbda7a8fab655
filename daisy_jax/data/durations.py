"""Durations of a folder's sound files, measured once and remembered.

Opening 281 241 files takes minutes; asking the file system for their sizes takes seconds. So what
was found in a file is kept in the user's cache folder, with the size and the modification time that
the file had then, and is used again while both are the same.
"""

import concurrent.futures
import contextlib
import hashlib
import os
import pathlib
import time
from typing import NamedTuple, TypedDict

from daisy_jax import audio
from daisy_jax.errors import InputError, said_of
from daisy_jax.reporting import followed
from daisy_jax.whole_files import cache_folder, read_json, write_json

FORMAT = "daisy_jax_durations/2"
FORGOTTEN = 180 * 86_400
"""Seconds after which the durations of a folder that nobody opens are forgotten."""
READERS = 8
"""Threads that open files: they wait for the disk, not for the processor."""


class Entry(NamedTuple):
    """What is known of one file."""

    size: int
    """Bytes."""
    modified: int
    """Nanoseconds since the epoch."""
    samples: int
    """At 16 kHz; 0 if the file cannot be used."""
    rate: int
    """The file's own sampling rate, Hz; 0: not known, as only a list has said the length."""
    error: str | None
    """Why it cannot be used, or None."""


class Records(TypedDict):
    """What is known of a file with many utterances."""

    status: list[int]
    """Their number, and the file's size and modification time as in an `Entry`."""
    names: list[str]
    lengths: list[int]
    """Samples at 16 kHz."""


class Memory(TypedDict, total=False):
    """What is remembered of a folder, by file name."""

    entries: dict[str, Entry]
    shards: dict[str, Records]


def measure(folder: pathlib.Path, files: list[pathlib.Path]) -> list[Entry]:
    """An entry for each of `files` below `folder`; only new and changed ones are opened."""
    remembered = recall(folder).get("entries", {})
    entries: dict[str, Entry] = {}
    changed: dict[str, pathlib.Path] = {}
    names = [str(file.relative_to(folder)) for file in files]
    for name, file in zip(names, files, strict=True):
        status, before = file.stat(), remembered.get(name)
        if before and (before.size, before.modified) == (status.st_size, status.st_mtime_ns):
            entries[name] = before
        else:
            changed[name] = file
    if changed:
        with concurrent.futures.ThreadPoolExecutor(READERS) as readers:
            opened = readers.map(open_file, changed.values())
            entries |= zip(followed(changed, "measuring"), opened, strict=True)
        # A file that could not be read may be readable next time, though it is the same.
        usable = {name: e for name, e in (remembered | entries).items() if not e.error}
        gone = [name for name in usable.keys() - entries.keys() if not (folder / name).exists()]
        keep(folder, {"entries": {name: e for name, e in usable.items() if name not in gone}})
    return [entries[name] for name in names]


def open_file(file: pathlib.Path) -> Entry:
    """What a file says of itself; decoded if it does not say how long it is.

    Raises:
      OSError: it cannot be opened.
    """
    status = file.stat()
    try:
        samples, rate = audio.measured(file)
    except Exception as reason:
        samples, rate, error = 0, 0, said_of(file, reason).removeprefix(f"{file}: ")
    else:
        error = None
    return Entry(status.st_size, status.st_mtime_ns, samples, rate, error)


def recall(folder: pathlib.Path) -> Memory:
    """What `keep` was given for a folder; nothing if it was not, or by another version."""
    path = _cache_file(folder)
    try:
        memory = read_json(path, Memory, "measure again", FORMAT)
        lengths = [entry.samples for entry in memory.get("entries", {}).values()]
        for records in memory.get("shards", {}).values():
            lengths += records["lengths"]
            if not records["status"][:1] == [len(records["names"])] == [len(records["lengths"])]:
                return {}
        if min(lengths, default=0) < 0:
            return {}
        path.touch()  # what is used is not forgotten
        return memory
    except (OSError, InputError):
        return {}


def keep(folder: pathlib.Path, memory: Memory) -> None:
    """Remembers what was found in a folder; where that is not possible, it is found again."""
    path = _cache_file(folder)
    with contextlib.suppress(OSError):
        write_json(path, {"format": FORMAT, **memory})
        for other in path.parent.glob("*-" + 16 * "[0-9a-f]" + ".json"):
            if other.stat().st_mtime < time.time() - FORGOTTEN:
                other.unlink(missing_ok=True)


def _cache_file(folder: pathlib.Path) -> pathlib.Path:
    key = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    return cache_folder() / f"{folder.name}-{key}.json"
