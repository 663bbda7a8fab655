"""Mixing noise into speech."""

from typing import Literal

import numpy as np

from daisy_jax.data.corpus import Corpus
from daisy_jax.data.speech_level import active_power

SpeechLevel = Literal["mean", "active"]


def mix(
    speech: np.ndarray, noise: np.ndarray, snr: float, level: SpeechLevel = "mean"
) -> np.ndarray:
    """Adds noise to speech at a signal-to-noise ratio.

    Args:
      speech: float [samples], 16 kHz.
      noise: float [samples].
      snr: dB, the ratio of the powers.
      level: the speech's power: "mean", over the whole utterance, or "active", where somebody
        speaks (ITU-T P.56). Of the noise it is always the mean.

    Returns:
      float32 [samples]; not scaled, so that it may exceed full scale. Silent noise or silent speech
      leaves the speech as it is.
    """
    # In float64 the sums are exact for 16-bit samples, so that no machine adds them differently.
    noise_power = np.mean(np.square(noise, dtype=np.float64))
    speech_power = np.mean(np.square(speech, dtype=np.float64))
    if not (speech_power > 0 and noise_power > 0):
        return speech
    if level == "active":
        speech_power = active_power(speech)
    gain = np.sqrt(speech_power / noise_power / 10 ** (snr / 10))
    return (speech + gain * noise).astype(np.float32)


def last_offset(length: int, samples: int) -> int:
    """Where a cut of `samples` samples may begin at the latest.

    A longer recording is never looped, a shorter one is, from anywhere in it.
    """
    return length - samples if length > samples else length - 1


def cut_noise(noises: Corpus, index: int, offset: int, samples: int) -> np.ndarray:
    """Float32 [samples] of a recording from `offset` on, looped if it ends too early."""
    length = int(noises.lengths[index])
    if offset + samples <= length:
        return noises.read(index, offset, samples)
    recording = noises.read(index, 0, length)
    return np.take(recording, np.arange(offset, offset + samples), mode="wrap")


def draw_noise(noises: Corpus, samples: int, rng: np.random.Generator) -> np.ndarray:
    """Float32 [samples] of a random recording from a random offset on, looped if too short."""
    index = int(rng.integers(len(noises.names)))
    offset = int(rng.integers(last_offset(int(noises.lengths[index]), samples) + 1))
    return cut_noise(noises, index, offset, samples)
