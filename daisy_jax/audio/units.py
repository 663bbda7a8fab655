"""Units of audio and of frames."""

from collections.abc import Sequence
from typing import overload

import jax
import numpy as np

SAMPLE_RATE = 16_000  # Hz
CONV_KERNELS = (10, 3, 3, 3, 3, 2, 2)
CONV_STRIDES = (5, 2, 2, 2, 2, 2, 2)
FULL_SCALE = 32_768  # the 16-bit sample that would be 1
FRAME_HOP = 320  # samples between two frames, 20 ms: the product of the strides
FRAME_WINDOW = 400  # samples that one frame sees, 25 ms; shorter audio has no frame

# Each width is compiled once, which takes far longer than computing a batch, so that there are few;
# they stand close together where LibriSpeech's lengths do, so that little is padding.
WIDTHS = tuple(
    round(SAMPLE_RATE * seconds)
    for seconds in (0.5, 1.2, 4, 7, 10, 13, 14.8, 16, 17.6, 24.6, 36, 60)
)
"""Samples of a batch's rows: each is compiled once. Lengths like those of LibriSpeech's training
sets fall into eight of them, and padding is a tenth."""


def padded_width(samples: int, widths: Sequence[int] = WIDTHS) -> int:
    """Width of the batch that `samples` go into: one of `widths`, or whole minutes."""
    minutes = -(-samples // WIDTHS[-1])
    return next((width for width in widths if samples <= width), minutes * WIDTHS[-1])


@overload
def frame_count(samples: int) -> int: ...
@overload
def frame_count(samples: np.ndarray) -> np.ndarray: ...
@overload
def frame_count(samples: jax.Array) -> jax.Array: ...
def frame_count(
    samples: int | np.integer | np.ndarray | jax.Array,
) -> int | np.integer | np.ndarray | jax.Array:
    """Frames of `samples` samples: an int, or an integer array (numpy or jax) element by element.

    0 below 400 samples, 49 for one second. Source: floor((n - kernel) / stride) + 1 through the
    seven convolutions, which equals (n - 400) // 320 + 1.
    """
    least = FRAME_WINDOW - FRAME_HOP  # subtracted last: unsigned integers must not fall below 0
    if isinstance(samples, int):
        return max(samples - least, 0) // FRAME_HOP
    return (samples.clip(least) - least) // FRAME_HOP
