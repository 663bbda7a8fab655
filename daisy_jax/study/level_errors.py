"""Word error rate by noise level, and its two averages. Paper: section 4.3, figure 5."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from daisy_jax.data.noisy_corpus import RECIPES, label
from daisy_jax.data.noisy_folder import Mixture
from daisy_jax.errors import InputError
from daisy_jax.tasks.metrics import RESAMPLES, middle

Estimate = tuple[float, float, float]
"""A value and the ends of its 95 % interval."""


class LevelSums(NamedTuple):
    """What one rule did to a noisy test set. Rows are clean utterances, columns noise levels."""

    snrs: list[float]
    """dB, falling; infinite for clean speech."""
    clean: list[str]
    errors: np.ndarray
    """Word errors; 0 where an utterance is not there at a level."""
    words: np.ndarray
    utterances: np.ndarray
    """Utterances, 0 or 1."""
    layers: np.ndarray
    """Exit layers."""
    spent: np.ndarray
    """Multiply-adds."""
    full: np.ndarray
    """Multiply-adds at full depth without branches."""


def level_sums(rows: Sequence[dict[str, Any]], mixtures: Sequence[Mixture]) -> LevelSums:
    """Sorts the utterances of one rule by clean utterance and level.

    Args:
      rows: of utterances.parquet: id, wer_total, wer_weight, exit_layer, multiply_adds and
        full_multiply_adds.
      mixtures: the log of the corpus that they are of.

    Raises:
      InputError: an utterance is not in the log.
    """
    known = {mixture.name: mixture for mixture in mixtures}
    missing = next((row["id"] for row in rows if row["id"] not in known), None)
    if missing is not None:
        raise InputError(f"{missing}: not in the log of the mixtures; is it of another corpus?")
    used = [known[row["id"]] for row in rows]
    snrs = sorted({mixture.snr for mixture in used}, reverse=True)
    clean = sorted({mixture.clean for mixture in used})
    row_of = {name: number for number, name in enumerate(clean)}
    place = [(row_of[mixture.clean], snrs.index(mixture.snr)) for mixture in used]
    found = {}
    fields = {
        "errors": "wer_total",
        "words": "wer_weight",
        "layers": "exit_layer",
        "spent": "multiply_adds",
        "full": "full_multiply_adds",
    }
    for name, column in fields.items():
        found[name] = np.zeros((len(clean), len(snrs)))
        for where, row in zip(place, rows, strict=True):
            found[name][where] = row[column]
    there = np.zeros((len(clean), len(snrs)))
    for where in place:
        there[where] = 1
    return LevelSums(snrs, clean, utterances=there, **found)


def level_values(
    sums: LevelSums, total: str, weight: str
) -> tuple[list[Estimate], Estimate, Estimate | None]:
    """Sum of one field over that of another: at each level, and averaged over the levels.

    Args:
      sums: of one rule.
      total: a field, such as "errors".
      weight: a field, such as "words".

    Returns:
      At each level; the plain average over levels; the average weighted with the paper's 40 / 30 /
      20 / 10 mixture, None if the levels are others. With intervals: bootstrap over clean
      utterances, each drawn with all its levels.
    """
    drawn = _by_draw(sums, total, weight)
    averages = [drawn.mean(axis=1), _weighted(sums, drawn)]
    levels = [_estimate(column) for column in drawn.T]
    plain, weighted = (None if values is None else _estimate(values) for values in averages)
    assert plain is not None
    return levels, plain, weighted


def difference(ours: LevelSums, theirs: LevelSums) -> tuple[Estimate, Estimate | None]:
    """One rule's average word error rates minus another's, on the same utterances (paired).

    Returns:
      of the plain average and of the weighted one, as `level_values`.
    """
    if (ours.clean, ours.snrs) != (theirs.clean, theirs.snrs):
        raise InputError("two runs were evaluated on different utterances; evaluate both on one")
    sides = [_by_draw(sums, "errors", "words") for sums in (ours, theirs)]
    plain = _estimate(sides[0].mean(axis=1) - sides[1].mean(axis=1))
    weighted = [_weighted(ours, side) for side in sides]
    if weighted[0] is None or weighted[1] is None:
        return plain, None
    return plain, _estimate(weighted[0] - weighted[1])


def level_names(sums: LevelSums) -> list[str]:
    """What the levels are called."""
    return [label(snr) for snr in sums.snrs]


def _by_draw(sums: LevelSums, total: str, weight: str) -> np.ndarray:
    """Float [1 + resamples, levels]: the value itself, and in each draw of clean utterances."""
    count = len(sums.clean)
    times = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    times = np.concatenate([np.ones((1, count)), times])
    over = times @ getattr(sums, weight)
    return np.divide(
        times @ getattr(sums, total), over, out=np.full(over.shape, np.nan), where=over > 0
    )


def _weighted(sums: LevelSums, drawn: np.ndarray) -> np.ndarray | None:
    shares = RECIPES["paper"]
    if set(sums.snrs) != set(shares):
        return None
    return drawn @ np.asarray([shares[snr] for snr in sums.snrs])


def _estimate(values: np.ndarray) -> Estimate:
    return float(values[0]), *middle(values[1:], 0.95)
