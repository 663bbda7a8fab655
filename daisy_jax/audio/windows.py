"""Windows: parts of a long recording, cut on the grid of its frames, with audio on both sides."""

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from daisy_jax.audio.units import (
    FRAME_HOP,
    FRAME_WINDOW,
    SAMPLE_RATE,
    WIDTHS,
    frame_count,
)
from daisy_jax.errors import InputError


class Cut(NamedTuple):
    """How recordings are cut: frames of a window, and of the context on each of its sides."""

    frames: int
    context: int

    @property
    def seen(self) -> int:
        """Frames that the model sees at once: a window with both contexts."""
        return self.frames + 2 * self.context

    @property
    def samples(self) -> int:
        """Samples that the model sees at once."""
        return (self.seen - 1) * FRAME_HOP + FRAME_WINDOW

    @property
    def widths(self) -> tuple[int, ...]:
        """Those of batches: one more than `WIDTHS`, for parts of long recordings."""
        return tuple(sorted({*WIDTHS, self.samples}))


class Window(NamedTuple):
    """Where a window lies in its recording, and what the model sees of it."""

    start: int
    """The sample, on the grid of frames, with which the model's part begins."""
    stop: int
    """The sample behind it."""
    frames: range
    """The window's own frames, counted in the recording."""
    end: int
    """The sample with which the window itself ends: the recording's end, of its last."""
    is_last: bool

    @property
    def kept(self) -> slice:
        """The window's own frames, counted in the model's part."""
        first = self.start // FRAME_HOP
        return slice(self.frames.start - first, self.frames.stop - first)

    @property
    def is_whole(self) -> bool:
        """Whether it is all of its recording."""
        return self.is_last and not self.frames.start

    @property
    def start_seconds(self) -> float:
        """Where the window itself begins."""
        return self.frames.start * FRAME_HOP / SAMPLE_RATE

    @property
    def seconds(self) -> float:
        """Its duration, without the context."""
        return (self.end - self.frames.start * FRAME_HOP) / SAMPLE_RATE


WHOLE = Cut(1 << 40, 0)
"""One window, however long the recording is."""


def cut_of(window_seconds: float, context_seconds: float, max_seconds: float = math.inf) -> Cut:
    """Windows of so many seconds, to the nearest frame (20 ms), at least one.

    Raises:
      InputError: a number below zero, or no number, or more than `max_seconds` at once.
    """
    per_second = SAMPLE_RATE / FRAME_HOP
    if not 0 < window_seconds < np.inf:
        raise InputError(f"a window of {window_seconds:g} s: give seconds above 0 (--window)")
    if not 0 <= context_seconds < np.inf:
        raise InputError(f"a context of {context_seconds:g} s: give at least 0 (--context)")
    if window_seconds + 2 * context_seconds > max_seconds:
        raise InputError(
            f"a window of {window_seconds:g} s with {context_seconds:g} s of context on each side "
            f"is longer than the {max_seconds:g} s of max_seconds (--max-seconds); give less"
        )
    return Cut(max(1, round(window_seconds * per_second)), round(context_seconds * per_second))


def windows_of(samples: int, cut: Cut) -> list[Window]:
    """The windows of a recording of so many samples.

    Recordings of up to one window are one. Of others the model sees parts of one length, as far as
    the recording has it: in the first and the last there is more context on the other side. The
    samples behind the last frame (fewer than 320) are seen only where nothing is cut.
    """
    windows = [_window(0, samples, cut, ended=True)]
    while not windows[-1].is_last:
        windows.append(_window(windows[-1].frames.stop, samples, cut, ended=True))
    return windows


def _window(first: int, samples: int, cut: Cut, ended: bool) -> Window:
    """The window that begins with the frame `first`; of `samples`, or of more unless `ended`."""
    total = frame_count(samples)
    if not first and total <= cut.frames:
        return Window(0, samples, range(total), samples, is_last=True)
    own = range(first, min(first + cut.frames, total))
    begin = max(0, min(first - cut.context, total - cut.seen))
    stop = (min(begin + cut.seen, total) - 1) * FRAME_HOP + FRAME_WINDOW
    if ended and own.stop == total:
        return Window(begin * FRAME_HOP, stop, own, samples, is_last=True)
    return Window(begin * FRAME_HOP, stop, own, own.stop * FRAME_HOP, is_last=False)


def cut_stream(
    blocks: Iterable[Float[np.ndarray, " _"]], cut: Cut
) -> Iterator[tuple[Window, Float[np.ndarray, " samples"]]]:
    """The windows of `windows_of`, each with what the model sees, of a recording in blocks.

    No more is held than what the model sees at once, and a block.
    """
    # A frame behind those of a window shows that it is not the last. The last one may begin earlier
    # than its context, so that more is kept than the next one would need.
    coming = iter(blocks)
    held, start, first, ended = np.zeros(0, np.float32), 0, 0, False  # `start`: of what is held
    while True:
        wanted = max(first + cut.frames + cut.context, cut.seen) + 1
        joined, samples = [held], start + len(held)
        while not ended and frame_count(samples) < wanted:
            block = next(coming, None)
            ended = block is None
            if block is not None:
                joined.append(block)
                samples += len(block)
        held = np.concatenate(joined)
        window = _window(first, samples, cut, ended)
        yield window, held[window.start - start : window.stop - start].copy()
        if window.is_last:
            return
        first = window.frames.stop
        kept = max(0, first - cut.seen) * FRAME_HOP
        held, start = held[kept - start :], kept
