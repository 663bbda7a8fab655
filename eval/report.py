"""Table 1 and figure 3 of the paper, out of what eval/downstream.py has found.

    python eval/report.py runs/asr-* runs/sid-* runs/se-* runs/ss-* --output runs/report

Collects RUN/evaluation of each run into report.md: Table 1 in the paper's layout, then a table a
task with intervals, every rule and the differences to full depth, and static against early exit at
equal compute. Beside it report.json, and figure3.png where matplotlib is installed. The paper's
figures stand beside ours where the set-up is the paper's on the whole corpora; other runs are
marked, with the reasons, and say nothing about the paper's.
"""

import dataclasses
import json
import pathlib
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from daisy_jax import InputError
from daisy_jax.console.pages import table
from daisy_jax.console.pictures import save_picture
from daisy_jax.console.terminal import run_command
from daisy_jax.tasks.presets import TASKS, paper_rows, paper_source
from daisy_jax.whole_files import write_json, write_text

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
    results = [result for run in config.runs for result in read_results(pathlib.Path(run))]
    if not results:
        raise InputError("nothing to report; evaluate runs with eval/downstream.py first")
    lines = table1(results)
    for task in tasks_of(results):
        lines += task_tables([result for result in results if result["task"] == task])
    text = "\n".join(lines)
    print(text)
    if config.output:
        folder = pathlib.Path(config.output)
        write_text(folder / "report.md", text + "\n")
        kept = [{k: v for k, v in result.items() if k != "utterance_rows"} for result in results]
        paper = {task: paper_rows(task) for task in tasks_of(results)}
        write_json(folder / "report.json", {"results": kept, "paper": paper})
        print(f"written: {folder / 'report.md'}, {folder / 'report.json'}")
        save_picture(folder / "figure3.png", lambda: draw(results))


def read_results(run: pathlib.Path) -> list[dict[str, Any]]:
    """The evaluation of a run with its utterances; none, which is said, if there is none."""
    import pyarrow.parquet

    path = run / "evaluation" / "results.json"
    if not path.is_file():
        print(f"left out: {run} has no evaluation; python eval/downstream.py {run}")
        return []
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        utterances = pyarrow.parquet.read_table(path.with_name("utterances.parquet"))
    except (ValueError, OSError) as error:
        raise InputError(f"{path.parent}: not whole ({error}); evaluate {run} again") from None
    if any("kind" not in row for row in result["rows"]):
        raise InputError(f"{path}: from an older version of daisy_jax; evaluate {run} again")
    result["utterance_rows"] = utterances.to_pylist()
    return [result]


def tasks_of(results: list[dict[str, Any]]) -> list[str]:
    """The tasks of some results: the paper's in its order, then others."""
    order = [*TASKS, *(result["task"] for result in results)]
    there = {result["task"] for result in results}
    return [task for task in dict.fromkeys(order) if task in there]


def differences_from_the_paper(result: dict[str, Any]) -> list[str]:
    """Why a run cannot stand beside the paper's figures; empty if it can."""
    settings = result["settings"]
    preset = settings["settings"]
    if result["whole"] is None:
        return ["a task that the paper does not have"]
    train, test = result["whole"]
    found = []
    if result["training_utterances"] < NEARLY * train or result["utterances"] < NEARLY * test:
        counts = f"{result['training_utterances']} training and {result['utterances']} test"
        found.append(f"a SMALL STAND-IN for the corpora: {counts} utterances")
    if (result["upstream"]["layers"], result["upstream"]["dim"]) != (12, 768):
        found.append("an upstream that is not HuBERT Base's size")
    if settings["preset"] != "superb":
        found.append(f"preset {settings['preset']}")
    for name in ("steps", "batch_size", "learning_rate"):
        if settings[name] != preset[name]:
            found.append(f"{name} {settings[name]} instead of {preset[name]}")
    return found


def scaled(measure: dict[str, Any], value: float | None) -> str:
    """A value as it is printed: error rates, accuracies and STOI in per cent."""
    return "undefined" if value is None else f"{measure['scale'] * value:.2f}"


def heading(measures: dict[str, Any], name: str) -> str:
    """A measure's title with its unit."""
    unit = measures[name]["unit"]
    return measures[name]["title"] + (f", {unit}" if unit else "")


def table1(results: list[dict[str, Any]]) -> list[str]:
    """Markdown lines in the paper's layout: a row a rule, two columns a task."""
    tasks = tasks_of(results)
    rows: dict[tuple, dict[str, list[str]]] = {}
    comparable = set()
    heads = {}
    for result in results:
        task, measures = result["task"], result["measures"]
        heads[task] = " / ".join(heading(measures, name) for name in measures)
        if not differences_from_the_paper(result):
            comparable.add(task)
        for row in result["rows"]:
            if row["kind"] != "span" and not is_static(row):
                continue
            values = (scaled(measures[n], row["measures"][n]["value"]) for n in measures)
            time = row["time_saved"]
            saved = "" if time is None else f"{time['value']:.1%}"
            cells = rows.setdefault((order_of(result), label_of(result, row)), {})
            cells[task] = [" / ".join(values), saved]
    lines = ["## Table 1"]
    body = []
    for (_, label), cells in sorted(rows.items()):
        body.append([label, *(cell for task in tasks for cell in cells.get(task, ["", ""]))])
    lines += table(table1_header(tasks, heads), body)
    lines.append(
        "Time is that of the upstream alone, one utterance at a time, against full depth without "
        "branches in the same run, on " + ", ".join(sorted({r["device"] for r in results})) + "."
    )
    if comparable:
        lines.append(f"\nThe paper's ({paper_source()}; its time is that of the whole loop):")
        kept = [task for task in tasks if task in comparable]
        body = []
        for label in paper_rows(kept[0]):
            entries = [paper_rows(task)[label] for task in kept]
            cells = [
                c for entry in entries for c in (entry["measures"], f"{entry['time_saved']} %")
            ]
            body.append([label.removesuffix(", full depth"), *cells])
        lines += table(table1_header(kept, heads), body)
    return lines


def table1_header(tasks: list[str], heads: dict[str, str]) -> list[str]:
    """Two columns a task."""
    return ["", *(cell for task in tasks for cell in (f"{task}: {heads[task]}", "time saved"))]


def is_static(row: dict[str, Any]) -> bool:
    """Whether a row is that of a head which was trained without a threshold."""
    return row["kind"] == "own" and row["threshold"] is None


def label_of(result: dict[str, Any], row: dict[str, Any]) -> str:
    """What a run and a rule are called together."""
    return result["trained"] if row["kind"] == "own" else f"{result['trained']}, {row['rule']}"


def order_of(result: dict[str, Any]) -> tuple[int, float]:
    """The paper's order: large ratios first, then static exits, full depth last."""
    settings = result["settings"]
    if settings["full"]:
        return 2, 0
    layer, ratio = settings["layer"], settings["ratio"]
    return (0, -ratio) if layer is None else (1, layer)


def task_tables(results: list[dict[str, Any]]) -> list[str]:
    """Markdown lines of one task: what was run, every rule, equal compute."""
    if not results:
        return []
    lines = [f"\n## {results[0]['title']}\n"]
    for result in results:
        reasons = differences_from_the_paper(result)
        kind = f"not comparable with the paper: {'; '.join(reasons)}" if reasons else "the paper's"
        settings = result["settings"]
        lines.append(
            f"- {result['run']}: trained with {result['trained']} on {result['trained_on']} "
            f"({result['training_utterances']} utterances, {settings['steps']} steps of "
            f"{settings['batch_size']}), tested on {result['tested_on']} "
            f"({result['utterances']} utterances, {result['hours']:.2g} h); {kind}"
        )
    measures, first = results[0]["measures"], next(iter(results[0]["measures"]))
    full = next((result for result in results if result["settings"]["full"]), None)
    title = measures[first]["title"]
    header = ["trained with", "rule", *(f"{heading(measures, name)} (95 %)" for name in measures)]
    header += [f"{title} minus full depth's (95 %, paired)", "exit layer", "forced"]
    header += ["multiply-adds saved", "time saved (95 %)", "multiply-adds saved there"]
    body = []
    inputs = next((result["unprocessed"] for result in results if result["unprocessed"]), None)
    if inputs:
        values = (scaled(measures[name], inputs[name]) for name in measures)
        body.append(["", "the input itself", *values, *[""] * 6])
    for result in results:
        for row in result["rows"]:
            body.append(
                [
                    result["trained"],
                    row["rule"],
                    *with_intervals(measures, row),
                    "" if full is None else difference(first, result, row, full),
                    f"{row['mean_exit_layer']:.2f}",
                    "" if row["forced"] is None else format(row["forced"], ".0%"),
                    f"{row['multiply_adds_saved']:.1%}",
                    *time_cells(row),
                ]
            )
    lines += table(header, body)
    for name in measures:
        count = max(r["measures"][name]["undefined"] for result in results for r in result["rows"])
        if count:
            lines.append(f"{measures[name]['title']} is undefined for up to {count} utterances.")
    return lines + equal_compute(results, first)


def with_intervals(measures: dict[str, Any], row: dict[str, Any]) -> list[str]:
    """The cells of a row's measures."""
    cells = []
    for name, measure in measures.items():
        value, (low, high) = row["measures"][name]["value"], row["measures"][name]["interval"]
        ends = f"{scaled(measure, low)} to {scaled(measure, high)}"
        cells.append(f"{scaled(measure, value)} ({ends})")
    return cells


def time_cells(row: dict[str, Any]) -> list[str]:
    """Time saved, and multiply-adds saved on the same utterances."""
    time = row["time_saved"]
    if time is None:
        return ["", ""]
    low, high = time["interval"]
    return [
        f"{time['value']:.1%} ({low:.1%} to {high:.1%})",
        f"{time['multiply_adds_saved']:.1%}",
    ]


def difference(
    name: str, result: dict[str, Any], row: dict[str, Any], other: dict[str, Any]
) -> str:
    """A row's measure minus that of another run's own rule, on the utterances of both."""
    import numpy as np

    from daisy_jax.tasks.metrics import paired_interval

    def by_id(result: dict[str, Any], rule: str) -> dict[str, tuple[float, float]]:
        found = {}
        for line in result["utterance_rows"]:
            total = line[f"{name}_total"]
            if line["rule"] == rule and total is not None and np.isfinite(total):
                found[line["id"]] = (total, line[f"{name}_weight"])
        return found

    ours, theirs = by_id(result, row["rule"]), by_id(other, other["rows"][0]["rule"])
    both = sorted(ours.keys() & theirs.keys())
    if not both:
        return ""
    pairs = [np.asarray([values[id] for id in both]).T for values in (ours, theirs)]
    sides = [(totals, weights) for totals, weights in pairs]
    value = np.subtract(*[totals.sum() / max(weights.sum(), 1e-9) for totals, weights in sides])
    low, high = paired_interval(sides[0], sides[1])
    scale = result["measures"][name]["scale"]
    return f"{scale * value:+.2f} ({scale * low:+.2f} to {scale * high:+.2f})"


def equal_compute(results: list[dict[str, Any]], first: str) -> list[str]:
    """Each static exit beside the early exits that cost the same, branches included."""
    lines = []
    for static in results:
        layer = static["settings"]["layer"]
        if layer is None:
            continue
        measures = static["measures"]
        title = measures[first]["title"]
        header = ["", *(f"{heading(measures, name)} (95 %)" for name in measures)]
        header += [f"{title} minus the static exit's (95 %, paired)", "exit layer"]
        header += ["multiply-adds saved", "time saved (95 %)", "multiply-adds saved there"]
        rows = [(static["trained"], static, static["rows"][0])]
        rows += [
            (f"early exit, trained with {result['trained']}", result, row)
            for result in results
            for row in result["rows"]
            if row["kind"] == "compute" and row["value"] == layer
        ]
        body = []
        for label, result, row in rows:
            apart = "" if result is static else difference(first, result, row, static)
            exit_layer, saved = f"{row['mean_exit_layer']:.2f}", f"{row['multiply_adds_saved']:.1%}"
            intervals = with_intervals(measures, row)
            body.append([label, *intervals, apart, exit_layer, saved, *time_cells(row)])
        lines.append(f"\nAt the compute of a static exit at layer {layer}, branches included:")
        lines += table(header, body)
    return lines


def draw(results: list[dict[str, Any]]) -> "Figure":
    """Figure 3: a measure against the time saved; dots for spans, crosses for static exits."""
    from matplotlib import pyplot

    markers = {"mean": "o", "threshold": "s", "min-max": "^"}
    tasks = tasks_of(results)
    figure, axes = pyplot.subplots(
        1, len(tasks), figsize=(4.2 * len(tasks), 3.8), layout="constrained", squeeze=False
    )
    for task, axis in zip(tasks, axes[0], strict=True):
        mine = [result for result in results if result["task"] == task]
        measures, name = mine[0]["measures"], next(iter(mine[0]["measures"]))
        for color, result in enumerate(mine):
            for row in result["rows"]:
                own = is_static(row)
                marker = ("*" if result["settings"]["full"] else "x") if own else None
                if row["kind"] == "span":
                    marker = markers[row["value"]]
                value = row["measures"][name]
                if marker is None or row["time_saved"] is None or value["value"] is None:
                    continue
                scale = measures[name]["scale"]
                below, above = (abs(value["value"] - end) for end in value["interval"])
                axis.errorbar(
                    100 * row["time_saved"]["value"],
                    scale * value["value"],
                    yerr=[[scale * below], [scale * above]],
                    fmt=marker,
                    color="black" if own else f"C{color}",
                    elinewidth=0.6,
                    label=result["trained"] + ("" if own else f", {row['value']}"),
                )
        stand_in = any(differences_from_the_paper(result) for result in mine)
        axis.set(
            xlabel="upstream time saved, %",
            ylabel=heading(measures, name),
            title=mine[0]["title"] + (" (stand-in)" if stand_in else ""),
        )
    named = {}
    for axis in axes[0]:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            named.setdefault(label, handle)
    figure.legend(named.values(), named.keys(), loc="outside right upper", fontsize="small")
    return figure


if __name__ == "__main__":
    run_command(main)
