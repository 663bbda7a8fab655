"""Pictures of eval/noise.py: figures 2, 4 and 5."""

import pathlib
from typing import TYPE_CHECKING

import numpy as np
from noise_asr import AsrSection

from daisy_jax.console.pictures import save_picture
from daisy_jax.study.noise_results import Study
from daisy_jax.study.noise_study import Condition

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
