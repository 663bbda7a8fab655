"""Tables of eval/noise.py."""

import numpy as np

from daisy_jax.console.pages import ranges, table
from daisy_jax.exits import ExitRule
from daisy_jax.study.noise_results import RuleResults, Study
from daisy_jax.study.noise_study import FALLING, LABELS_LOST, MOST_FIRST, MOST_FORCED


def caption(study: Study, ratio: float, rule: ExitRule) -> str:
    """Data set, ratio, span and threshold, as they stand on every table and picture."""
    where = ranges((np.flatnonzero(rule.allowed) + 1).tolist())
    return (
        f"ratio {ratio:g}, {rule.name} ({where}), threshold {rule.threshold:.4f} nats from clean "
        f"{study.threshold_from}; on {study.data}"
    )


def report(study: Study, results: list[RuleResults], files: dict[str, str]) -> list[str]:
    """Markdown lines, with pictures of these names and files."""
    count = len(study.clean.names)
    lines = [
        "# Noise study",
        "",
        f"Model {study.model}, {study.config.num_layers} layers. {count} clean utterances of "
        f"{study.data}, {study.hours:.2g} h. One threshold a ratio for all conditions, by eq. (3) "
        f"on {study.threshold_utterances} utterances of clean speech, {study.threshold_from}; the "
        "spans come from where those left.",
    ]
    if study.kinds:
        lines.append(
            f"Each utterance has one recording of a kind at all levels (seed {study.seed}; "
            f"{study.level} power of the speech)."
        )
    if study.others:
        folders = (
            f"{condition.kind} ({len(condition.names)} utterances of "
            f"{study.folders[condition.kind]})"
            for condition in study.others
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
    for ratio, rules in study.rules.items():
        lines += [f"### Ratio {ratio:g}", "", *picture(files, f"exits-{ratio:g}")]
        for rule in rules:
            lines += [caption(study, ratio, rule) + ":"]
            lines += exit_table(results_of(results, ratio, rule))
    if study.kinds:
        lines += [
            "## Rank correlation of SNR and exit layer",
            "",
            *correlation_table(study, results),
        ]
    lines += ["## Does the model leave sensibly?", "", *check_tables(study, results)]
    return lines


def picture(files: dict[str, str], name: str) -> list[str]:
    """A picture's line, if it was drawn."""
    return [f"![{name}]({files[name]})", ""] if name in files else []


def results_of(results: list[RuleResults], ratio: float, rule: ExitRule) -> RuleResults:
    """The numbers of one rule."""
    return {(each.ratio, each.span): each for each in results}[ratio, rule.name]


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
    header = ["condition", *map(str, layers), "min / max", "r squared"]
    text = [f"Nats, on {study.data}; r squared of a straight line through the layers' means:"]
    return text + table(header, rows)


def exit_table(rule: RuleResults) -> list[str]:
    """A row a condition."""
    rows = []
    for name, exits in rule.exits.items():
        difference, pairs, later = "", "", exits.later_than_clean
        if later is not None:
            difference = f"{later.value:+.2f}{between(later.low, later.high, '+.2f')}"
            pairs = str(later.pairs) if later.pairs else "none"
        rows.append(
            [
                name,
                str(exits.utterances),
                f"{exits.mean:.2f} ± {exits.standard_deviation:.2f}",
                str(exits.min),
                str(exits.max),
                f"{exits.forced:.0%}",
                difference,
                pairs,
                f"{exits.multiply_adds_saved:.1%}",
                f"{exits.final_labels:.1%}",
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
        f"Spearman's, on {study.data}, threshold from clean {study.threshold_from}; below zero "
        "where noisier speech leaves later. 95 % intervals: bootstrap over utterances, each with "
        "all its levels."
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
    for ratio, rules in study.rules.items():
        rows = []
        for name, checks in results_of(results, ratio, rules[0]).checks.items():
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
