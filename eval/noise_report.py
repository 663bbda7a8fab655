"""Tables of eval/noise.py."""

import numpy as np

from daisy_jax.console.pages import escaped, ranges, table
from daisy_jax.study.noise_results import EVERY_LAYER, RuleResults, Study
from daisy_jax.study.noise_study import FALLING, LABELS_LOST, MOST_FIRST, MOST_FORCED


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
