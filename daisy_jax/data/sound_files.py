"""Sound files below folders."""

import os
import pathlib
from collections.abc import Sequence

from daisy_jax.errors import InputError

SUFFIXES = (".flac", ".wav", ".ogg", ".opus", ".mp3")


def sound_files(folder: str | pathlib.Path) -> list[pathlib.Path]:
    """All sound files below a folder, by name."""
    found = pathlib.Path(folder).rglob("*")
    return sorted(path for path in found if path.suffix.lower() in SUFFIXES and path.is_file())


def is_inside(path: str) -> bool:
    """Whether a path, joined to a folder's, leads to something below that folder."""
    parts = pathlib.PurePath(path).parts
    return bool(parts) and not pathlib.PurePath(path).is_absolute() and ".." not in parts


def expand_folders(paths: Sequence[str]) -> list[str]:
    """The files as given, and in the place of a folder the sound files below it.

    A folder without any stays, to be refused like an unreadable file, beside the others.

    Raises:
      InputError: nothing was given.
    """
    if not paths:
        raise InputError("no files; give at least one sound file")
    files = []
    for path in paths:
        found = [str(file) for file in sound_files(path)] if os.path.isdir(path) else []
        files += found or [path]
    return files
