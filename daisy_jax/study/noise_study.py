"""Who leaves where under which condition: numbers from stored entropies.

Paper: sections 4.2 and 4.3, figures 2, 4 and 5.
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Int, Real, Shaped

from daisy_jax import multiply_adds
from daisy_jax.exits import ExitRule
from daisy_jax.model.config import HubertConfig
from daisy_jax.study.conditions import Condition
from daisy_jax.tasks.metrics import Estimate, interval, resampled

FALLING = -0.9
"""Largest rank correlation of mean entropy and depth that counts as falling."""
MOST_FORCED = 0.5
MOST_FIRST = 0.5
"""Largest shares of utterances that leave forced, and at the first layer."""
FEWEST = 5
"""Utterances that an interval needs."""
LABELS_LOST = 0.05
"""Largest loss, against clean speech, of frames that have the last layer's label."""


@dataclasses.dataclass(frozen=True)
class Later:
    """How much later a condition leaves than clean speech."""

    value: float
    """Difference of the mean exit layers."""
    low: float
    high: float
    """Ends of the 95 % interval; NaN for fewer than `FEWEST` utterances."""
    pairs: int
    """Utterances that were compared with their own clean version; 0: the sets were compared."""


@dataclasses.dataclass(frozen=True)
class Spread:
    """Where utterances leave under a rule, and what that costs and keeps."""

    utterances: int
    mean: float
    standard_deviation: float
    min: int
    max: int
    """Exit layers, as the two before."""
    forced: float
    """Share of the utterances."""
    multiply_adds_saved: float
    """Share of those at full depth without branches."""
    final_labels: float
    """Share of the frames that have the last layer's label at the exit."""
    exit_layers: list[int]
    later_than_clean: Later | None
    """None for clean speech itself."""


def spread(clean: Condition, condition: Condition, rule: ExitRule, config: HubertConfig) -> Spread:
    """Looks where a condition's utterances leave."""
    exits, forced = rule.exits(condition.entropy)
    none = np.zeros(config.num_layers, bool)
    full = multiply_adds(config, condition.samples, config.num_layers, none).sum()
    spent = multiply_adds(config, condition.samples, exits, rule.evaluated).sum()
    return Spread(
        utterances=len(exits),
        mean=float(exits.mean()),
        standard_deviation=float(exits.std()),
        min=int(exits.min()),
        max=int(exits.max()),
        forced=float(forced.mean()),
        multiply_adds_saved=float(1 - spent / full),
        final_labels=final_labels(condition, exits),
        exit_layers=exits.tolist(),
        later_than_clean=None if condition is clean else later_than_clean(clean, condition, rule),
    )


def final_labels(condition: Condition, exits: Int[np.ndarray, " utterances"]) -> float:
    """Share of the frames that have the last layer's label at the exits, mean over utterances."""
    return float(condition.agreement[np.arange(len(exits)), exits - 1].mean())


def later_than_clean(clean: Condition, other: Condition, rule: ExitRule) -> Later:
    """Mean exit layer minus clean speech's, with a bootstrap interval over utterances.

    Where at least half of the condition's utterances are versions of clean ones (of one name, and
    of durations within a tenth), these are compared in pairs, and the others are left out. Else the
    two sets are drawn apart.
    """
    ours, theirs = rule.exits(other.entropy)[0], rule.exits(clean.entropy)[0]
    numbers = {id: number for number, id in enumerate(clean.ids)}
    pairs = []
    for number, id in enumerate(other.ids):
        twin = numbers.get(id)
        if twin is not None and abs(other.samples[number] / clean.samples[twin] - 1) <= 0.1:
            pairs.append((number, twin))
    if 2 * len(pairs) >= len(ours):
        apart = np.asarray([ours[number] - theirs[twin] for number, twin in pairs])
        drawn = resampled(len(apart), lambda chosen: apart[chosen].mean())
        return Later(float(apart.mean()), *_ends(drawn, len(apart)), len(pairs))
    rng = np.random.default_rng(0)
    first = resampled(len(ours), lambda chosen: ours[chosen].mean(), rng)
    second = resampled(len(theirs), lambda chosen: theirs[chosen].mean(), rng)
    value = float(ours.mean() - theirs.mean())
    return Later(value, *_ends(first - second, min(len(ours), len(theirs))), 0)


def _ends(drawn: Float[np.ndarray, " resamples"], utterances: int) -> tuple[float, float]:
    """A bootstrap over a handful of utterances would look surer than it is."""
    return interval(drawn) if utterances >= FEWEST else (float("nan"), float("nan"))


def snr_correlation(levels: list[Condition], rule: ExitRule) -> Estimate:
    """Spearman's rank correlation of SNR and exit layer.

    Below zero if noisier speech leaves later; NaN if everybody leaves at one layer, or if there are
    fewer than `FEWEST` utterances for an interval. The interval is a bootstrap over utterances,
    each drawn with all its levels.

    Args:
      levels: versions of the same utterances with different ratios, clean speech included.
      rule: where they leave.
    """
    common = sorted(set.intersection(*(set(level.names) for level in levels)))
    if not common:
        return Estimate(float("nan"), float("nan"), float("nan"))
    snrs = [level.snr for level in levels if level.snr is not None]
    distinct, rows = np.unique(snrs, return_inverse=True)
    utterances, layers = len(common), len(rule.allowed)
    pairs = np.zeros((utterances, len(distinct), layers))
    for row, level in zip(rows, levels, strict=True):
        by_name = dict(zip(level.names, rule.exits(level.entropy)[0], strict=True))
        for number, name in enumerate(common):
            pairs[number, row, by_name[name] - 1] += 1

    def table(chosen: Int[np.ndarray, " utterances"]) -> Float[np.ndarray, "snrs layers"]:
        return np.tensordot(np.bincount(chosen, minlength=utterances), pairs, 1)

    drawn = table_correlation(resampled(utterances, table))
    (value,) = table_correlation(pairs.sum(axis=0, keepdims=True))
    return Estimate(float(value), *_ends(drawn, utterances))


def table_correlation(
    table: Real[np.ndarray, "*tables rows columns"],
) -> Float[np.ndarray, "*tables"]:
    """Spearman's rank correlation of rows and columns, of tables that say how many pairs there are.

    Equal values share their mean rank; NaN if all pairs are in one row or in one column. Much
    faster over a bootstrap than to rank the pairs each time.
    """
    rows, columns = table.sum(-1), table.sum(-2)

    def ranks(counts: Real[np.ndarray, "*tables values"]) -> Float[np.ndarray, "*tables values"]:
        """The mean rank of each value, minus the mean of all ranks."""
        return np.cumsum(counts, -1) - counts / 2 - counts.sum(-1, keepdims=True) / 2

    first, second = ranks(rows), ranks(columns)
    together = np.einsum("...rc,...r,...c->...", table, first, second)
    apart = (rows * first**2).sum(-1) * (columns * second**2).sum(-1)
    return together / np.sqrt(np.where(apart > 0, apart, np.nan))


def rank_correlation(
    first: Shaped[np.ndarray, " pairs"], second: Shaped[np.ndarray, " pairs"]
) -> float:
    """Spearman's, equal values sharing their mean rank; NaN if one side is constant.

    Unlike scipy's spearmanr it takes infinite values and warns of nothing.
    """
    from scipy.stats import rankdata

    ranks = [rankdata(side) for side in (first, second)]
    if min(np.ptp(side) for side in ranks) == 0:
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])


@dataclasses.dataclass(frozen=True)
class Checks:
    """Whether a model leaves sensibly under a condition; each of them by the limits above."""

    falls: float
    """Rank correlation of mean entropy and depth."""
    forced: float
    """Share of utterances that no threshold let go."""
    first: float
    """Share of utterances that leave at the first layer."""
    lost: float
    """Frames with the last layer's label at the exit: clean speech's share minus this one's."""

    @property
    def problems(self) -> list[str]:
        """What is not as it should be; none: the model leaves sensibly."""
        failed = {
            "entropy does not fall with depth": not self.falls <= FALLING,
            "most are forced out": self.forced > MOST_FORCED,
            "most leave at the first layer": self.first > MOST_FIRST,
            "labels are less settled at the exit than on clean speech": self.lost > LABELS_LOST,
        }
        return [text for text, fails in failed.items() if fails]


def check(clean: Condition, other: Condition, rule: ExitRule) -> Checks:
    """Looks at one condition."""
    exits, forced = rule.exits(other.entropy)
    layers = np.arange(1, other.entropy.shape[1] + 1)
    on_clean = final_labels(clean, rule.exits(clean.entropy)[0])
    falls = rank_correlation(layers, other.entropy.mean(axis=0, dtype=np.float64))
    lost = on_clean - final_labels(other, exits)
    return Checks(falls, float(forced.mean()), float(np.mean(exits == 1)), lost)
