"""Tables and pictures of eval/noise.py: figures 2, 4 and 5."""

import pathlib
from typing import TYPE_CHECKING

import numpy as np
from noise_asr import AsrSection

from daisy_jax.console.pages import escaped, ranges, table
from daisy_jax.console.pictures import save_picture
from daisy_jax.study.conditions import Condition
from daisy_jax.study.noise_results import EVERY_LAYER, RuleResults, Study
from daisy_jax.study.noise_study import FALLING, LABELS_LOST, MOST_FIRST, MOST_FORCED

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def caption(study: Study, rule: RuleResults) -> str:
    """Data set, ratio, span and threshold, as they stand on every table and picture."""
    source, data = escaped(study.threshold_from), escaped(study.data)
    return (
        f"ratio {rule.ratio:g}, {rule.span} ({ranges(rule.allowed)}), threshold "
        f"{rule.threshold:.4f} nats from clean {source}; on {data}:"
    )


def report(study: Study, results: list[RuleResults], files: dict[str, str]) -> list[str]:
    """Markdown lines, with pictures of these names and files."""
    count = len(study.clean.names)
    model, data, source = map(escaped, (study.model, study.data, study.threshold_from))
    lines = [
        "# Noise study",
        "",
        f"Model {model}, {study.config.num_layers} layers. {count} clean utterances of {data}, "
        f"{study.hours:.2g} h. One threshold a ratio for all conditions, by eq. (3) on "
        f"{study.threshold_utterances} utterances of clean speech, {source}; the "
        "spans come from where those left.",
    ]
    if study.kinds:
        lines.append(
            f"Each utterance has one recording of a kind at all levels (seed {study.seed}; "
            f"{study.level} power of the speech)."
        )
    if study.others:
        folders = (
            f"{escaped(each.kind)} ({len(each.names)} utterances of "
            f"{escaped(study.folders[each.kind])})"
            for each in study.others
        )
        lines += ["", f"Further conditions: {', '.join(folders)}."]
    if count < 500:
        lines += ["", f"**A small set: {count} utterances.** Intervals say how little is known."]
    lines += ["", "## Mean entropy by layer", "", *picture(files, "entropy")]
    lines += entropy_table(study)
    lines += [
        "## Exit layers",
        "",
        '"Later" is the difference of the mean exit layers, in pairs where utterances are versions '
        'of clean ones; "final labels" is the share of frames whose label at the exit is the last '
        "layer's.",
        "",
    ]
    for rule in results:
        if rule.span == EVERY_LAYER:  # the first of a ratio
            lines += [f"### Ratio {rule.ratio:g}", "", *picture(files, f"exits-{rule.ratio:g}")]
        lines += [caption(study, rule), *exit_table(rule)]
    if study.kinds:
        lines += ["## Rank correlation of SNR and exit layer", ""]
        lines += correlation_table(study, results)
    lines += ["## Does the model leave sensibly?", "", *check_tables(study, results)]
    return lines


def picture(files: dict[str, str], name: str) -> list[str]:
    """A picture's line, if it was drawn."""
    return [f"![{name}]({files[name]})", ""] if name in files else []


def between(low: float, high: float, digits: str) -> str:
    """The ends of an interval in brackets; nothing where there is none."""
    return "" if np.isnan(low) else f" ({low:{digits}} to {high:{digits}})"


def entropy_table(study: Study) -> list[str]:
    """A row a condition, with the straight line's fit (figure 2)."""
    layers = np.arange(1, study.config.num_layers + 1)
    rows = []
    for condition in study.conditions:
        mean = condition.entropy.mean(axis=0, dtype=np.float64)
        fit = np.corrcoef(layers, mean)[0, 1] ** 2 if np.ptp(mean) else np.nan
        cells = [f"{value:.3f}" for value in mean]
        rows.append([condition.title, *cells, f"{mean.min() / mean.max():.2f}", f"{fit:.3f}"])
    text = (
        f"Nats, on {escaped(study.data)}; r squared of a straight line through the layers' means:"
    )
    return [text, *table(["condition", *map(str, layers), "min / max", "r squared"], rows)]


def exit_table(rule: RuleResults) -> list[str]:
    """A row a condition."""
    rows = []
    for name, exits in rule.exits.items():
        difference, pairs, later = "", "", exits.later_than_clean
        if later is not None:
            difference = f"{later.value:+.2f}{between(later.low, later.high, '+.2f')}"
            pairs = str(later.pairs or "none")
        rows.append(
            {
                "condition": name,
                "utterances": str(exits.utterances),
                "exit layer ± s.d.": f"{exits.mean:.2f} ± {exits.standard_deviation:.2f}",
                "min": str(exits.min),
                "max": str(exits.max),
                "forced": f"{exits.forced:.0%}",
                "later than clean (95 %)": difference,
                "pairs": pairs,
                "multiply-adds saved": f"{exits.multiply_adds_saved:.1%}",
                "final labels": f"{exits.final_labels:.1%}",
            }
        )
    return table([*rows[0]], [[*row.values()] for row in rows])


def correlation_table(study: Study, results: list[RuleResults]) -> list[str]:
    """Spearman's correlation by rule and kind of noise."""
    rows = []
    for rule in results:
        cells = [
            "one layer only" if np.isnan(value) else f"{value:.2f}{between(low, high, '.2f')}"
            for value, low, high in rule.snr_correlation.values()
        ]
        rows.append([f"ratio {rule.ratio:g}, {rule.span}", *cells])
    text = [
        f"Spearman's, on {escaped(study.data)}, threshold from clean "
        f"{escaped(study.threshold_from)}; below zero where noisier speech leaves later. 95 % "
        "intervals: bootstrap over utterances, each with all its levels."
    ]
    return text + table(["rule", *study.kinds], rows)


def check_tables(study: Study, results: list[RuleResults]) -> list[str]:
    """A table a ratio, with every layer allowed."""
    lines = [
        f"Yes, where mean entropy falls with depth (rank correlation at most {FALLING}), at most "
        f"{MOST_FORCED:.0%} are forced out at the last layer, at most {MOST_FIRST:.0%} leave at "
        f"the first, and at most {100 * LABELS_LOST:.0f} points fewer frames than on clean speech "
        "have the last layer's label at the exit. The last is a proxy: it says whether the model "
        "would have changed its mind, not whether its mind is right."
    ]
    for rule in (rule for rule in results if rule.span == EVERY_LAYER):
        rows = []
        for name, checks in rule.checks.items():
            rows.append(
                {
                    "condition": name,
                    "entropy and depth": f"{checks.falls:.2f}",
                    "forced": f"{checks.forced:.0%}",
                    "at layer 1": f"{checks.first:.0%}",
                    "final labels, points": f"{0 - 100 * checks.lost:+.1f}",
                    "sensibly?": "NO: " + "; ".join(checks.problems) if checks.problems else "yes",
                }
            )
        lines += ["", caption(study, rule)]
        lines += table([*rows[0]], [[*row.values()] for row in rows])
    return lines


def pictures(study: Study, asr: AsrSection, folder: pathlib.Path) -> dict[str, str]:
    """Draws all; names of files below `folder`, none where matplotlib is not installed."""
    wanted = {"entropy": lambda: draw_entropy(study)}
    for ratio in study.rules:
        wanted[f"exits-{ratio:g}"] = lambda ratio=ratio: draw_exits(study, ratio)
    if asr.rates:
        wanted["asr"] = lambda: draw_asr(asr)
    files = {name: f"{name}.png" for name in wanted}
    return {n: file for n, file in files.items() if save_picture(folder / file, wanted[n])}


def panels(study: Study) -> dict[str, list[Condition]]:
    """Groups of conditions, each with clean speech first: kinds of noise, then the user's own."""
    own = {"conditions": [study.clean, *study.others]} if study.others else {}
    return {**study.kinds, **own} or {"clean": [study.clean]}


def width_of(groups: dict[str, list[Condition]]) -> float:
    """Inches; above a single panel there must be room for the title."""
    return max(4.2 * len(groups), 7.5)


def draw_entropy(study: Study) -> "Figure":
    """Mean entropy against layer: a panel a kind of noise, a line a level (figure 2)."""
    from matplotlib import pyplot

    groups = panels(study)
    figure, axes = pyplot.subplots(
        1,
        len(groups),
        figsize=(width_of(groups), 3.4),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    layers = np.arange(1, study.config.num_layers + 1)
    for axis, (kind, conditions) in zip(axes[0], groups.items(), strict=True):
        for condition in conditions:
            mean = condition.entropy.mean(axis=0)
            axis.plot(layers, mean, "o-", markersize=3, linewidth=1, label=condition.level)
        axis.set(title=kind, xlabel="layer")
        axis.legend(fontsize="small")
    axes[0][0].set_ylabel("mean entropy, nats")
    figure.suptitle(f"{study.model} on {study.data}", fontsize="medium")
    return figure


def draw_exits(study: Study, ratio: float) -> "Figure":
    """Violins of exit layers (figure 4): a row a span, a panel a kind of noise.

    Lines are the largest, the mean and the smallest exit layer.
    """
    from matplotlib import pyplot

    groups, rules = panels(study), study.rules[ratio]
    figure, axes = pyplot.subplots(
        len(rules),
        len(groups),
        figsize=(width_of(groups), 2.6 * len(rules) + 0.5),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for row, rule in zip(axes, rules, strict=True):
        for axis, (kind, conditions) in zip(row, groups.items(), strict=True):
            exits = [rule.exits(condition.entropy)[0] for condition in conditions]
            columns = np.arange(len(exits))
            axis.violinplot(exits, columns, widths=0.8, showmeans=True, showextrema=True)
            names = [condition.level for condition in conditions]
            axis.set_xticks(columns, names, fontsize="small")
            axis.set_title(f"{kind}: {rule.name}", fontsize="medium")
            axis.grid(axis="y", linewidth=0.3)
        row[0].set_ylabel("exit layer")
        row[0].set_ylim(0.5, study.config.num_layers + 0.5)
    figure.suptitle(
        f"Ratio {ratio:g}, threshold {rules[0].threshold:.4f} nats from clean "
        f"{study.threshold_from}\n"
        f"{study.model} on {len(study.clean.names)} utterances of {study.data}",
        fontsize="medium",
    )
    return figure


def draw_asr(asr: AsrSection) -> "Figure":
    """Bars by level, a colour a rule (figure 5)."""
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(10, 4.5), layout="constrained")
    width, colors = 0.85 / len(asr.rates), pyplot.get_cmap("tab20")
    for number, (rule, rates) in enumerate(asr.rates):
        for group, estimate in enumerate([*rates.levels, rates.plain, rates.weighted]):
            if estimate is None:
                continue
            value, low, high = (100 * end for end in estimate)
            axis.bar(
                group + (number - (len(asr.rates) - 1) / 2) * width,
                value,
                width,
                yerr=[[max(value - low, 0)], [max(high - value, 0)]],
                color=colors(number % 20),
                error_kw={"elinewidth": 0.6},
                label=rule if group == 0 else None,
            )
    axis.set_xticks(range(len(asr.levels) + 2), [*asr.levels, "plain average", "40/30/20/10"])
    axis.set_ylabel("WER, %")
    axis.set_title(f"{asr.tested_on}: {len(asr.rates)} rules", fontsize="medium")
    figure.legend(loc="outside right upper", fontsize="small")
    return figure
