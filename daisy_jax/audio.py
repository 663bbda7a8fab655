"""Units of audio and of frames, and reading of files."""

import math
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple, overload

import jax
import numpy as np
from jaxtyping import Float, Int

from daisy_jax.errors import InputError

SAMPLE_RATE = 16_000  # Hz
CONV_KERNELS = (10, 3, 3, 3, 3, 2, 2)
CONV_STRIDES = (5, 2, 2, 2, 2, 2, 2)
FULL_SCALE = 32_768  # the 16-bit sample that would be 1
FRAME_HOP = 320  # samples between two frames, 20 ms: the product of the strides
FRAME_WINDOW = 400  # samples that one frame sees, 25 ms; shorter audio has no frame
UNKNOWN_SIZE = 0x7FFF_F000  # bytes; programs that write WAV to a pipe promise so much or more

# Each width is compiled once, which takes far longer than computing a batch, so that there are few;
# they stand close together where LibriSpeech's lengths do, so that little is padding.
WIDTHS = tuple(
    round(SAMPLE_RATE * seconds)
    for seconds in (0.5, 1.2, 4, 7, 10, 13, 14.8, 16, 17.6, 24.6, 36, 60)
)
"""Samples of a batch's rows: each is compiled once. Lengths like those of LibriSpeech's training
sets fall into eight of them, and padding is a tenth."""


def padded_width(samples: int) -> int:
    """Width of the batch that `samples` go into: one of `WIDTHS`, or whole minutes."""
    minutes = -(-samples // WIDTHS[-1])
    return next((width for width in WIDTHS if samples <= width), minutes * WIDTHS[-1])


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


class Clip(NamedTuple):
    """A file's audio, ready for the model, and what had to be done to it."""

    waveform: Float[np.ndarray, " samples"]
    """float32, one channel at 16 kHz, full scale is 1."""
    notes: tuple[str, ...]
    """What was changed, for example "mixed down to one channel"."""


def load(path: str | os.PathLike) -> Float[np.ndarray, " samples"]:
    """Reads a sound file as float32, one channel at 16 kHz, full scale is +-1.

    Every format of libsndfile: WAV, FLAC, OGG, MP3 and more. Integer samples are scaled, several
    channels averaged, other rates resampled.

    Raises:
      InputError: the file is not audio, is empty, cut off, shorter than 400 samples (25 ms), or
        holds NaN or infinite samples. One line that names the file.
      OSError: the file cannot be opened.
    """
    return load_clip(path).waveform


def load_clip(path: str | os.PathLike, max_seconds: float = math.inf) -> Clip:
    """`load`, together with notes on what was done to the samples.

    Raises as `load` does, and for a file longer than `max_seconds` before it is read.
    """
    import soundfile

    path = pathlib.Path(path)
    if path.is_dir():
        raise InputError(f"{path}: is a folder, not a sound file; give sound files")
    with open(path, "rb") as stream:
        if not stream.read(1):
            raise InputError(f"{path}: the file is empty; record or copy it again")
    if path.suffix.lower() == ".raw":
        raise InputError(f"{path}: raw samples without a header; convert it to WAV or FLAC")
    try:
        with soundfile.SoundFile(soundfile_name(path)) as file:
            if file.frames > max_seconds * file.samplerate:
                raise InputError(
                    f"{path}: {file.frames / file.samplerate:.1f} s long; split it into parts of "
                    f"{max_seconds:g} s, or allow more with max_seconds (--max-seconds)"
                )
            # The number is for files that cannot seek, such as GSM's.
            samples = file.read(file.frames, dtype="float32", always_2d=True)
            rate, promised, subtype = file.samplerate, file.frames, file.subtype
            log = file.extra_info
    except soundfile.LibsndfileError as error:
        raise InputError(
            f"{path}: not readable as audio ({error.error_string.rstrip('.')}); "
            "copy it again, or convert it to WAV or FLAC"
        ) from error
    if len(samples) < promised or cut_off(log):
        raise InputError(f"{path}: the file is cut off; record or copy it again")

    notes = []
    if samples.shape[1] > 1:
        notes.append("mixed down to one channel")
    waveform = samples.mean(axis=1)
    if not np.isfinite(waveform).all():
        bad = int(np.count_nonzero(~np.isfinite(waveform)))
        raise InputError(f"{path}: {bad} samples are NaN or infinite; repair the file")
    if rate != SAMPLE_RATE:
        import soxr

        waveform = soxr.resample(waveform, rate, SAMPLE_RATE)
        notes.append(f"resampled to {SAMPLE_RATE} Hz")
    if subtype.startswith("PCM") and subtype != "PCM_16":
        notes.append("integer samples scaled to +-1")
    if len(waveform) < FRAME_WINDOW:
        raise InputError(
            f"{path}: {len(waveform)} samples at {SAMPLE_RATE} Hz; HuBERT needs at least "
            f"{FRAME_WINDOW} (25 ms)"
        )
    return Clip(np.ascontiguousarray(waveform, np.float32), tuple(notes))


def soundfile_name(path: pathlib.Path) -> Any:
    """A path as soundfile takes it: it cannot encode a name that is not UTF-8, so as bytes."""
    return os.fsencode(path) if os.name == "posix" else path


def cut_off(log: str) -> bool:
    """Whether a file ends too early: libsndfile serves the rest and says so in its log alone."""
    sizes = re.findall(
        r"^\s*(?:data|SSND|Data Size|riff|Riff size)\s*: (\d+) \(should be", log, re.MULTILINE
    )
    promised_more = any(int(size) < UNKNOWN_SIZE for size in sizes)
    return promised_more or "without an End-Of-Stream flag" in log


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
