"""Units of audio and of frames, reading of sound files, and waveforms in memory."""

from daisy_jax.audio.loading import Clip, load, load_clip, load_part, measured
from daisy_jax.audio.units import (
    CONV_KERNELS,
    CONV_STRIDES,
    FRAME_HOP,
    FRAME_WINDOW,
    FULL_SCALE,
    SAMPLE_RATE,
    WIDTHS,
    frame_count,
    padded_width,
)
from daisy_jax.audio.waveforms import as_int16, batch_of_one, pad_batch

__all__ = [
    "CONV_KERNELS",
    "CONV_STRIDES",
    "FRAME_HOP",
    "FRAME_WINDOW",
    "FULL_SCALE",
    "SAMPLE_RATE",
    "WIDTHS",
    "Clip",
    "as_int16",
    "batch_of_one",
    "frame_count",
    "load",
    "load_clip",
    "load_part",
    "measured",
    "pad_batch",
    "padded_width",
]
