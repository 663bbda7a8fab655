"""What `encode_files` says of a file, and how the windows of a long one become it."""

import io
import tempfile
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

HELD = 16e6
"""Bytes of a recording's features that stay in memory."""


class WindowResult(NamedTuple):
    """A part of a recording with an exit of its own."""

    start: float
    """Where it begins, seconds."""
    seconds: float
    """Duration, without the context that the model saw beside it."""
    exit_layer: int
    """Where it left, 1..L."""
    forced: bool
    """It left because no threshold was met."""
    entropy: Float[np.ndarray, " layers"]
    """float32, nats, of all that the model saw of it; +inf where not evaluated."""


class FileResult(NamedTuple):
    """One file's features, or why there are none. Arrays are numpy, without padding.

    Of a file in several windows, features of more than 16 MB are mapped from the disk, so that
    memory does not follow its length. They lie where `tempfile` puts files (TMPDIR), as long as the
    arrays live, and keep a file open.
    """

    path: str
    """As it was given."""
    error: str | None = None
    """One line, or None; with an error everything below is empty."""
    seconds: float = 0.0
    """Duration."""
    exit_layer: int = 0
    """Where it left, 1..L. Of a file in several windows, `exit_layer`, `forced` and `entropy` are
    those of the window that left deepest (of the first, if there are several)."""
    forced: bool = False
    """It left because no threshold was met."""
    entropy: Float[np.ndarray, " layers"] | None = None
    """float32, nats; +inf where not evaluated."""
    num_frames: int = 0
    """Frames."""
    last_hidden: Float[np.ndarray, "frames dim"] | None = None
    """The exit layer's output."""
    hidden_states: Float[np.ndarray, "items frames dim"] | None = None
    """Items 0..L, if asked for."""
    pooled: Float[np.ndarray, "frames dim"] | None = None
    """float32, if layer weights were given."""
    notes: tuple[str, ...] = ()
    """What was done to the samples: mixed down, resampled, scaled."""
    frame_exit_layer: Int[np.ndarray, " frames"] | None = None
    """int32, where the window of each frame left."""
    windows: tuple[WindowResult, ...] = ()
    """The parts that were encoded one by one; a file that was not cut is one."""


def joined(results: Iterator[tuple[FileResult, bool]]) -> Iterator[FileResult]:
    """Files, from the results of their windows and whether each is the file's last."""
    recording: _Recording | None = None
    try:
        for result, is_last in results:
            if recording is None and is_last:
                yield result
                continue
            if recording is None:
                recording = _Recording()
            recording.add(result)
            if is_last:
                yield recording.result()
                recording = None
    finally:
        if recording is not None:
            recording.close()


class _Recording:
    """The results of a recording's windows, one after the other.

    Features of an hour are gigabytes, so that they lie on the disk then, in files without a name.
    """

    def __init__(self) -> None:
        self._windows: list[FileResult] = []  # without their features
        self._frames: dict[str, _Frames] = {}
        self._error: FileResult | None = None

    def add(self, window: FileResult) -> None:
        """The next window; behind one with an error the others do not count."""
        if self._error is not None:
            return
        if window.error is not None:
            self._error = window
        else:
            try:
                self._add(window)
            except OSError as error:
                self._error = _no_room(window.path, error)
        if self._error is not None:
            self.close()

    def _add(self, window: FileResult) -> None:
        for name in ("last_hidden", "hidden_states", "pooled"):
            array = getattr(window, name)
            if array is not None:
                if name not in self._frames:
                    self._frames[name] = _Frames()
                self._frames[name].append(array)
        none = {"last_hidden": None, "hidden_states": None, "pooled": None}
        self._windows.append(window._replace(**none))

    def close(self) -> None:
        """Gives up what lies on the disk."""
        for frames in self._frames.values():
            if frames.file is not None:
                frames.file.close()

    def result(self) -> FileResult:
        """The recording; arrays of its frames are mapped from the disk."""
        if self._error is not None:
            return self._error
        windows = self._windows
        layers = [w.frame_exit_layer for w in windows if w.frame_exit_layer is not None]
        deepest = max(windows, key=lambda window: window.exit_layer)
        try:
            arrays = {name: frames.array() for name, frames in self._frames.items()}
        except OSError as error:
            self.close()
            return _no_room(deepest.path, error)
        return deepest._replace(
            seconds=windows[-1].windows[-1].start + windows[-1].seconds,
            num_frames=sum(window.num_frames for window in windows),
            frame_exit_layer=np.concatenate(layers),
            windows=tuple(part for window in windows for part in window.windows),
            **arrays,
        )


def _no_room(path: str, error: OSError) -> FileResult:
    """What becomes of a file whose features could not be written."""
    where = tempfile.gettempdir()
    text = f"{path}: its features could not be kept in {where} ({error.strerror}); set TMPDIR"
    return FileResult(path, text)


class _Frames:
    """Arrays [..., frames, dim], joined along their frames; in a file, once they are large."""

    def __init__(self) -> None:
        self.file: io.FileIO | None = None
        self._held: list[Shaped[np.ndarray, "frames ..."]] = []
        self._count = self._bytes = 0

    def append(self, array: Shaped[np.ndarray, "*items frames dim"]) -> None:
        """One more, behind the others."""
        self._held.append(np.moveaxis(array, -2, 0))
        self._count += array.shape[-2]
        self._bytes += array.nbytes
        if self._bytes > HELD:
            if self.file is None:
                # Without a buffer, which could not be given up on a full disk.
                self.file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
            for frames in self._held:
                rest = memoryview(frames.tobytes())
                while rest:
                    rest = rest[self.file.write(rest) :]
            self._shape, self._dtype = self._held[0].shape[1:], array.dtype
            self._held = []

    def array(self) -> Shaped[np.ndarray, "*items frames dim"]:
        """All of them; what is mapped from the disk stays there as long as the array lives."""
        if self.file is None:
            joined = np.concatenate(self._held)
        else:
            shape = (self._count, *self._shape)
            with self.file as file:
                joined = np.memmap(file, self._dtype, "r+", shape=shape)
        return np.moveaxis(joined, 0, -2)
