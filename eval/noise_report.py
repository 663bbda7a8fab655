"""Tables of eval/noise.py."""

import dataclasses
from typing import Any

import numpy as np

from daisy_jax.console.pages import ranges, table
from daisy_jax.exits import ExitRule
from daisy_jax.study.noise_study import (
    FALLING,
    LABELS_LOST,
    MOST_FIRST,
    MOST_FORCED,
    Checks,
    Condition,
    check,
    later_than_clean,
    snr_correlation,
    spread,
)


@dataclasses.dataclass(frozen=True)
class Study:
    """What was measured."""

    model: str
    config: Any
    data: str
    hours: float
    source: str
    """Of the threshold."""
    source_utterances: int
    seed: int
    level: str
    rules: dict[float, list[ExitRule]]
    """By ratio: every layer, then the spans."""
    clean: Condition
    kinds: dict[str, list[Condition]]
    """By kind of noise: clean, then from the highest ratio to the lowest."""
    others: list[Condition]
    folders: dict[str, str]
    """Of the others."""

    @property
    def conditions(self) -> list[Condition]:
        """All of them, clean speech first."""
        noisy = [condition for levels in self.kinds.values() for condition in levels[1:]]
        return [self.clean, *noisy, *self.others]


def caption(study: Study, ratio: float, rule: ExitRule) -> str:
    """Data set, ratio, span and threshold, as they stand on every table and picture."""
    where = ranges((np.flatnonzero(rule.allowed) + 1).tolist())
    return (
        f"ratio {ratio:g}, {rule.name} ({where}), threshold {rule.threshold:.4f} nats from clean "
        f"{study.source}; on {study.data}"
    )


def report(study: Study, found: dict[str, Any], files: dict[str, str] | None = None) -> list[str]:
    """Markdown lines.

    Args:
      study: what was measured.
      found: from `results`.
      files: pictures that were drawn.
    """
    files = files or {}
    count = len(study.clean.names)
    lines = [
        "# Noise study",
        "",
        f"Model {study.model}, {study.config.num_layers} layers. {count} clean utterances of "
        f"{study.data}, {study.hours:.2g} h. One threshold a ratio for all conditions, by eq. (3) "
        f"on {study.source_utterances} utterances of clean speech, {study.source}; the spans come "
        "from where those left.",
    ]
    if study.kinds:
        lines.append(
            f"Each utterance has one recording of a kind at all levels (seed {study.seed}; "
            f"{study.level} power of the speech)."
        )
    if study.others:
        given = (
            f"{condition.kind} ({len(condition.names)} utterances of "
            f"{study.folders[condition.kind]})"
            for condition in study.others
        )
        lines += ["", f"Further conditions: {', '.join(given)}."]
    if count < 500:
        lines += ["", f"**A small set: {count} utterances.** Intervals say how little is known."]
    lines += ["", "## Mean entropy by layer", "", *picture(files, "entropy")]
    lines += entropy_table(study, found)
    lines += ["## Exit layers", ""]
    lines += [
        '"Later" is the difference of the mean exit layers, in pairs where utterances are versions '
        'of clean ones; "final labels" is the share of frames whose label at the exit is the last '
        "layer's.",
        "",
    ]
    for ratio, rules in study.rules.items():
        lines += [f"### Ratio {ratio:g}", "", *picture(files, f"exits-{ratio:g}")]
        for rule in rules:
            entry = entry_of(found, ratio, rule)
            lines += [caption(study, ratio, rule) + ":", *exit_table(entry)]
    if study.kinds:
        lines += ["## Rank correlation of SNR and exit layer", "", *correlation_table(study, found)]
    lines += ["## Does the model leave sensibly?", "", *check_tables(study, found)]
    return lines


def picture(files: dict[str, str], name: str) -> list[str]:
    """A picture's line, if it was drawn."""
    return [f"![{name}]({files[name]})", ""] if name in files else []


def entry_of(found: dict[str, Any], ratio: float, rule: ExitRule) -> dict[str, Any]:
    """The numbers of one rule."""
    return next(
        each for each in found["rules"] if (each["ratio"], each["span"]) == (ratio, rule.name)
    )


def between(low: float, high: float, digits: str) -> str:
    """The ends of an interval in brackets; nothing where there is none."""
    return "" if np.isnan(low) else f" ({low:{digits}} to {high:{digits}})"


def entropy_table(study: Study, found: dict[str, Any]) -> list[str]:
    """A row a condition, with the straight line's fit (figure 2)."""
    layers = np.arange(1, study.config.num_layers + 1)
    rows = []
    for name, condition in found["conditions"].items():
        mean = np.asarray(condition["mean_entropy"])
        fit = np.corrcoef(layers, mean)[0, 1] ** 2 if np.ptp(mean) else np.nan
        cells = [f"{value:.3f}" for value in mean]
        rows.append([name, *cells, f"{mean.min() / mean.max():.2f}", f"{fit:.3f}"])
    header = ["condition", *map(str, layers), "min / max", "r squared"]
    text = [f"Nats, on {study.data}; r squared of a straight line through the layers' means:"]
    return text + table(header, rows)


def exit_table(entry: dict[str, Any]) -> list[str]:
    """A row a condition."""
    rows = []
    for name, found in entry["exits"].items():
        later, pairs = "", ""
        if found["later_than_clean"] is not None:
            each = found["later_than_clean"]
            later = f"{each['value']:+.2f}{between(each['low'], each['high'], '+.2f')}"
            pairs = str(each["pairs"]) if each["pairs"] else "none"
        rows.append(
            [
                name,
                str(found["utterances"]),
                f"{found['mean']:.2f} ± {found['standard_deviation']:.2f}",
                str(found["min"]),
                str(found["max"]),
                f"{found['forced']:.0%}",
                later,
                pairs,
                f"{found['multiply_adds_saved']:.1%}",
                f"{found['final_labels']:.1%}",
            ]
        )
    header = [
        "condition",
        "utterances",
        "exit layer ± s.d.",
        "min",
        "max",
        "forced",
        "later than clean (95 %)",
        "pairs",
        "multiply-adds saved",
        "final labels",
    ]
    return table(header, rows)


def correlation_table(study: Study, found: dict[str, Any]) -> list[str]:
    """Spearman's correlation by rule and kind of noise."""
    rows = []
    for entry in found["rules"]:
        cells = []
        for value, low, high in entry["snr_correlation"].values():
            known = f"{value:.2f}{between(low, high, '.2f')}"
            cells.append("one layer only" if np.isnan(value) else known)
        rows.append([f"ratio {entry['ratio']:g}, {entry['span']}", *cells])
    text = [
        f"Spearman's, on {study.data}, threshold from clean {study.source}; below zero where "
        "noisier speech leaves later. 95 % intervals: bootstrap over utterances, each with all its "
        "levels."
    ]
    return text + table(["rule", *study.kinds], rows)


def check_tables(study: Study, found: dict[str, Any]) -> list[str]:
    """A table a ratio, with every layer allowed."""
    lines = [
        f"Yes, where mean entropy falls with depth (rank correlation at most {FALLING}), at most "
        f"{MOST_FORCED:.0%} are forced out at the last layer, at most {MOST_FIRST:.0%} leave at "
        f"the first, and at most {100 * LABELS_LOST:.0f} points fewer frames than on clean speech "
        "have the last layer's label at the exit. The last is a proxy: it says whether the model "
        "would have changed its mind, not whether its mind is right."
    ]
    for ratio, rules in study.rules.items():
        rows = []
        for name, each in entry_of(found, ratio, rules[0])["checks"].items():
            checks = Checks(**each)
            answer = "yes" if not checks.problems else "NO: " + "; ".join(checks.problems)
            rows.append(
                [
                    name,
                    f"{checks.falls:.2f}",
                    f"{checks.forced:.0%}",
                    f"{checks.first:.0%}",
                    f"{0 - 100 * checks.lost:+.1f}",
                    answer,
                ]
            )
        header = ["condition", "entropy and depth", "forced", "at layer 1", "final labels, points"]
        lines += ["", caption(study, ratio, rules[0]) + ":"]
        lines += table([*header, "sensibly?"], rows)
    return lines


def results(study: Study) -> dict[str, Any]:
    """Everything in the tables, as numbers."""
    found: dict[str, Any] = {
        "model": study.model,
        "data": study.data,
        "hours": study.hours,
        "threshold_from": study.source,
        "seed": study.seed,
        "level": study.level,
        "folders": study.folders,
        "conditions": {
            condition.title: {
                "mean_entropy": condition.entropy.mean(axis=0, dtype=np.float64).tolist(),
                "utterances": len(condition.names),
            }
            for condition in study.conditions
        },
        "rules": [],
    }
    for ratio, rules in study.rules.items():
        for rule in rules:
            exits = {}
            for condition in study.conditions:
                later = None
                if condition is not study.clean:
                    later = later_than_clean(study.clean, condition, rule)._asdict()
                each = spread(condition, rule, study.config)
                exits[condition.title] = {**each, "later_than_clean": later}
            found["rules"].append(
                {
                    "ratio": ratio,
                    "span": rule.name,
                    "threshold": rule.threshold,
                    "allowed": (np.flatnonzero(rule.allowed) + 1).tolist(),
                    "exits": exits,
                    "snr_correlation": {
                        kind: snr_correlation(levels, rule) for kind, levels in study.kinds.items()
                    },
                    "checks": {
                        condition.title: check(study.clean, condition, rule)._asdict()
                        for condition in study.conditions
                    },
                }
            )
    return found
