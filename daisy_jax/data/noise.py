"""Mixing noise into speech."""

import numpy as np

from daisy_jax.data.corpus import Corpus


def mix(speech: np.ndarray, noise: np.ndarray, snr: float) -> np.ndarray:
    """Adds noise to speech at a signal-to-noise ratio.

    Args:
      speech: float [samples].
      noise: float [samples].
      snr: dB, the ratio of the mean powers over the whole utterance.

    Returns:
      float32 [samples]; not scaled, so that it may exceed full scale. Silent noise or silent speech
      leaves the speech as it is.
    """
    speech_power, noise_power = np.mean(speech**2), np.mean(noise**2)
    if not (speech_power > 0 and noise_power > 0):
        return speech
    gain = np.sqrt(speech_power / noise_power / 10 ** (snr / 10))
    return (speech + gain * noise).astype(np.float32)


def draw_noise(noises: Corpus, samples: int, rng: np.random.Generator) -> np.ndarray:
    """Float32 [samples] of a random recording from a random offset on, looped if too short."""
    index = int(rng.integers(len(noises.names)))
    length = int(noises.lengths[index])
    offset = int(rng.integers(length))
    recording = noises.read(index, 0, length)
    return np.take(recording, np.arange(offset, offset + samples), mode="wrap")
