"""Layers at which utterances may leave, from where they left in training: section 3.3."""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Int, Integer

from daisy_jax.errors import InputError
from daisy_jax.exits.rules import ExitRule
from daisy_jax.reporting import logger

Counts: TypeAlias = Int[np.ndarray, " layers"] | npt.ArrayLike
Span: TypeAlias = Bool[np.ndarray, " layers"]


def span_mean(exit_counts: Counts) -> Span:
    """Allows the one or two layers around the mean exit layer: floor(mean) and ceil(mean).

    Args:
      exit_counts: int [L], how many utterances left at layer 1, 2, ..., L in downstream training,
        forced exits included.

    Returns:
      bool [L], to be given to `encode` as `allowed`.

    Raises:
      InputError: nobody has left anywhere.

    Paper: section 3.3, "mean".
    """
    counts, layers = _counts(exit_counts)
    mean = float(np.sum(counts * layers) / np.sum(counts))
    return (layers >= np.floor(mean)) & (layers <= np.ceil(mean))


def span_threshold(exit_counts: Counts, share: float | np.number = 0.15) -> Span:
    """Allows the layers at which more than `share` of the utterances left.

    Arguments and result as for `span_mean`.

    Raises:
      InputError: nobody has left anywhere, or no layer has more than `share`.

    Paper: section 3.3, "threshold".
    """
    counts, _ = _counts(exit_counts)
    shares = counts / np.sum(counts)
    if not np.any(shares > share):
        raise InputError(
            f"no layer has more than {share:.0%} of the exits (the largest share is "
            f"{np.max(shares):.1%}); lower share, or use span_mean or span_min_max"
        )
    return shares > share


def span_min_max(exit_counts: Counts) -> Span:
    """Allows every layer from the earliest to the latest at which an utterance left.

    Arguments, result and errors as for `span_mean`. Paper: section 3.3, "min-max".
    """
    counts, layers = _counts(exit_counts)
    used = layers[counts > 0]
    return (layers >= used.min()) & (layers <= used.max())


def span_rules(exit_counts: Counts, threshold: float, share: float) -> list[ExitRule]:
    """The three spans with one threshold: section 3.3. One without a layer is left out.

    Args:
      exit_counts: int [L], as for `span_mean`.
      threshold: nats.
      share: of the exits that a layer of the span "threshold" must have.
    """
    makers = {
        "mean": lambda: span_mean(exit_counts),
        "threshold": lambda: span_threshold(exit_counts, share),
        "min-max": lambda: span_min_max(exit_counts),
    }
    found = []
    for name, make in makers.items():
        try:
            found.append(ExitRule(f"span {name}", threshold, make()))
        except InputError as error:
            said = "no row for the span %s at the threshold %.4f: %s"
            logger.warning(said, name, threshold, error)
    return found


def _counts(
    exit_counts: Counts,
) -> tuple[Integer[np.ndarray, " layers"], Int[np.ndarray, " layers"]]:
    counts = np.asarray(exit_counts)
    if counts.ndim != 1 or counts.dtype.kind not in "iu" or np.any(counts < 0):
        raise InputError(
            f"exit_counts must be whole, non-negative numbers [layers]; it is {counts.dtype} "
            f"{counts.shape}"
        )
    if not counts.sum():
        raise InputError("exit_counts are all zero; count exits over a training run first")
    return counts, np.arange(1, len(counts) + 1)
