"""Noise into speech at a signal-to-noise ratio, and the active level of speech (ITU-T P.56)."""

import math
from typing import Literal

import numpy as np

from daisy_jax import audio
from daisy_jax.data.corpus import Corpus, Waveform

SpeechLevel = Literal["mean", "active"]


def mix(speech: Waveform, noise: Waveform, snr: float, level: SpeechLevel = "mean") -> Waveform:
    """Adds noise to speech at a signal-to-noise ratio: the ratio of the powers, in dB.

    The speech's power is the "mean" over the whole utterance, or "active", where somebody speaks
    (ITU-T P.56); of the noise it is always the mean. The sum is float32 and not scaled, so that it
    may exceed full scale. Silent noise or silent speech leaves the speech as it is.
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


def cut_noise(noises: Corpus, index: int, offset: int, samples: int) -> Waveform:
    """Float32, a recording from `offset` on, looped if it ends too early."""
    length = int(noises.lengths[index])
    if offset + samples <= length:
        return noises.read(index, offset, samples)
    recording = noises.read(index, 0, length)
    return np.take(recording, np.arange(offset, offset + samples), mode="wrap")


def draw_noise(noises: Corpus, samples: int, rng: np.random.Generator) -> Waveform:
    """Float32, a random recording from a random offset on, looped if too short."""
    index = int(rng.integers(len(noises.names)))
    offset = int(rng.integers(last_offset(int(noises.lengths[index]), samples) + 1))
    return cut_noise(noises, index, offset, samples)


TIME_CONSTANT = 0.03
"""Seconds, of the two smoothing stages of the envelope."""
HANGOVER = 0.2
"""Seconds that still count as speech after the envelope has fallen below a threshold."""
MARGIN = 15.9
"""dB between the active level and the threshold of activity."""


def active_power(speech: Waveform) -> float:
    """Mean power over the active part of an utterance; at least the mean power, 0 for silence.

    Pauses between words count as speech, silence before and after does not: what ITU-T P.56 calls
    the active speech level is ten times this number's logarithm.

    Source: ITU-T P.56 (method B), with thresholds from 2**-15 to 1/2.
    """
    from scipy.signal import lfilter

    speech = np.asarray(speech, np.float64)
    energy = float(np.sum(speech * speech))
    if energy == 0:
        return 0.0
    decay = math.exp(-1 / (audio.SAMPLE_RATE * TIME_CONSTANT))
    envelope = np.abs(speech)
    for _ in range(2):
        envelope = np.asarray(lfilter([1 - decay], [1, -decay], envelope))
    hangover = math.ceil(HANGOVER * audio.SAMPLE_RATE)
    positions = np.arange(len(speech))
    # A threshold c is met by the samples of at most `hangover` after the envelope was at c.
    levels, thresholds = [], []
    for exponent in range(-15, 0):
        above = np.where(envelope >= 2.0**exponent, positions, -hangover - 1)
        active = int(np.sum(positions - np.maximum.accumulate(above) <= hangover))
        if not active:
            break
        levels.append(10 * math.log10(energy / active))
        thresholds.append(20 * math.log10(2.0**exponent))
    # The level grows with the threshold, more slowly than the threshold does: where their distance
    # is the margin, the threshold parts speech from silence.
    distance = np.subtract(levels, thresholds)
    if not len(distance) or distance[0] <= MARGIN:
        return energy / len(speech)
    if distance[-1] >= MARGIN:
        return 10 ** (levels[-1] / 10)
    level = float(np.interp(-MARGIN, -distance, levels))
    return 10 ** (level / 10)
