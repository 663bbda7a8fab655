"""Tables and pictures of eval/noise.py."""

import dataclasses
import pathlib
from typing import Any

import numpy as np
from noise_asr import AsrSection, draw_asr
from pages import table

from daisy_jax.data.noisy import label
from daisy_jax.exits import ExitRule
from daisy_jax.noise_study import (
    FALLING,
    LABELS_LOST,
    MOST_FIRST,
    MOST_FORCED,
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


def title(condition: Condition) -> str:
    """What a condition is called."""
    if condition.snr is None or condition.kind == "clean":
        return condition.kind
    return f"{condition.kind} {label(condition.snr)}"


def caption(study: Study, ratio: float, rule: ExitRule) -> str:
    """Data set, ratio, span and threshold, as they stand on every table and picture."""
    layers = np.flatnonzero(rule.allowed) + 1
    where = f"{layers[0]} to {layers[-1]}" if len(layers) > 1 else f"{layers[0]}"
    if len(layers) > 2 and len(layers) < layers[-1] - layers[0] + 1:
        where = ", ".join(map(str, layers))
    return (
        f"ratio {ratio:g}, {rule.name} ({where}), threshold {rule.threshold:.4f} nats from clean "
        f"{study.source}; on {study.data}"
    )


def report(study: Study, drawn: dict[str, str] | None = None) -> list[str]:
    """Markdown lines; `drawn` are pictures by name."""
    drawn = drawn or {}
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
    lines += ["", "## Mean entropy by layer", "", *picture(drawn, "entropy")]
    lines += entropy_table(study)
    lines += ["## Exit layers", ""]
    for ratio, rules in study.rules.items():
        lines += [f"### Ratio {ratio:g}", "", *picture(drawn, f"exits-{ratio:g}")]
        for rule in rules:
            lines += [caption(study, ratio, rule) + ":", *exit_table(study, rule)]
    if study.kinds:
        lines += ["## Rank correlation of SNR and exit layer", "", *correlation_table(study)]
    lines += ["## Does the model leave sensibly?", "", *check_tables(study)]
    return lines


def picture(drawn: dict[str, str], name: str) -> list[str]:
    """A picture's line, if it was drawn."""
    return [f"![{name}]({drawn[name]})", ""] if name in drawn else []


def entropy_table(study: Study) -> list[str]:
    """A row a condition, with the straight line's fit (figure 2)."""
    layers = np.arange(1, study.config.num_layers + 1)
    rows = []
    for condition in study.conditions:
        mean = condition.entropy.mean(axis=0, dtype=np.float64)
        fit = np.corrcoef(layers, mean)[0, 1] ** 2 if np.ptp(mean) else np.nan
        cells = [f"{value:.3f}" for value in mean]
        rows.append([title(condition), *cells, f"{mean.min() / mean.max():.2f}", f"{fit:.3f}"])
    header = ["condition", *map(str, layers), "min / max", "r squared"]
    text = [f"Nats, on {study.data}; r squared of a straight line through the layers' means:"]
    return text + table(header, rows)


def exit_table(study: Study, rule: ExitRule) -> list[str]:
    """A row a condition."""
    rows = []
    for condition in study.conditions:
        found = spread(condition, rule, study.config)
        later = ""
        if condition is not study.clean:
            value, low, high = later_than_clean(study.clean, condition, rule)
            later = f"{value:+.2f} ({low:+.2f} to {high:+.2f})"
        rows.append(
            [
                title(condition),
                str(found["utterances"]),
                f"{found['mean']:.2f} ± {found['standard_deviation']:.2f}",
                str(found["min"]),
                str(found["max"]),
                f"{found['forced']:.0%}",
                later,
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
        "multiply-adds saved",
        "final labels",
    ]
    return table(header, rows)


def correlation_table(study: Study) -> list[str]:
    """Spearman's correlation by rule and kind of noise."""
    rows = []
    for ratio, rules in study.rules.items():
        for rule in rules:
            cells = []
            for levels in study.kinds.values():
                value, low, high = snr_correlation(levels, rule)
                known = f"{value:.2f} ({low:.2f} to {high:.2f})"
                cells.append("one layer only" if np.isnan(value) else known)
            rows.append([f"ratio {ratio:g}, {rule.name}", *cells])
    text = [
        f"Spearman's, on {study.data}, threshold from clean {study.source}; below zero where "
        "noisier speech leaves later. 95 % intervals: bootstrap over utterances, each with all its "
        "levels."
    ]
    return text + table(["rule", *study.kinds], rows)


def check_tables(study: Study) -> list[str]:
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
        for condition in study.conditions:
            found = check(study.clean, condition, rules[0])
            answer = "yes" if not found.problems else "NO: " + "; ".join(found.problems)
            rows.append(
                [
                    title(condition),
                    f"{found.falls:.2f}",
                    f"{found.forced:.0%}",
                    f"{found.first:.0%}",
                    f"{0 - 100 * found.lost:+.1f}",
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
        "conditions": {
            title(condition): {
                "mean_entropy": condition.entropy.mean(axis=0).tolist(),
                "utterances": len(condition.names),
            }
            for condition in study.conditions
        },
        "rules": [],
    }
    for ratio, rules in study.rules.items():
        for rule in rules:
            found["rules"].append(
                {
                    "ratio": ratio,
                    "span": rule.name,
                    "threshold": rule.threshold,
                    "allowed": (np.flatnonzero(rule.allowed) + 1).tolist(),
                    "exits": {
                        title(condition): {
                            **spread(condition, rule, study.config),
                            "later_than_clean": later_than_clean(study.clean, condition, rule),
                        }
                        for condition in study.conditions
                    },
                    "snr_correlation": {
                        kind: snr_correlation(levels, rule) for kind, levels in study.kinds.items()
                    },
                    "checks": {
                        title(condition): check(study.clean, condition, rule)._asdict()
                        for condition in study.conditions
                    },
                }
            )
    return found


def pictures(study: Study, asr: AsrSection, folder: pathlib.Path) -> dict[str, str]:
    """Draws all; names of files below `folder`, none where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        print("no pictures: pip install 'daisy-jax[plots]'")
        return {}
    matplotlib.use("agg")
    found = {"entropy": "entropy.png"}
    draw_entropy(study, folder / found["entropy"])
    for ratio in study.rules:
        found[f"exits-{ratio:g}"] = f"exits-{ratio:g}.png"
        draw_exits(study, ratio, folder / found[f"exits-{ratio:g}"])
    if asr.results:
        found["asr"] = "asr.png"
        draw_asr(asr, folder / found["asr"])
    return found


def panels(study: Study) -> dict[str, list[Condition]]:
    """Groups of conditions, each with clean speech first: kinds of noise, then the user's own."""
    own = {"conditions": [study.clean, *study.others]} if study.others else {}
    return {**study.kinds, **own} or {"clean": [study.clean]}


def draw_entropy(study: Study, path: pathlib.Path) -> None:
    """Mean entropy against layer: a panel a kind of noise, a line a level (figure 2)."""
    from matplotlib import pyplot

    groups = panels(study)
    figure, axes = pyplot.subplots(
        1,
        len(groups),
        figsize=(4.2 * len(groups), 3.4),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    layers = np.arange(1, study.config.num_layers + 1)
    for axis, (kind, conditions) in zip(axes[0], groups.items(), strict=True):
        for condition in conditions:
            mean = condition.entropy.mean(axis=0)
            name = label(condition.snr) if condition.snr is not None else condition.kind
            axis.plot(layers, mean, "o-", markersize=3, linewidth=1, label=name)
        axis.set(title=kind, xlabel="layer")
        axis.legend(fontsize="small")
    axes[0][0].set_ylabel("mean entropy, nats")
    figure.suptitle(f"{study.model} on {study.data}", fontsize="medium")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def draw_exits(study: Study, ratio: float, path: pathlib.Path) -> None:
    """Violins of exit layers (figure 4): a row a span, a panel a kind of noise.

    Lines are the largest, the mean and the smallest exit layer.
    """
    from matplotlib import pyplot

    groups, rules = panels(study), study.rules[ratio]
    figure, axes = pyplot.subplots(
        len(rules),
        len(groups),
        figsize=(4.2 * len(groups), 2.6 * len(rules) + 0.5),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for row, rule in zip(axes, rules, strict=True):
        for axis, (kind, conditions) in zip(row, groups.items(), strict=True):
            exits = [rule.exits(condition.entropy)[0] for condition in conditions]
            places = np.arange(len(exits))
            axis.violinplot(exits, places, widths=0.8, showmeans=True, showextrema=True)
            names = [label(c.snr) if c.snr is not None else c.kind for c in conditions]
            axis.set_xticks(places, names, fontsize="small")
            axis.set_title(f"{kind}: {rule.name}", fontsize="medium")
            axis.grid(axis="y", linewidth=0.3)
        row[0].set_ylabel("exit layer")
        row[0].set_ylim(0.5, study.config.num_layers + 0.5)
    figure.suptitle(
        f"Ratio {ratio:g}, threshold {rules[0].threshold:.4f} nats from clean {study.source}\n"
        f"{study.model} on {len(study.clean.names)} utterances of {study.data}",
        fontsize="medium",
    )
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
