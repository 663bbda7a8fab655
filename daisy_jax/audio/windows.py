"""Windows: parts of a long recording, cut on the grid of its frames, with audio on both sides."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from daisy_jax.audio.units import FRAME_HOP, FRAME_WINDOW, SAMPLE_RATE, frame_count
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


class Piece(NamedTuple):
    """One window of a recording, and the audio around it."""

    waveform: Float[np.ndarray, " samples"]
    """float32, 16 kHz, with the context."""
    start: int
    """The recording's frame with which the waveform begins."""
    frames: range
    """The window's own frames, counted in the recording."""
    is_last: bool

    @property
    def kept(self) -> slice:
        """The window's own frames, counted in the waveform."""
        return slice(self.frames.start - self.start, self.frames.stop - self.start)


def cut_of(window_seconds: float, context_seconds: float) -> Cut:
    """Windows of so many seconds, to the nearest frame (20 ms), at least one.

    Raises:
      InputError: a number below zero, or no number.
    """
    per_second = SAMPLE_RATE / FRAME_HOP
    if not 0 < window_seconds < np.inf:
        raise InputError(f"a window of {window_seconds:g} s: give seconds above 0 (--window)")
    if not 0 <= context_seconds < np.inf:
        raise InputError(f"a context of {context_seconds:g} s: give at least 0 (--context)")
    return Cut(max(1, round(window_seconds * per_second)), round(context_seconds * per_second))


def pieces_of(samples: int, cut: Cut) -> list[tuple[int, int, range]]:
    """Where a recording of so many samples is cut: start and stop in samples, and own frames.

    Recordings of up to one window are one piece. Of others every piece has the same length, as far
    as the recording has it: the first and the last have more context on their other side. The last
    one reaches to the last sample.
    """
    total = frame_count(samples)
    if total <= cut.frames:
        return [(0, samples, range(total))]
    pieces = []
    for first in range(0, total, cut.frames):
        own = range(first, min(first + cut.frames, total))
        start = max(0, min(first - cut.context, total - cut.seen))
        stop = min(start + cut.seen, total)
        end = samples if stop == total else (stop - 1) * FRAME_HOP + FRAME_WINDOW
        pieces.append((start * FRAME_HOP, end, own))
    return pieces


def pieces(blocks: Iterable[Float[np.ndarray, " _"]], cut: Cut) -> Iterator[Piece]:
    """The pieces of `pieces_of`, from a recording that comes in blocks and of unknown length.

    No more is held than what the model sees at once, and a block. A recording without a single
    frame is one empty piece.
    """
    # A frame behind those of a piece shows that it is not the last. The last one may begin earlier
    # than its context, so that more is kept than the next piece would need.
    coming = iter(blocks)
    held, first, start, ended = np.zeros(0, np.float32), 0, 0, False  # `start`: of what is held
    while True:
        wanted = max(first + cut.frames + cut.context, cut.seen) + 1
        while not ended and frame_count(len(held)) < wanted - start:
            block = next(coming, None)
            ended = block is None
            held = held if block is None else np.concatenate([held, block])
        total = start + frame_count(len(held))  # or at least so many
        if not first and total <= cut.frames:
            yield Piece(held, 0, range(total), is_last=True)
            return
        own = range(first, min(first + cut.frames, total))
        begin = max(0, min(first - cut.context, total - cut.seen))
        stop = min(begin + cut.seen, total)
        last = ended and own.stop == total
        end = (
            len(held) if ended and stop == total else (stop - 1 - start) * FRAME_HOP + FRAME_WINDOW
        )
        yield Piece(held[(begin - start) * FRAME_HOP : end].copy(), begin, own, last)
        if last:
            return
        first = own.stop
        keep = max(0, first - cut.seen)
        held, start = held[(keep - start) * FRAME_HOP :], keep
