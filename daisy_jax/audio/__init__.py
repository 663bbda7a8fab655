"""Units of audio and of frames, reading of sound files, and waveforms in memory."""

from daisy_jax.audio.libsndfile import libsndfile
from daisy_jax.audio.loading import Stream, load, load_part, measured, stream
from daisy_jax.audio.media import require_media
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
from daisy_jax.audio.windows import WHOLE, Cut, Window, cut_of, cut_stream, windows_of

__all__ = [
    "CONV_KERNELS",
    "CONV_STRIDES",
    "FRAME_HOP",
    "FRAME_WINDOW",
    "FULL_SCALE",
    "SAMPLE_RATE",
    "WHOLE",
    "WIDTHS",
    "Cut",
    "Stream",
    "Window",
    "as_int16",
    "batch_of_one",
    "cut_of",
    "cut_stream",
    "frame_count",
    "libsndfile",
    "load",
    "load_part",
    "measured",
    "pad_batch",
    "padded_width",
    "require_media",
    "stream",
    "windows_of",
]
