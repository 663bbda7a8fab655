"""Active speech level: the power of speech where somebody speaks."""

import math

import numpy as np

from daisy_jax.audio import SAMPLE_RATE

TIME_CONSTANT = 0.03
"""Seconds, of the two smoothing stages of the envelope."""
HANGOVER = 0.2
"""Seconds that still count as speech after the envelope has fallen below a threshold."""
MARGIN = 15.9
"""dB between the active level and the threshold of activity."""


def active_power(speech: np.ndarray) -> float:
    """Mean power over the active part of an utterance.

    Pauses between words count as speech, silence before and after does not: what ITU-T P.56 calls
    the active speech level is ten times this number's logarithm.

    Args:
      speech: float [samples], 16 kHz, full scale is 1.

    Returns:
      The power, at least the mean power; 0 for silence.

    Source: ITU-T P.56 (method B), with thresholds from 2**-15 to 1/2.
    """
    from scipy.signal import lfilter

    speech = np.asarray(speech, np.float64)
    energy = float(np.sum(speech * speech))
    if energy == 0:
        return 0.0
    decay = math.exp(-1 / (SAMPLE_RATE * TIME_CONSTANT))
    envelope = np.abs(speech)
    for _ in range(2):
        envelope = np.asarray(lfilter([1 - decay], [1, -decay], envelope))
    hangover = math.ceil(HANGOVER * SAMPLE_RATE)
    places = np.arange(len(speech))
    # A threshold c is met by the samples of at most `hangover` after the envelope was at c.
    levels, thresholds = [], []
    for exponent in range(-15, 0):
        above = np.where(envelope >= 2.0**exponent, places, -hangover - 1)
        active = int(np.sum(places - np.maximum.accumulate(above) <= hangover))
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
