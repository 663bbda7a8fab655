"""Table 1 and figure 3 of the paper, out of what eval/downstream.py has found.

    python eval/report.py runs/asr-* runs/sid-* runs/se-* runs/ss-* --output runs/report

Collects RUN/evaluation of each run into report.md: Table 1 in the paper's layout, then a table a
task with intervals, every rule and the differences to full depth, and static against early exit at
equal compute. Beside it report.json, and figure3.png where matplotlib is installed. The paper's
figures stand beside ours where the set-up is the paper's on the whole corpora; other runs are
marked, with the reasons, and say nothing about the paper's.
"""

# First, so that Ctrl-C ends the program while everything else is loaded.
from daisy_jax import InputError

# isort: split

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import tyro

from daisy_jax.console.pages import escaped, table
from daisy_jax.console.pictures import save_picture
from daisy_jax.console.terminal import run_command, say, shown_after
from daisy_jax.study.evaluated_runs import (
    Evaluated,
    difference,
    input_cells,
    read_evaluation,
    rule_cells,
    rule_header,
)
from daisy_jax.tasks.evaluation import Row
from daisy_jax.tasks.presets import TASKS, read_table1
from daisy_jax.whole_files import json_text, whole_files

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NEARLY = 0.99  # of them: some files are left out for their length


@dataclasses.dataclass(frozen=True)
class Config:
    """What to collect."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN...")]
    """Run folders that eval/downstream.py has evaluated; others are left out."""
    output: str = ""
    """Folder for report.md, report.json and figure3.png; empty: print only."""


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    evaluations: list[Evaluated] = []
    for run in map(pathlib.Path, config.runs):
        evaluated = read_evaluation(run)
        if evaluated is None:
            say(f"left out: {run} has no evaluation; python eval/downstream.py {run}")
        else:
            evaluations.append(evaluated)
    if not evaluations:
        raise InputError(
            f"{' '.join(config.runs)}: nothing to report; evaluate runs with eval/downstream.py "
            "first"
        )
    order = [*TASKS, *(each.result["task"] for each in evaluations)]  # the paper's tasks come first
    by_task = {
        task: [each for each in evaluations if each.result["task"] == task] for task in order
    }
    by_task = {task: runs for task, runs in by_task.items() if runs}
    lines = table1(by_task)
    for runs in by_task.values():
        lines += task_tables(runs)
    text = "\n".join(lines)
    folder = pathlib.Path(config.output)
    with shown_after(text):
        if config.output:
            rows = read_table1().rows
            paper = {task: rows.get(task, {}) for task in by_task}
            results = [each.result for each in evaluations]
            names = [folder / "report.md", folder / "report.json"]
            with whole_files(*names, replaces=[folder / "figure3.png"]) as (markdown, numbers):
                markdown.write_text(text + "\n", encoding="utf-8")
                numbers.write_text(json_text({"results": results, "paper": paper}), "utf-8")
    if config.output:
        say(f"written: {folder / 'report.md'}, {folder / 'report.json'}")
        save_picture(folder / "figure3.png", lambda: draw(by_task))


def differences_from_the_paper(run: Evaluated) -> list[str]:
    """Why a run cannot stand beside the paper's figures; empty if it can."""
    result = run.result
    settings, preset = result["settings"], result["settings"]["settings"]
    if result["whole"] is None:
        return ["a task that the paper does not have"]
    train, test = result["whole"]
    reasons = []
    if result["training_utterances"] < NEARLY * train or result["utterances"] < NEARLY * test:
        counts = f"{result['training_utterances']} training and {result['utterances']} test"
        reasons.append(f"a SMALL STAND-IN for the corpora: {counts} utterances")
    if (result["upstream"]["layers"], result["upstream"]["dim"]) != (12, 768):
        reasons.append("a trunk that is not HuBERT Base's size")
    if settings["preset"] != "superb":
        reasons.append(f"preset {settings['preset']}")
    for name in ("steps", "batch_size", "learning_rate"):
        if settings[name] != preset[name]:
            reasons.append(f"{name} {settings[name]} instead of {preset[name]}")
    return reasons


def is_static(row: Row) -> bool:
    """Whether a row is that of a head which was trained without a threshold."""
    return row["kind"] == "own" and row["threshold"] is None


def is_shown(run: Evaluated, row: Row) -> bool:
    """Whether a row stands in Table 1.

    Spans, certified thresholds, static exits, and heads trained for their compute.
    """
    if run.result["settings"].get("compute_of_layer"):
        return row["kind"] in ("own", "risk")
    return row["kind"] in ("span", "risk") or is_static(row)


def order_of(run: Evaluated) -> tuple[int, float]:
    """The paper's order: large ratios first, then static exits, full depth last."""
    settings = run.result["settings"]
    ratio = settings["ratio"]
    kinds = (
        None if ratio is None else -ratio,
        settings.get("threshold"),  # which earlier versions did not have
        settings.get("compute_of_layer"),
        settings["layer"],
    )
    return next(((n, value) for n, value in enumerate(kinds) if value is not None), (len(kinds), 0))


def table1(by_task: dict[str, list[Evaluated]]) -> list[str]:
    """Markdown lines in the paper's layout: a row a rule, two columns a task."""
    headings, comparable, devices = {}, [], set()
    rows: dict[tuple[tuple[int, float], str], dict[str, list[str]]] = {}
    for task, runs in by_task.items():
        headings[task] = " / ".join(measure.heading for measure in runs[0].measures.values())
        devices |= {run.result["device"] for run in runs}
        if not all(map(differences_from_the_paper, runs)):
            comparable.append(task)
        for run in runs:
            for row in run.result["rows"]:
                if is_shown(run, row):
                    values = (
                        m.printed(row["measures"][n]["value"]) for n, m in run.measures.items()
                    )
                    time = row["time_saved"]
                    saved = "" if time is None else f"{time['value']:.1%}"
                    cells = rows.setdefault((order_of(run), run.label(row)), {})
                    cells[task] = [" / ".join(values), saved]

    def two_a_task(tasks: list[str]) -> list[str]:
        titles = ((f"{task}: {headings[task]}", "time saved") for task in tasks)
        return ["", *(title for pair in titles for title in pair)]

    body = [
        [label, *(cell for task in by_task for cell in cells.get(task, ["", ""]))]
        for (_, label), cells in sorted(rows.items())
    ]
    lines = ["## Table 1", *table(two_a_task([*by_task]), body)]
    lines.append(
        "Time is that of the trunk with its branches, one utterance at a time, against full depth "
        f"without branches in the same run, on {', '.join(sorted(devices))}; {timed_of(by_task)}. "
        "Below, 95 % intervals stand in brackets; those of differences are paired."
    )
    if comparable:
        paper = read_table1()
        lines.append(f"\nThe paper's ({paper.source}; its time is that of the whole loop):")
        body = []
        for label in paper.rows[comparable[0]]:
            entries = [paper.rows[task][label] for task in comparable]
            cells = [c for each in entries for c in (each["measures"], f"{each['time_saved']} %")]
            body.append([label, *cells])
        lines += table(two_a_task(comparable), body)
    return lines


def timed_of(by_task: dict[str, list[Evaluated]]) -> str:
    """Of how many utterances the times are, in words."""
    counts = []
    for task, runs in by_task.items():
        rows = [(row, run.result["utterances"]) for run in runs for row in run.result["rows"]]
        timed = {(row["time_saved"]["utterances"], all_) for row, all_ in rows if row["time_saved"]}
        counts += [f"{count} of {all_} utterances of {task}" for count, all_ in sorted(timed)]
    return f"timed were {', '.join(counts)}" if counts else "nothing was timed"


def task_tables(runs: list[Evaluated]) -> list[str]:
    """Markdown lines of one task: what was run, every rule, equal compute."""
    lines = [f"\n## {escaped(runs[0].result['title'])}\n"]
    for run in runs:
        reasons, result = differences_from_the_paper(run), run.result
        kind = f"not comparable with the paper: {'; '.join(reasons)}" if reasons else "the paper's"
        settings = result["settings"]
        lines.append(
            f"- {escaped(result['run'])}: trained with {escaped(result['trained'])} on "
            f"{escaped(result['trained_on'])} "
            f"({result['training_utterances']} utterances, {settings['steps']} steps of "
            f"{settings['batch_size']}), tested on {escaped(result['tested_on'])} "
            f"({result['utterances']} utterances, {result['hours']:.2g} h); {kind}"
        )
    measures = runs[0].measures
    # Like with like: full depth with eq. 4's LayerNorm, if there is such a run.
    whole = [run for run in runs if run.result["settings"]["full"]]
    full = min(
        whole, key=lambda run: not run.result["settings"].get("normalize", True), default=None
    )
    inputs = [cells for run in runs if (cells := input_cells(measures, run.result))][:1]
    pairs = [(run, row) for run in runs for row in run.result["rows"]]
    lines += rules_table(pairs, full, "full depth's", inputs)
    for name, measure in measures.items():
        count = max(row["measures"][name]["undefined"] for _, row in pairs)
        if count:
            lines.append(f"{measure.title} is undefined for up to {count} utterances.")
    return lines + equal_compute(runs)


def equal_compute(runs: list[Evaluated]) -> list[str]:
    """Each static exit beside the heads trained at a threshold that costs the same."""
    lines = []
    for static in runs:
        layer = static.result["settings"]["layer"]
        if layer is not None:
            pairs = [(static, static.result["rows"][0])]
            for run in runs:
                if run.result["settings"].get("compute_of_layer") == layer:
                    pairs.append((run, run.result["rows"][0]))
            if len(pairs) > 1:
                lines.append(
                    f"\nTrained and tested at the compute of a static exit at layer {layer}, "
                    "branches included (the threshold is chosen on the development set):"
                )
                lines += rules_table(pairs, static, "the static exit's")
    return lines


def rules_table(
    pairs: list[tuple[Evaluated, Row]],
    other: Evaluated | None,
    whose: str,
    inputs: Sequence[list[str]] = (),
) -> list[str]:
    """Rules of some runs, and how far their first measure lies from another run's own rule."""
    measures = pairs[0][0].measures
    apart = f"{next(iter(measures.values())).title} minus {whose}"
    body = [["", *cells, ""] for cells in inputs]
    for run, row in pairs:
        cells = rule_cells(measures, row)
        body.append([run.result["trained"], *cells, difference(run, row, other) if other else ""])
    return table(["trained with", *rule_header(measures), apart], body)


def draw(by_task: dict[str, list[Evaluated]]) -> "Figure":
    """Figure 3: a measure against the time saved; dots for spans, crosses for static exits."""
    from matplotlib import pyplot

    markers = {"mean": "o", "threshold": "s", "min-max": "^"}
    figure, axes = pyplot.subplots(
        1, len(by_task), figsize=(4.2 * len(by_task), 3.8), layout="constrained", squeeze=False
    )
    named = {}
    for runs, axis in zip(by_task.values(), axes[0], strict=True):
        name, measure = next(iter(runs[0].measures.items()))
        for color, run in enumerate(runs):
            for row in run.result["rows"]:
                static = is_static(row)
                marker = ("*" if run.result["settings"]["full"] else "x") if static else None
                if not static and is_shown(run, row):
                    marker = markers.get(str(row["value"]), "D" if row["kind"] == "risk" else "P")
                measured, time = row["measures"][name], row["time_saved"]
                value, (low, high) = measured["value"], measured["interval"]
                if marker is None or time is None or value is None or low is None or high is None:
                    continue
                axis.errorbar(
                    100 * time["value"],
                    measure.scale * value,
                    yerr=[[measure.scale * abs(value - low)], [measure.scale * abs(high - value)]],
                    fmt=marker,
                    color="black" if static else f"C{color}",
                    elinewidth=0.6,
                    label=run.label(row),
                )
        stand_in = " (stand-in)" if any(map(differences_from_the_paper, runs)) else ""
        axis.set(
            xlabel="trunk's time saved, %",
            ylabel=measure.heading,
            title=runs[0].result["title"] + stand_in,
        )
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            named.setdefault(label, handle)
    figure.legend(named.values(), named.keys(), loc="outside right upper", fontsize="small")
    return figure


if __name__ == "__main__":
    run_command(main)
