"""What libsndfile cannot read and FFmpeg can, through PyAV: AAC, and the sound of films."""

import contextlib
import pathlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from daisy_jax.errors import InputError

if TYPE_CHECKING:
    from av.container import InputContainer

BEGINNINGS = re.compile(
    rb".{4}ftyp|"  # MP4, M4A, QuickTime, 3GP
    rb"\x1A\x45\xDF\xA3|"  # Matroska, WebM
    rb"\xFF[\xF0\xF1\xF8\xF9]",  # AAC by itself (ADTS)
    re.DOTALL,
)
"""With which such files begin."""
SHORTEST_CUT = 0.1
"""Seconds that a container may promise beyond what is decoded: it counts whole packets, and what
its other streams have."""


def is_media(head: bytes) -> bool:
    """Whether a file with these first 12 bytes is for FFmpeg."""
    return BEGINNINGS.match(head) is not None


def require_media(path: pathlib.Path) -> None:
    """Raises an InputError where PyAV is not installed."""
    try:
        import av  # noqa: F401
    except ModuleNotFoundError:
        raise InputError(
            f"{path}: AAC or another format that libsndfile does not read; pip install "
            f"'daisy-jax[media]', or convert it (ffmpeg -i {path.name} -vn "
            f"{path.with_suffix('.flac').name})"
        ) from None


class MediaSound:
    """The first sound track of an open file, decoded once from the beginning."""

    subtype = "compressed"
    frames = None
    """Samples are counted: what a container says of its length is an estimate."""

    def __init__(self, path: pathlib.Path, container: "InputContainer"):
        """Raises InputError if there is no track."""
        if not container.streams.audio:
            raise InputError(f"{path}: holds no sound; give a file with a sound track")
        self._path, self._container, self._track = path, container, container.streams.audio[0]
        self.rate, self.channels = self._track.rate, self._track.channels

    def blocks(self) -> Iterator[Float[np.ndarray, "frames channels"]]:
        """The samples, float32, full scale 1, from the beginning to the end.

        Raises:
          InputError: behind the last sample, if the file is damaged or there should be more of
            them.
        """
        import av

        floats = av.AudioResampler("fltp", self._track.layout, self.rate)
        samples = 0
        for frame in self._container.decode(self._track):
            for converted in floats.resample(frame):
                samples += converted.samples
                yield converted.to_ndarray().T
        for converted in floats.resample(None):
            samples += converted.samples
            yield converted.to_ndarray().T
        if samples / self.rate < self._promised() - SHORTEST_CUT:
            raise InputError(f"{self._path}: the file is cut off; record or copy it again")

    def refuse_joined(self) -> None:
        """Several films in one file are no such format."""

    def _promised(self) -> float:
        """Seconds that the track should have; 0 where nobody says."""
        import av

        track, whole = self._track, self._container.duration
        if track.duration is not None and track.time_base is not None:
            return float(track.duration * track.time_base)
        if whole is None or len(self._container.streams) > 1:  # the picture may be longer
            return 0
        return whole / av.time_base


@contextlib.contextmanager
def opened_media(path: pathlib.Path) -> Iterator[MediaSound]:
    """A file of FFmpeg's, as `sound_file.opened` gives others.

    Raises:
      InputError: PyAV is not installed, or cannot read it; also for errors while it is open.
    """
    require_media(path)
    import av
    from av.error import FFmpegError

    try:
        with av.open(str(path)) as container:
            yield MediaSound(path, container)
    except (FFmpegError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"{path}: the file is cut off or damaged, or of no kind that FFmpeg reads ({reason}); "
            "copy it again, or convert it to WAV or FLAC"
        ) from error
