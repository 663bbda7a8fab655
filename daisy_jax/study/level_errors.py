"""Word error rate by noise level, and its two averages. Paper: section 4.3, figure 5."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

from daisy_jax import InputError
from daisy_jax.data.noisy_corpus import RECIPES, label
from daisy_jax.data.noisy_folder import NoisyFile
from daisy_jax.tasks.metrics import Estimate, interval, quotient, resampled

Grid = Float[np.ndarray, "seeds utterances levels"]
Seeds = Callable[[int], Int[np.ndarray, " chosen"]]
"""From how many seeds there are to the numbers of those that count."""


class LevelSums(NamedTuple):
    """What one rule did to a noisy test set, by clean utterance and noise level.

    The first axis are task heads that were trained alike, but for their seeds. An utterance that is
    not there at a level counts 0 in everything.
    """

    snrs: list[float]
    """dB, falling; infinite for clean speech."""
    clean: list[str]
    """Names of the clean utterances."""
    errors: Grid
    """Word errors."""
    words: Grid
    utterances: Grid
    """1 where an utterance is there."""
    layers: Grid
    """Exit layers."""
    spent: Grid
    """Multiply-adds."""
    full: Grid
    """Multiply-adds at full depth without branches."""

    @property
    def levels(self) -> list[str]:
        """What the levels are called."""
        return [label(snr) for snr in self.snrs]


def level_sums(
    columns: dict[str, Shaped[np.ndarray, " rows"]], log: Sequence[NoisyFile]
) -> LevelSums:
    """Sorts the utterances of one rule by clean utterance and level.

    Args:
      columns: of utterances.parquet: id, wer_total, wer_weight, exit_layer, multiply_adds and
        full_multiply_adds.
      log: of the corpus that they are of.

    Raises:
      InputError: an utterance is not in the log.
    """
    files = {file.name: file for file in log}
    missing = next((name for name in columns["id"] if name not in files), None)
    if missing is not None:
        raise InputError(f"{missing}: not in the log of the mixtures; is it of another corpus?")
    used = [files[name] for name in columns["id"]]
    snrs = sorted({file.snr for file in used}, reverse=True)
    clean = sorted({file.clean for file in used})
    rows = {name: row for row, name in enumerate(clean)}
    cells = [rows[file.clean] for file in used], [snrs.index(file.snr) for file in used]

    def grid(values: Shaped[np.ndarray, " rows"] | int) -> Grid:
        filled = np.zeros((len(clean), len(snrs)))
        filled[cells] = values
        return filled[None]

    return LevelSums(
        snrs,
        clean,
        errors=grid(columns["wer_total"]),
        words=grid(columns["wer_weight"]),
        utterances=grid(1),
        layers=grid(columns["exit_layer"]),
        spent=grid(columns["multiply_adds"]),
        full=grid(columns["full_multiply_adds"]),
    )


def over_seeds(each: Sequence[LevelSums]) -> LevelSums:
    """One rule's task heads of several seeds together.

    Raises:
      InputError: they were evaluated on different utterances.
    """
    first = each[0]
    _require_same_utterances(each)
    grids = (np.concatenate(same) for same in zip(*(sums[2:] for sums in each), strict=True))
    return LevelSums(first.snrs, first.clean, *grids)


class LevelValues(NamedTuple):
    """Sums of one field over sums of another, with intervals.

    The intervals are those of a bootstrap over clean utterances, each drawn with all its levels,
    and over seeds, where there are several.
    """

    levels: list[Estimate]
    """At each level."""
    plain: Estimate
    """The average over the levels."""
    weighted: Estimate | None
    """The average weighted with the paper's 40 / 30 / 20 / 10 mixture; None if the levels are
    others."""


def level_values(sums: LevelSums, total: str, weight: str) -> LevelValues:
    """Sums of the field `total` over sums of `weight`, such as "errors" over "words"."""
    totals, weights = getattr(sums, total), getattr(sums, weight)
    return _by_level(sums, lambda drawn, seeds: _rates(totals, weights, drawn, seeds(len(totals))))


def difference(ours: LevelSums, theirs: LevelSums) -> LevelValues:
    """One rule's word error rates minus another's, on the same utterances (paired).

    Raises:
      InputError: the utterances are others.
    """
    _require_same_utterances([ours, theirs])

    def apart(drawn: Int[np.ndarray, " utterances"], seeds: Seeds) -> Float[np.ndarray, " levels"]:
        first, second = (
            _rates(sums.errors, sums.words, drawn, seeds(len(sums.errors)))
            for sums in (ours, theirs)
        )
        return first - second

    return _by_level(ours, apart)


def _require_same_utterances(each: Sequence[LevelSums]) -> None:
    if any((sums.clean, sums.snrs) != (each[0].clean, each[0].snrs) for sums in each):
        raise InputError(
            "ours and theirs were evaluated on different utterances; evaluate both on the same"
        )


def _rates(
    totals: Grid,
    weights: Grid,
    utterances: Int[np.ndarray, " utterances"],
    seeds: Int[np.ndarray, " chosen"],
) -> Float[np.ndarray, " levels"]:
    """Sums over sums, of some utterances and seeds."""
    totals, weights = (np.sum(grid[seeds], axis=0) for grid in (totals, weights))
    return quotient(totals[utterances], weights[utterances])


def _by_level(
    sums: LevelSums,
    statistic: Callable[[Int[np.ndarray, " utterances"], Seeds], Float[np.ndarray, " levels"]],
) -> LevelValues:
    """A statistic of utterances and seeds, with the intervals of its values at all levels."""
    count, rng = len(sums.clean), np.random.default_rng(0)

    def of_draw(utterances: Int[np.ndarray, " utterances"]) -> Float[np.ndarray, " levels"]:
        return statistic(utterances, lambda seeds: rng.integers(seeds, size=seeds))

    # The value itself, then that of each draw: [1 + resamples, levels]
    values = np.stack([statistic(np.arange(count), np.arange), *resampled(count, of_draw)])

    def estimate(column: Float[np.ndarray, " draws"]) -> Estimate:
        return Estimate(float(column[0]), *interval(column[1:]))

    shares, weighted = RECIPES["paper"], None
    if set(sums.snrs) == set(shares):
        weighted = estimate(values @ np.asarray([shares[snr] for snr in sums.snrs]))
    return LevelValues([*map(estimate, values.T)], estimate(values.mean(axis=1)), weighted)
