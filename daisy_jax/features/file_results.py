"""What `encode_files` says of a file, and how the windows of a long one become it."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped


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
    """One file's features, or why there are none. Arrays are numpy, without padding."""

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
    windows: list[FileResult] = []
    for result, is_last in results:
        if not windows or windows[0].error is None:
            windows = [result] if result.error is not None else [*windows, result]
        if is_last:
            yield windows[0] if len(windows) == 1 else _recording(windows)
            windows = []


def _recording(windows: list[FileResult]) -> FileResult:
    """One recording, of several windows."""

    def one(name: str, axis: int = 0) -> Shaped[np.ndarray, "..."] | None:
        parts = [getattr(window, name) for window in windows]
        return None if parts[0] is None else np.concatenate(parts, axis)

    deepest = max(windows, key=lambda window: window.exit_layer)
    return deepest._replace(
        seconds=windows[-1].windows[-1].start + windows[-1].seconds,
        num_frames=sum(window.num_frames for window in windows),
        last_hidden=one("last_hidden"),
        hidden_states=one("hidden_states", axis=1),
        pooled=one("pooled"),
        frame_exit_layer=one("frame_exit_layer"),
        windows=tuple(part for window in windows for part in window.windows),
    )
