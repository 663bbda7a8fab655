"""Figure 5 for eval/noise.py: word error rate by noise level, from evaluated runs."""

import json
import pathlib
from typing import TYPE_CHECKING, Any, NamedTuple

from daisy_jax import InputError
from daisy_jax.console.pages import ranges, table
from daisy_jax.data.noisy_folder import read_log
from daisy_jax.study.level_errors import (
    Estimate,
    LevelSums,
    difference,
    level_names,
    level_sums,
    level_values,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class AsrSection(NamedTuple):
    """Markdown, and the numbers behind it; both empty without runs."""

    lines: list[str]
    results: list[dict[str, Any]]

    def with_picture(self, drawn: dict[str, str]) -> list[str]:
        """The lines with their picture after the heading."""
        if "asr" not in drawn:
            return self.lines
        return [*self.lines[:2], f"![figure 5]({drawn['asr']})", "", *self.lines[2:]]


class Row(NamedTuple):
    """One rule of one run."""

    name: str
    rule: str
    """Threshold and layers, in words."""
    sums: LevelSums
    tested_on: str
    trained_on: str
    static: bool
    """A head that was trained for an exit at one layer."""


def read_run(run: pathlib.Path) -> list[Row]:
    """Rows of a run: its own rule, spans, equal compute; oracles are left out."""
    import pyarrow.parquet

    path = run / "evaluation" / "results.json"
    if not path.is_file():
        raise InputError(f"{run}: not evaluated; python eval/downstream.py {run}")
    result = json.loads(path.read_text(encoding="utf-8"))
    if result["task"] != "asr":
        raise InputError(f"{run}: a run of {result['task']}; figure 5 is about asr")
    if "data" not in result or any("kind" not in row for row in result["rows"]):
        raise InputError(f"{run}: evaluated by an older version; evaluate it again")
    mixtures = read_log(result["data"])
    lines = pyarrow.parquet.read_table(path.with_name("utterances.parquet")).to_pylist()
    found = []
    for row in result["rows"]:
        rule = row["rule"]
        if row["kind"] == "oracle":
            continue
        rows = [line for line in lines if line["rule"] == rule]
        name = rule if row["kind"] == "own" else f"{result['trained']}, {rule}"
        sums = level_sums(rows, mixtures)
        layers = row["allowed"]
        where = f"layer{'s' if len(layers) > 1 else ''} {ranges(layers)}"
        threshold = row["threshold"]
        words = where if threshold is None else f"{where}, threshold {threshold:.4f}"
        static = row["kind"] == "own" and result["settings"]["layer"] is not None
        found.append(Row(name, words, sums, result["tested_on"], result["trained_on"], static))
    return found


def asr_section(runs: list[pathlib.Path]) -> AsrSection:
    """The tables of figure 5."""
    rows = [row for run in runs for row in read_run(run)]
    if not rows:
        return AsrSection([], [])
    for row in rows:
        first = rows[0]
        if (row.tested_on, row.trained_on) != (first.tested_on, first.trained_on) or (
            row.sums.clean,
            row.sums.snrs,
        ) != (first.sums.clean, first.sums.snrs):
            raise InputError(
                f"{row.name}: trained on {row.trained_on} and tested on {row.tested_on}, others on "
                f"{first.trained_on} and {first.tested_on}; give runs of one corpus, evaluated on "
                "the same files"
            )
    static = next((row for row in rows if row.static), None)
    names = level_names(rows[0].sums)
    results: list[dict[str, Any]] = []
    cells = []
    for row in rows:
        found = {
            what: level_values(row.sums, total, weight)
            for what, total, weight in (
                ("wer", "errors", "words"),
                ("exit_layer", "layers", "utterances"),
                ("compute", "spent", "full"),
            )
        }
        apart = None if static in (None, row) else difference(row.sums, static.sums)
        about = {"rule": row.name, "exits": row.rule, "tested_on": row.tested_on, "levels": names}
        results.append({**about, **found, "minus_static": apart})
        cells.append([row.name, *wer_cells(found["wer"]), "" if apart is None else minus(apart)])
    utterances = int(rows[0].sums.utterances.sum())
    header = ["rule", *(f"WER, % at {name}" for name in names), "plain average"]
    header += ["40/30/20/10 average", f"minus {static.name}" if static else "minus static"]
    lines = [
        "## Recognition under mixed noise",
        "",
        f"Trained on {rows[0].trained_on}, {utterances} files of {len(rows[0].sums.clean)} "
        f"utterances of {rows[0].tested_on}. Averages over the levels, plain and weighted with the "
        "paper's mixture. 95 % intervals by bootstrap over utterances, each with all its levels; "
        "the last column is the paired difference of the plain averages.",
        *table(header, cells),
        "Compute: mean exit layer at each level, and multiply-adds saved against full depth, "
        "branches included. Rows are comparable where these are equal; "
        '"compute of layer n" has the threshold at which these files cost as much as that static '
        "exit.",
    ]
    header = ["rule", "exits, nats", *(f"exit layer at {name}" for name in names), "plain average"]
    header += ["multiply-adds saved, plain", "saved, 40/30/20/10"]
    cells = []
    for result in results:
        layers, mean, _ = result["exit_layer"]
        _, plain, weighted = result["compute"]
        cells.append(
            [
                result["rule"],
                result["exits"],
                *(f"{value:.2f}" for value, _, _ in layers),
                f"{mean[0]:.2f}",
                f"{1 - plain[0]:.1%}",
                "" if weighted is None else f"{1 - weighted[0]:.1%}",
            ]
        )
    return AsrSection([*lines, *table(header, cells)], results)


def wer_cells(found: tuple[list[Estimate], Estimate, Estimate | None]) -> list[str]:
    """Per cent with intervals: each level, both averages."""
    levels, plain, weighted = found
    return [
        "" if each is None else "{:.2f} ({:.2f} to {:.2f})".format(*(100 * v for v in each))
        for each in (*levels, plain, weighted)
    ]


def minus(apart: tuple[Estimate, Estimate | None]) -> str:
    """The difference of plain averages, points."""
    return "{:+.2f} ({:+.2f} to {:+.2f})".format(*(100 * value for value in apart[0]))


def draw_asr(asr: AsrSection) -> "Figure":
    """Bars by level, a colour a rule (figure 5)."""
    from matplotlib import pyplot

    results, names = asr.results, asr.results[0]["levels"]
    figure, axis = pyplot.subplots(figsize=(10, 4.5), layout="constrained")
    width, colors = 0.85 / len(results), pyplot.get_cmap("tab20")
    for number, result in enumerate(results):
        levels, plain, weighted = result["wer"]
        for place, each in enumerate([*levels, plain, weighted]):
            if each is None:
                continue
            value, low, high = (100 * number for number in each)
            axis.bar(
                place + (number - (len(results) - 1) / 2) * width,
                value,
                width,
                yerr=[[max(value - low, 0)], [max(high - value, 0)]],
                color=colors(number % 20),
                error_kw={"elinewidth": 0.6},
                label=result["rule"] if place == 0 else None,
            )
    axis.set_xticks(range(len(names) + 2), [*names, "plain average", "40/30/20/10"])
    axis.set_ylabel("WER, %")
    axis.set_title(f"{results[0]['tested_on']}: {len(results)} rules", fontsize="medium")
    figure.legend(loc="outside right upper", fontsize="small")
    return figure
