"""The numbers of a noise study: what results.json holds, and what its tables and figures show."""

import dataclasses

import numpy as np

from daisy_jax.exits import ExitRule
from daisy_jax.model.config import HubertConfig
from daisy_jax.study.conditions import Condition
from daisy_jax.study.noise_study import Checks, Spread, check, snr_correlation, spread
from daisy_jax.tasks.metrics import Estimate

EVERY_LAYER = "every layer"
"""Name of the first rule of a ratio."""


@dataclasses.dataclass(frozen=True)
class Study:
    """What was measured."""

    model: str
    config: HubertConfig
    data: str
    """The clean speech."""
    hours: float
    threshold_from: str
    """The clean speech that the thresholds are of."""
    threshold_utterances: int
    seed: int
    level: str
    """Whose decibels the SNR is of: the "mean" or the "active" power of the speech."""
    rules: dict[float, list[ExitRule]]
    """By ratio: every layer, then the spans."""
    clean: Condition
    kinds: dict[str, list[Condition]]
    """By kind of noise: clean, then from the highest SNR to the lowest."""
    others: list[Condition]
    folders: dict[str, str]
    """Of the others."""

    @property
    def conditions(self) -> list[Condition]:
        """All of them, clean speech first."""
        noisy = [condition for levels in self.kinds.values() for condition in levels[1:]]
        return [self.clean, *noisy, *self.others]


@dataclasses.dataclass(frozen=True)
class RuleResults:
    """What one rule does, in the fields of results.json."""

    ratio: float
    span: str
    """The rule's name."""
    threshold: float | None
    allowed: list[int]
    """Layers, from 1."""
    exits: dict[str, Spread]
    """By the condition's title, as the checks."""
    snr_correlation: dict[str, Estimate]
    """By kind of noise."""
    checks: dict[str, Checks]


def results(study: Study) -> list[RuleResults]:
    """The numbers of every rule."""
    clean, conditions = study.clean, {each.title: each for each in study.conditions}
    return [
        RuleResults(
            ratio,
            rule.name,
            rule.threshold,
            (np.flatnonzero(rule.allowed) + 1).tolist(),
            {title: spread(clean, each, rule, study.config) for title, each in conditions.items()},
            {kind: snr_correlation(levels, rule) for kind, levels in study.kinds.items()},
            {title: check(clean, each, rule) for title, each in conditions.items()},
        )
        for ratio, rules in study.rules.items()
        for rule in rules
    ]
