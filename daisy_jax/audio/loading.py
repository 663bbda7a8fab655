"""Sound files as the model wants them: float32, one channel at 16 kHz, full scale is 1."""

import contextlib
import math
import os
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from daisy_jax.audio.media import MediaSound
from daisy_jax.audio.sound_file import Sound, opened
from daisy_jax.audio.units import FRAME_WINDOW, SAMPLE_RATE
from daisy_jax.errors import InputError

LEAST_RATE = 1_000
"""Hz. A header may claim less, and a small file would then be resampled to many gigabytes."""
LOUDEST = 1e12
"""Times full scale: far above any recording, and its energy still far from float32's end."""


class Stream(NamedTuple):
    """A file's audio, ready for the model, as it is decoded."""

    blocks: Iterator[Float[np.ndarray, " samples"]]
    """float32, one channel at 16 kHz, full scale is 1; one after the other. Raises an InputError
    where the file turns out to be cut off, too long, too short, or no sound."""
    notes: tuple[str, ...]
    """What is changed, for example "mixed down to one channel"."""


def load(path: str | os.PathLike) -> Float[np.ndarray, " samples"]:
    """Reads a sound file as float32, one channel at 16 kHz, full scale is +-1.

    Every format of libsndfile: WAV, FLAC, OGG, MP3 and more; with the extra media also those of
    FFmpeg: M4A and other AAC, WebM, the sound of films. It is decoded to its end, whatever its
    header says of its length. Integer samples are scaled, several channels averaged, other rates
    resampled.

    Raises:
      InputError: the file is not audio, is empty, cut off, several files in one, shorter than 400
        samples (25 ms), or holds samples that are no numbers or far too loud. One line that names
        the file.
      OSError: the file cannot be opened.
    """
    with stream(path) as (blocks, _):
        return np.concatenate(list(blocks))


@contextlib.contextmanager
def stream(path: str | os.PathLike, max_seconds: float = math.inf) -> Iterator[Stream]:
    """`load`, block by block, so that memory does not follow the file's length.

    Raises as `load` does, at the latest behind the last block; and for a file longer than
    `max_seconds` before more of it is read.
    """
    path = pathlib.Path(path)
    with opened(path) as sound:
        notes = []
        if sound.channels > 1:
            notes.append("mixed down to one channel")
        if sound.rate != SAMPLE_RATE:
            notes.append(f"resampled to {SAMPLE_RATE} Hz")
        if sound.subtype.startswith("PCM") and sound.subtype != "PCM_16":
            notes.append("integer samples scaled to +-1")
        yield Stream(_blocks(path, sound, max_seconds), tuple(notes))


def _blocks(
    path: pathlib.Path, sound: Sound | MediaSound, max_seconds: float = math.inf
) -> Iterator[Float[np.ndarray, " samples"]]:
    """The blocks of a `Stream`, of an open file; at least one."""
    rate = sound.rate
    _refuse_rate(path, rate)
    _refuse_longer(path, sound.frames or 0, rate, max_seconds)
    resampler = None
    if rate != SAMPLE_RATE:
        import soxr

        resampler = soxr.ResampleStream(rate, SAMPLE_RATE, num_channels=1, dtype="float32")
    decoded = samples = 0
    for block in sound.blocks():
        decoded += len(block)
        _refuse_longer(path, decoded, rate, max_seconds)
        waveform = block.mean(axis=1)
        _refuse_no_numbers(path, waveform)
        if resampler is not None:
            waveform = resampler.resample_chunk(waveform)
        samples += len(waveform)
        yield waveform
    sound.refuse_joined()
    if resampler is not None:
        waveform = resampler.resample_chunk(np.zeros(0, np.float32), last=True)
        samples += len(waveform)
        yield waveform
    if samples < FRAME_WINDOW:
        raise InputError(
            f"{path}: {samples} samples at {SAMPLE_RATE} Hz; HuBERT needs at least "
            f"{FRAME_WINDOW} (25 ms)"
        )


def load_part(
    path: str | os.PathLike, start: int, samples: int, rate: int
) -> Float[np.ndarray, " part"]:
    """So many samples of a file at 16 kHz from `start` on; fewer where it ends.

    Args:
      path: the file.
      start: samples at 16 kHz before it.
      samples: how many are wanted.
      rate: the file's sampling rate, from `measured`: at 16 kHz only the part is decoded, if the
        format can do that.

    Raises as `load` does.
    """
    path = pathlib.Path(path)
    with opened(path) as sound:
        if rate == SAMPLE_RATE and isinstance(sound, Sound) and sound.seeks:
            waveform = sound.part(start, samples).mean(axis=1)
            _refuse_no_numbers(path, waveform)
            return waveform
        return np.concatenate(list(_blocks(path, sound)))[start : start + samples]


def measured(path: str | os.PathLike) -> tuple[int, int]:
    """A file's samples at 16 kHz, and its own sampling rate in Hz.

    As its header says, or counted where a header says nothing that can be relied on.

    Raises as `load` does, as far as the header tells.
    """
    path = pathlib.Path(path)
    with opened(path) as sound:
        frames = sound.frames
        if frames is None:
            frames = sum(map(len, sound.blocks()))
        _refuse_rate(path, sound.rate)
        samples = _resampled_length(frames, sound.rate)
        if samples < FRAME_WINDOW:
            raise InputError(f"{path}: shorter than {FRAME_WINDOW} samples (25 ms)")
        return samples, sound.rate


def _refuse_longer(path: pathlib.Path, samples: int, rate: int, max_seconds: float) -> None:
    if samples > max_seconds * rate:
        raise InputError(
            f"{path}: {samples / rate:.1f} s long; encode it in windows (window_seconds, "
            f"--window), or allow more than {max_seconds:g} s with max_seconds (--max-seconds)"
        )


def _refuse_no_numbers(path: pathlib.Path, waveform: Float[np.ndarray, " samples"]) -> None:
    if not np.isfinite(waveform).all():
        bad = int(np.count_nonzero(~np.isfinite(waveform)))
        raise InputError(f"{path}: {bad} samples are NaN or infinite; repair the file")
    loudest = max(waveform.max(), -waveform.min()) if len(waveform) else 0
    if loudest > LOUDEST:
        raise InputError(
            f"{path}: samples of up to {loudest:.1e} times full scale; repair the file"
        )


def _refuse_rate(path: pathlib.Path, rate: int) -> None:
    if rate < LEAST_RATE:
        raise InputError(
            f"{path}: {rate} samples a second, of which no speech can be made; repair the file, or "
            "record it again"
        )


def _resampled_length(frames: int, rate: int) -> int:
    """Samples that soxr makes of so many: to the nearest, halves up."""
    return (2 * frames * SAMPLE_RATE + rate) // (2 * rate)
