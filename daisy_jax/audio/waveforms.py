"""Waveforms in memory: as integers, and stacked into batches."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from daisy_jax.audio.units import FULL_SCALE, SAMPLE_RATE
from daisy_jax.errors import InputError


def as_int16(waveform: Float[np.ndarray, " samples"]) -> Int[np.ndarray, " samples"]:
    """Int16 samples of a float waveform; what exceeds full scale is clipped."""
    scaled = np.round(waveform * FULL_SCALE)
    return np.clip(scaled, -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)


def batch_of_one(
    waveform: Float[np.ndarray, " samples"],
) -> tuple[Float[np.ndarray, "1 width"], Int[np.ndarray, " 1"]]:
    """One waveform as a batch: waveform float32 and lengths int32.

    Padded to whole seconds, so that utterances of many lengths share few compiled shapes.
    """
    seconds = -(-len(waveform) // SAMPLE_RATE)
    return pad_batch([waveform], seconds * SAMPLE_RATE)


def pad_batch(
    waveforms: Sequence[Float[np.ndarray, " _"]],
    samples: int | None = None,
    rows: int | None = None,
) -> tuple[Float[np.ndarray, "rows samples"], Int[np.ndarray, " rows"]]:
    """Stacks waveforms of different length, with zeros behind each.

    Args:
      waveforms: one after the other.
      samples: width of the result; None: the longest waveform's.
      rows: height of the result, filled up with empty rows of length 0; None: no extra rows.

    Returns:
      waveform float32 and lengths int32.
    """
    longest = max((len(waveform) for waveform in waveforms), default=0)
    samples = longest if samples is None else samples
    rows = len(waveforms) if rows is None else rows
    if longest > samples or len(waveforms) > rows:
        raise InputError(
            f"{len(waveforms)} waveforms of up to {longest} samples do not fit into "
            f"[{rows}, {samples}]; widen the batch"
        )
    batch = np.zeros((rows, samples), np.float32)
    lengths = np.zeros(rows, np.int32)
    for row, waveform in enumerate(waveforms):
        batch[row, : len(waveform)] = waveform
        lengths[row] = len(waveform)
    return batch, lengths
