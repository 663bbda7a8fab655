"""Which sound files: those below folders, and lists in fairseq's manifest format or Kaldi's.

The first line of fairseq's list is a folder, each further one a path below it, and behind a tab,
where it is known, the number of samples at 16 kHz. A file with a number need not be opened before
it is read. Kaldi's, such as wav.scp, has a name and a path in each line.
"""

import hashlib
import os
import pathlib
import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from daisy_jax.errors import InputError, require_file
from daisy_jax.reporting import leave_out_item
from daisy_jax.whole_files import is_inside, read_text

SUFFIXES = (
    *(".flac", ".wav", ".mp3", ".ogg", ".oga", ".opus", ".aif", ".aiff", ".aifc", ".au", ".snd"),
    *(".caf", ".w64", ".rf64", ".sph", ".nist", ".wv1", ".wv2", ".mp1", ".mp2", ".voc", ".avr"),
    *(".iff", ".svx", ".8svx", ".16sv", ".sds", ".sf", ".ircam", ".paf", ".fap", ".pvf", ".xi"),
    *(".m4a", ".m4b", ".aac", ".mka", ".weba"),
)
"""Of the formats that `audio.load` reads, but for those that mostly hold something else (.mat,
.htk), pictures with their sound (.mp4, .webm), or nothing but samples (.raw)."""


def sound_files(folder: str | pathlib.Path) -> list[pathlib.Path]:
    """All sound files below a folder, by name; links to folders are not followed.

    A folder that cannot be listed, a pipe and a link that leads nowhere are left out.
    """
    found, folders = [], [pathlib.Path(folder)]
    while folders:  # no recursion, for folders may be nested more deeply than calls
        here = folders.pop()
        try:
            with os.scandir(here) as listed:
                entries = list(listed)
        except OSError as error:
            leave_out_item(here, error)
            continue
        for entry in entries:
            path = here / entry.name
            try:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(path)
                elif path.suffix.lower() in SUFFIXES and not entry.is_dir():
                    if not entry.is_file():
                        entry.stat()  # raises for a link that leads nowhere
                        require_file(path)
                    found.append(path)
            except (OSError, InputError) as error:
                leave_out_item(path, error)
    return sorted(found)


def expand_folders(paths: Sequence[str]) -> list[str]:
    """The files as given, and in the place of a folder the sound files below it.

    A folder without any stays, to be refused like an unreadable file, beside the others.

    Raises:
      InputError: nothing was given.
    """
    if not paths:
        raise InputError("FILES: none are given; give at least one sound file")
    files = []
    for path in paths:
        below = [str(file) for file in sound_files(path)] if os.path.isdir(path) else []
        files += below or [path]
    return files


LISTS = (".tsv", ".txt", ".scp")
"""Suffixes of lists."""


def listed_files(paths: Sequence[str]) -> list[str]:
    """The files of one list, or what `expand_folders` gives."""
    if len(paths) == 1 and pathlib.Path(paths[0]).suffix in LISTS:
        files = read_list(paths[0])
        return [str(files.path(name)) for name in files.names]
    return expand_folders(paths)


class FileList(NamedTuple):
    """The files of a list, each once, in its order."""

    folder: pathlib.Path
    """Of Kaldi's lists, the one in which they lie."""
    names: list[str]
    """Paths below the folder, or Kaldi's names."""
    samples: dict[str, int]
    """By name, where the list says it."""
    repeated: int
    """Lines that said again what was there before."""
    paths: dict[str, pathlib.Path]
    """By name, where the name is not the path."""

    def path(self, name: str) -> pathlib.Path:
        """Where a file is."""
        return self.paths.get(name, self.folder / name)

    @property
    def digest(self) -> str:
        """What belongs to this list says so by its folder, its length and a digest."""
        digest = hashlib.sha256("\n".join(self.names).encode())
        return f"{len(self.names)} files of {self.folder}, {digest.hexdigest()[:16]}"


def read_list(path: str | pathlib.Path) -> FileList:
    """Reads a list; one whose name ends with ".scp" is Kaldi's.

    Two spellings of a path are one file. A name that no store can hold, because it is not UTF-8 or
    has control characters, is kept in an escaped form, under which no file will be found.

    Raises:
      InputError: it is no list, or a path leads out of its folder, or there is no such folder, or
        a line of Kaldi's is a command and no file.
    """
    if pathlib.Path(path).suffix == ".scp":
        return _read_scp(pathlib.Path(path))
    head, *lines = read_text(path, errors="surrogateescape").split("\n")
    folder = pathlib.Path(head)
    if not head or head != nameable(head) or not folder.is_dir():
        raise InputError(
            f"{path}: its first line is {nameable(head)[:80]!r}; it must be a folder, and the "
            "other lines paths below it (fairseq's manifest format)"
        )
    pairs = [line.partition("\t")[::2] for line in lines]
    rows = [(nameable(str(pathlib.PurePath(name))), number) for name, number in pairs if name]
    if not rows:
        raise InputError(f"{path}: lists no file")
    for name, _ in rows:
        if not is_inside(name):
            raise InputError(
                f"{path}: {name!r} does not lie below {head}; give paths below the folder"
            )
    names = list(dict.fromkeys(name for name, _ in rows))
    samples = {name: int(number) for name, number in rows if re.fullmatch(r"\d+", number)}
    return FileList(folder.resolve(), names, samples, len(rows) - len(names), {})


def _read_scp(path: pathlib.Path) -> FileList:
    """Kaldi's list of recordings: https://kaldi-asr.org/doc/data_prep.html."""
    paths: dict[str, pathlib.Path] = {}
    repeated = 0
    for number, line in enumerate(read_text(path, errors="surrogateescape").splitlines(), 1):
        if not line.strip():
            continue
        name, file = [*map(nameable, line.strip().split(maxsplit=1)), ""][:2]
        if not file:
            raise InputError(f"{path}:{number}: {name[:80]!r} has no path; give NAME PATH")
        if file.endswith("|") or file == "-":
            raise InputError(
                f"{path}:{number}: {name} is a command ({file[:80]}), and commands are not run; "
                "write its sound to a file (wav-copy), and list that"
            )
        if not is_inside(name):
            raise InputError(f"{path}:{number}: {name!r} cannot be a name; give one without ..")
        place = pathlib.Path(file).absolute()
        if paths.setdefault(name, place) != place:
            raise InputError(f"{path}:{number}: {name} is the name of two files; give each its own")
        repeated += 1
    if not paths:
        raise InputError(f"{path}: lists no file")
    return FileList(path.parent.resolve(), list(paths), {}, repeated - len(paths), paths)


def nameable(name: str) -> str:
    """The name with what is neither UTF-8 nor text escaped, so that any table can hold it."""
    return "".join(
        f"\\x{ord(character) & 0xFF:02x}"
        if unicodedata.category(character) in ("Cc", "Cs")
        else character
        for character in name
    )


def deal(names: Sequence[str], number: int, count: int) -> list[str]:
    """The files of shard `number` of `count`: every count-th, so that shards are alike.

    Raises:
      InputError: there is no such shard.
    """
    if count < 1 or not 0 <= number < count:
        raise InputError(f"shard {number}/{count}: shards of {count} are 0 to {count - 1}")
    return list(names[number::count])
