"""Measures of the downstream tasks, each utterance by itself, and intervals for their means."""

import functools
import itertools
import math
import warnings

import numpy as np

from daisy_jax import audio
from daisy_jax.reporting import logger


def word_errors(reference: str, hypothesis: str) -> tuple[int, int]:
    """Substitutions, deletions and insertions of words, and words of the reference.

    Their quotient, over a whole test set, is the word error rate.
    """
    import jiwer

    words = len(reference.split())
    if not words:  # jiwer's convention would hide how many words were inserted
        return len(hypothesis.split()), 0
    found = jiwer.process_words(reference, hypothesis)
    return found.substitutions + found.deletions + found.insertions, words


LOWEST_PESQ = 0.999 + 4 / (1 + math.exp(1.3669 * 0.5 + 3.8224))
"""P.862.2's map of the raw score -0.5: what an estimate gets that is silence."""


def wideband_pesq(clean: np.ndarray, estimate: np.ndarray) -> float:
    """PESQ of ITU-T P.862.2, about 1 to 4.64; NaN where its reference code finds no speech.

    Args:
      clean: float [samples], 16 kHz.
      estimate: float [samples].

    Returns:
      The score; NaN, and a warning once, if the package `pesq` is not there: pip builds it with a
      C compiler.
    """
    try:
        import pesq
    except ModuleNotFoundError:
        _say_no_pesq()
        return float("nan")
    if not np.any(estimate):
        return LOWEST_PESQ  # its reference code divides by the loudness
    try:
        return float(pesq.pesq(audio.SAMPLE_RATE, clean, estimate, "wb"))
    except (pesq.NoUtterancesError, pesq.BufferTooShortError):
        return float("nan")


@functools.cache
def _say_no_pesq() -> None:
    logger.warning(
        "PESQ is left out: the package pesq is not installed; pip install pesq, which needs a C "
        "compiler such as gcc"
    )


def short_time_intelligibility(clean: np.ndarray, estimate: np.ndarray) -> float:
    """STOI, between about 0 and 1; NaN below the 0.4 s of speech that it needs.

    Source: Taal et al. 2011. The paper's Table 1 gives it times 100.
    """
    import pystoi

    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        try:
            return float(pystoi.stoi(clean, estimate, audio.SAMPLE_RATE))
        except (RuntimeWarning, ValueError):
            return float("nan")


def si_sdr_improvement(
    estimates: np.ndarray, sources: np.ndarray, mixture: np.ndarray
) -> tuple[float, float]:
    """Scale-invariant SDR over that of the mixture, in the best order of the estimates.

    Args:
      estimates: float [sources, samples].
      sources: float [sources, samples].
      mixture: float [samples].

    Returns:
      means over the sources, dB: the improvement, and the SI-SDR itself.
    """
    scores = si_sdr(estimates[:, None], sources[None])
    orders = itertools.permutations(range(len(sources)))
    places = np.arange(len(sources))
    reached = max(float(np.mean(scores[list(order), places])) for order in orders)
    return reached - float(np.mean(si_sdr(mixture[None], sources))), reached


def si_sdr(estimate: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Scale-invariant signal-to-distortion ratio, without removal of the mean.

    Args:
      estimate: float [..., samples].
      target: float [..., samples].

    Returns:
      float64 [...], dB, between -80 and 80: silence and equal signals have a value, too.

    Source: Le Roux et al. 2019.
    """
    estimate, target = np.asarray(estimate, np.float64), np.asarray(target, np.float64)
    power = np.sum(target * target, axis=-1, keepdims=True)
    scale = np.sum(estimate * target, axis=-1, keepdims=True) / np.maximum(power, 1e-30)
    signal = np.sum((scale * target) ** 2, axis=-1)
    distortion = np.sum((estimate - scale * target) ** 2, axis=-1)
    floor = 1e-8 * np.sum(estimate * estimate, axis=-1) + 1e-20
    return 10 * np.log10((signal + floor) / (distortion + floor))


def paired_interval(
    ours: tuple[np.ndarray, np.ndarray], theirs: tuple[np.ndarray, np.ndarray], share: float = 0.95
) -> tuple[float, float]:
    """An interval for the difference of two values on the same utterances, drawn together.

    Args:
      ours: totals and weights, float [utterances], as `bootstrap_interval` takes them.
      theirs: those of the other, in the same order.
      share: of the resampled differences that lie inside.
    """
    count = len(ours[0])
    rng = np.random.default_rng(0)
    differences = []
    for _ in range(RESAMPLES):
        drawn = rng.integers(count, size=count)
        values = [
            totals[drawn].sum() / weights[drawn].sum() if weights[drawn].sum() else np.nan
            for totals, weights in (ours, theirs)
        ]
        differences.append(values[0] - values[1])
    return middle(np.asarray(differences), share)


RESAMPLES = 1000


def bootstrap_interval(
    totals: np.ndarray, weights: np.ndarray, share: float = 0.95, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """An interval for sum(totals) / sum(weights) by drawing utterances with replacement.

    Args:
      totals: float [utterances], such as word errors.
      weights: float [utterances], such as words; ones for a plain mean.
      share: of the resampled values that lie inside.
      resamples: how many; always the same draws.

    Returns:
      the ends of the interval (percentiles); NaN without an utterance.
    """
    count = len(totals)
    if not count:
        return float("nan"), float("nan")
    rng = np.random.default_rng(0)
    values = np.empty(resamples)
    for number in range(resamples):
        drawn = rng.integers(count, size=count)
        weight = weights[drawn].sum()
        values[number] = totals[drawn].sum() / weight if weight else np.nan
    return middle(values, share)


def middle(values: np.ndarray, share: float) -> tuple[float, float]:
    """The ends of the interval in which a share of the values lies; NaN if all are NaN."""
    if not np.isfinite(values).any():
        return float("nan"), float("nan")
    low, high = np.nanquantile(values, [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)
