"""Sound files, decoded to their end and held against what their headers say.

libsndfile serves a file that ends too early as if it were whole and says so in its log alone; of
some formats it takes whatever lies behind the sound for sound; and where a header has no length it
promises 2^63 - 1 samples, or estimates. So here a header's length is used to notice what is
missing, and never believed.
"""

import contextlib
import os
import pathlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from daisy_jax.audio import mp3, ogg
from daisy_jax.audio.libsndfile import libsndfile
from daisy_jax.audio.media import MediaSound, is_media, opened_media
from daisy_jax.errors import InputError, require_file

if TYPE_CHECKING:
    import soundfile

BLOCK = 1 << 18
"""Numbers that are decoded at a time, of all channels, and bytes that are read."""
UNKNOWN_FRAMES = 1 << 62
"""libsndfile promises more where a length is not known."""
MOST_FRAMES_IN_A_BYTE = 4096
"""FLAC takes some 11 bytes for 4096 samples of silence."""
UNKNOWN_SIZE = 0x7FFF_F000  # bytes; programs that write WAV to a pipe promise so much or more
EXACT_SEEKS = ("WAV", "WAVEX", "FLAC", "AIFF", "RF64", "W64", "AU", "CAF")
"""Formats whose parts are what the same part of the whole is."""

REFUSES_JOINED = (b"RIFF", b"FORM", b"Crea")
"""Beginnings of formats of which libsndfile reads nothing if several files are joined."""
WIDTHS = {
    **dict.fromkeys(("PCM_S8", "PCM_U8", "ULAW", "ALAW"), 1),
    **dict.fromkeys(("PCM_16", "DPCM_16"), 2),
    **{"PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8},
}
"""Bytes of a sample, by subtype, where they are the same for all."""
FRAMES_IN_LOG = {
    "AVR": r"Frames\s*: (\d+)",
    "MPC2K": r"Frames\s*: (\d+)",
    "MAT5": r"Rows : \d+\s+Cols : (\d+)",
}
"""Where libsndfile's log tells what a header promises, by format: frames."""
BYTES_IN_LOG = {
    "SVX": (r"BODY : (\d+)", 0),
    "VOC": (r"Extended II : (\d+)", 12),
    "W64": (r"data : (\d+)", 24),
}
"""The same, bytes, and how many of them are no sound."""
CUT_OFF = re.compile(
    r"File seems to be truncated|Seems to be a truncated file|"
    r"Calculated frame count \d+ does not match value from 'ds64'|short read \(\d+ != 127\)"
)
"""What else libsndfile's log says of a file that ends too early."""
LARGER = re.compile(
    r"^\s*(?:data|SSND|BODY|Data Size|riff|Riff size)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE
)
"""A part that should be larger or smaller than it is."""


class Sound:
    """An open sound file."""

    def __init__(self, path: pathlib.Path, file: "soundfile.SoundFile", seekable: bool):
        """Raises InputError where the header already shows that the file is cut off."""
        self._path, self._file, self._seekable = path, file, seekable
        self.rate, self.channels, self.subtype = file.samplerate, file.channels, file.subtype
        self._promised = promised_frames(path, file)
        if cut_off(file.extra_info) or (self._promised or 0) > file.frames:
            raise _cut_off(self._path)
        fits = (self._promised or 0) <= MOST_FRAMES_IN_A_BYTE * path.stat().st_size
        self.frames = self._promised if fits else None
        """As the header promises; None where it says nothing, or nothing that can be true."""

    @property
    def seeks(self) -> bool:
        """Whether `part` can be asked for."""
        return self._seekable and self._file.format in EXACT_SEEKS and bool(self.frames)

    def blocks(self) -> Iterator[Float[np.ndarray, "frames channels"]]:
        """The samples, float32, full scale 1, from the beginning to the end.

        Raises:
          InputError: behind the last sample, if there should be more of them.
        """
        soundfile = libsndfile()
        frames = 0
        size = max(BLOCK // self.channels, 1)
        while True:
            if self._promised is not None:  # what lies behind is no sound
                size = min(size, self._promised - frames)
            try:
                block = self._file.read(size, dtype="float32", always_2d=True)
            except soundfile.LibsndfileError as error:
                raise InputError(
                    f"{self._path}: the file is cut off or damaged "
                    f"({error.error_string.rstrip('.')}); record or copy it again"
                ) from error
            if not len(block):
                break
            frames += len(block)
            yield block
        if frames < (self._promised or 0) or cut_off(self._file.extra_info):
            raise _cut_off(self._path)

    def part(self, start: int, frames: int) -> Float[np.ndarray, "frames channels"]:
        """So many frames from `start` on; fewer where the file ends, as its header says.

        Raises:
          InputError: it ends earlier.
        """
        assert self.frames is not None  # as it seeks
        wanted = max(min(frames, self.frames - start), 0)
        self._file.seek(start)
        block = self._file.read(wanted, dtype="float32", always_2d=True)
        if len(block) < wanted:
            raise _cut_off(self._path)
        return block

    def refuse_joined(self) -> None:
        """Raises an InputError if the file is several files, of which only the first is served."""
        if self._file.format != "MP3":  # of which all are served
            _refuse_joined(self._path)


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[Sound | MediaSound]:
    """A sound file, open to be decoded once from the beginning, or for `Sound.part`.

    Raises:
      InputError: it is no sound file, or cut off; also for errors of libsndfile while it is open.
      OSError: it cannot be opened.
    """
    soundfile = libsndfile()

    class Forward(soundfile.SoundFile):
        """soundfile seeks after each block, which not all formats can do."""

        def seekable(self) -> bool:
            return False

    _refuse_others(path)
    with open(path, "rb") as stream:
        beginning = stream.read(12)
    if is_media(beginning):
        with opened_media(path) as media:
            yield media
        return
    head = beginning[:4]
    if head == b"OggS" and ogg.is_cut_off(path):
        raise _cut_off(path)
    frames = mp3.frames_of(path) if head.startswith((b"ID3", b"\xff")) else None
    name: Any = os.fsencode(path) if os.name == "posix" else path  # it cannot encode any name
    try:
        with Forward(frames or name) as file:
            yield Sound(path, file, soundfile.SoundFile.seekable(file))
    except soundfile.LibsndfileError as error:
        if head in REFUSES_JOINED:
            _refuse_joined(path)
        raise InputError(
            f"{path}: not readable as audio ({error.error_string.rstrip('.')}); "
            "copy it again, or convert it to WAV or FLAC"
        ) from error


def _cut_off(path: pathlib.Path) -> InputError:
    return InputError(f"{path}: the file is cut off; record or copy it again")


def _refuse_others(path: pathlib.Path) -> None:
    """Raises an InputError for what is no sound file at first sight."""
    require_file(path)
    if not path.stat().st_size:
        raise InputError(f"{path}: the file is empty; record or copy it again")
    if path.suffix.lower() == ".raw":
        raise InputError(f"{path}: raw samples without a header; convert it to WAV or FLAC")


def _refuse_joined(path: pathlib.Path) -> None:
    """Raises an InputError if a file's beginning is there again: two were joined."""
    with open(path, "rb") as stream:
        head = stream.read(8)  # a format's name, and more that another such file shares
        seen = b""
        while block := stream.read(BLOCK):
            if head in (seen := seen + block):
                raise InputError(
                    f"{path}: several sound files in one, of which only the first would be read; "
                    "split it"
                )
            seen = seen[-len(head) + 1 :]


def promised_frames(path: pathlib.Path, file: "soundfile.SoundFile") -> int | None:
    """Frames that a header promises; None where it does not say.

    libsndfile's own number is cut to what the file can hold, or made from the file's size. Some
    headers it prints into its log; that of NIST's SPHERE files is text, the rest has none.
    """
    log, kind = file.extra_info, file.format
    if file.frames >= UNKNOWN_FRAMES:
        return None
    if kind == "NIST":
        with open(path, "rb") as stream:
            found = re.findall(rb"^sample_count -i (\d+)", stream.read(1024), re.MULTILINE)
        return int(found[-1]) if found else file.frames
    if kind in FRAMES_IN_LOG:
        found = re.findall(FRAMES_IN_LOG[kind], log)
        return int(found[-1]) if found else file.frames
    if kind in BYTES_IN_LOG and file.subtype in WIDTHS:
        pattern, others = BYTES_IN_LOG[kind]
        found = re.findall(pattern, log)
        width = WIDTHS[file.subtype] * file.channels
        return (int(found[-1]) - others) // width if found else file.frames
    return file.frames


def cut_off(log: str) -> bool:
    """Whether libsndfile's log says that a file ends too early."""
    sizes = [(int(claimed), int(found)) for claimed, found in LARGER.findall(log)]
    return bool(CUT_OFF.search(log)) or any(
        found < claimed < UNKNOWN_SIZE for claimed, found in sizes
    )
