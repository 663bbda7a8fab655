"""Measures of the downstream tasks, each utterance by itself, and intervals for their means."""

import functools
import importlib.util
import itertools
import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Real

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
    counts = jiwer.process_words(reference, hypothesis)
    return counts.substitutions + counts.deletions + counts.insertions, words


LOWEST_PESQ, HIGHEST_PESQ = (
    0.999 + 4 / (1 + math.exp(-1.3669 * raw + 3.8224)) for raw in (-0.5, 4.5)
)
"""P.862.2's map of the lowest raw score, which silence gets, and of the highest."""


def wideband_pesq(
    clean: Float[np.ndarray, " samples"], estimate: Float[np.ndarray, " samples"]
) -> float:
    """PESQ of ITU-T P.862.2 at 16 kHz, about 1 to 4.64.

    NaN where its reference code finds no speech; NaN, and a warning once, if the package `pesq` is
    not there: pip builds it with a C compiler.
    """
    say_if_no_pesq()
    try:
        import pesq
    except ModuleNotFoundError:
        return float("nan")
    if not np.any(estimate):
        return LOWEST_PESQ  # its reference code divides by the loudness
    try:
        return float(pesq.pesq(audio.SAMPLE_RATE, clean, estimate, "wb"))
    except (pesq.NoUtterancesError, pesq.BufferTooShortError):
        return float("nan")


@functools.cache
def say_if_no_pesq() -> None:
    """Warns, once, where PESQ cannot be measured."""
    if importlib.util.find_spec("pesq") is None:
        logger.warning(
            "PESQ is left out: the package pesq is not installed; pip install pesq, which needs a "
            "C compiler such as gcc"
        )


def short_time_intelligibility(
    clean: Float[np.ndarray, " samples"], estimate: Float[np.ndarray, " samples"]
) -> float:
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
    estimates: Float[np.ndarray, "sources samples"],
    sources: Float[np.ndarray, "sources samples"],
    mixture: Float[np.ndarray, " samples"],
) -> tuple[float, float]:
    """Scale-invariant SDR over that of the mixture, in the best order of the estimates.

    Returns:
      Means over the sources, dB: the improvement, and the SI-SDR itself.
    """
    scores = si_sdr(estimates[:, None], sources[None])
    orders = itertools.permutations(range(len(sources)))
    reached = max(float(np.mean([scores[e, s] for s, e in enumerate(order)])) for order in orders)
    return reached - float(np.mean(si_sdr(mixture[None], sources))), reached


def si_sdr(
    estimate: Float[np.ndarray, "*#rows samples"], target: Float[np.ndarray, "*#rows samples"]
) -> Float[np.ndarray, "..."]:
    """Scale-invariant signal-to-distortion ratio, without removal of the mean.

    Returns:
      One for each row, float64, dB, between -80 and 80: silence and equal signals have a value,
      too.

    Source: Le Roux et al. 2019.
    """
    estimate, target = np.asarray(estimate, np.float64), np.asarray(target, np.float64)
    power = np.sum(target * target, axis=-1, keepdims=True)
    scale = np.sum(estimate * target, axis=-1, keepdims=True) / np.maximum(power, 1e-30)
    signal = np.sum((scale * target) ** 2, axis=-1)
    distortion = np.sum((estimate - scale * target) ** 2, axis=-1)
    floor = 1e-8 * np.sum(estimate * estimate, axis=-1) + 1e-20
    return np.asarray(10 * np.log10((signal + floor) / (distortion + floor)))


RESAMPLES = 1000


class Estimate(NamedTuple):
    """A value and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def resampled(
    count: int,
    statistic: Callable[[Int[np.ndarray, " utterances"]], float | Float[np.ndarray, "..."]],
    rng: np.random.Generator | None = None,
) -> Float[np.ndarray, "resamples ..."]:
    """A bootstrap: a statistic of as many utterances as there are, drawn with replacement.

    Args:
      count: how many utterances there are.
      statistic: of the utterances with these numbers.
      rng: where the draws come from; None: they are always the same, so that two statistics of the
        same utterances can be compared in pairs.
    """
    rng = np.random.default_rng(0) if rng is None else rng
    return np.asarray([statistic(rng.integers(count, size=count)) for _ in range(RESAMPLES)])


def interval(values: Float[np.ndarray, " resamples"]) -> tuple[float, float]:
    """The ends of the interval in which 95 % of the values lie; NaN if all are NaN."""
    if not np.isfinite(values).any():
        return float("nan"), float("nan")
    low, high = np.nanquantile(values, [0.025, 0.975])
    return float(low), float(high)


def quotient(
    totals: Real[np.ndarray, "utterances *columns"],
    weights: Real[np.ndarray, "utterances *columns"],
) -> Float[np.ndarray, "*columns"]:
    """Sum of totals, such as word errors, over sum of weights, such as words; NaN without weight.

    Weights of 1 make it a plain mean.
    """
    over = np.sum(weights, axis=0)
    nothing = np.full(np.shape(over), np.nan)
    return np.divide(np.sum(totals, axis=0), over, out=nothing, where=over > 0)


Sums = tuple[Real[np.ndarray, " utterances"], Real[np.ndarray, " utterances"]]
"""Totals and weights, as `quotient` takes them."""


def bootstrap_interval(sums: Sums) -> tuple[float, float]:
    """An interval for the quotient by drawing utterances with replacement; NaN without any."""
    totals, weights = sums
    if not len(totals):
        return float("nan"), float("nan")
    return interval(resampled(len(totals), lambda drawn: quotient(totals[drawn], weights[drawn])))


def paired_interval(ours: Sums, theirs: Sums) -> tuple[float, float]:
    """An interval for the difference of two quotients of the same utterances, drawn together."""

    def apart(drawn: Int[np.ndarray, " utterances"]) -> Float[np.ndarray, ""]:
        first, second = (
            quotient(totals[drawn], weights[drawn]) for totals, weights in (ours, theirs)
        )
        return np.asarray(first - second)

    return interval(resampled(len(ours[0]), apart))
