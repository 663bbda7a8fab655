"""Table 1 and figure 3 of the paper, out of what eval/downstream.py has found.

    python eval/report.py runs/asr-* runs/sid-* runs/se-* runs/ss-* --output runs/report

Collects RUN/evaluation/results.json of each run into report.md (a table a task, and static against
early exit at equal compute), report.json, and figure3.png where matplotlib is installed. The
paper's figures stand beside ours where the whole corpora were used; other rows are marked as those
of a small stand-in, which say nothing about the paper's.
"""

import dataclasses
import json
import pathlib
from typing import Annotated, Any

import tyro

from daisy_jax.errors import InputError
from daisy_jax.terminal import run_command

PAPER = pathlib.Path(__file__).with_name("table1.json")
TITLES = {
    "asr": "Speech recognition",
    "sid": "Speaker identification",
    "se": "Speech enhancement",
    "ss": "Speech separation",
}
TEST_UTTERANCES = {"asr": 2620, "sid": 8251, "se": 824, "ss": 3000}
"""Of the whole test sets: LibriSpeech test-clean, VoxCeleb1, VoiceBank-DEMAND, Libri2Mix."""
LEAST_TRAINING = 2700
"""Utterances; Libri-light's 10 hours, the smallest training set of the benchmarks, has more."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What to collect."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN...")]
    """Run folders that eval/downstream.py has evaluated; others are left out."""
    output: str = ""
    """Folder for report.md, report.json and figure3.png; empty: print only."""


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    results = []
    for run in config.runs:
        path = pathlib.Path(run, "evaluation", "results.json")
        if path.is_file():
            results.append(json.loads(path.read_text(encoding="utf-8")))
        else:
            print(f"left out: {run} has no evaluation; python eval/downstream.py {run}")
    if not results:
        raise InputError("nothing to report; evaluate runs with eval/downstream.py first")
    paper = json.loads(PAPER.read_text(encoding="utf-8"))
    text = "\n".join(
        line
        for task in TITLES
        for line in table(task, [r for r in results if r["task"] == task], paper[task])
    )
    print(text)
    if config.output:
        folder = pathlib.Path(config.output)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.md").write_text(text + "\n", encoding="utf-8")
        content = json.dumps({"results": results, "paper": paper}, indent=2) + "\n"
        (folder / "report.json").write_text(content, encoding="utf-8")
        print(f"written: {folder / 'report.md'}, {folder / 'report.json'}")
        draw(results, paper, folder / "figure3.png")


def is_whole(result: dict[str, Any]) -> bool:
    """Whether the whole corpora were used, as the paper did."""
    return (
        result["utterances"] == TEST_UTTERANCES[result["task"]]
        and result["training_utterances"] >= LEAST_TRAINING
    )


def shown(measures: dict[str, Any], name: str) -> str:
    """A measure as the paper prints it: error rates and accuracies in per cent."""
    scale = 100 if name in ("wer", "accuracy") else 1
    low, high = (scale * end for end in measures[name]["interval"])
    return f"{scale * measures[name]['value']:.2f} ({low:.2f} to {high:.2f})"


def table(task: str, results: list[dict[str, Any]], paper: dict[str, Any]) -> list[str]:
    """Markdown lines of one task: Table 1, then early exit against static exit."""
    if not results:
        return []
    names = [name for name in results[0]["measures"] if name != "error"]
    words = "; ".join(
        f"{name.upper().replace('_', '-')}: {results[0]['measures'][name]}" for name in names
    )
    lines = [f"\n## {TITLES[task]}\n", f"{words}.\n"]
    for result in results:
        kind = "whole corpora" if is_whole(result) else "a SMALL STAND-IN, not the paper's corpora"
        lines.append(
            f"- {result['run']}: preset {result['preset']}, trained with {result['trained']} on "
            f"{result['training_utterances']} utterances of {result['trained_on']}, tested on "
            f"{result['utterances']} of {result['tested_on']}: {kind}"
        )
    head = " | ".join(names)
    lines += [
        f"\n| trained with | rule | {head} | exit layer | forced | multiply-adds saved "
        "| time saved | the paper |",
        "| --- | --- |" + " ---: |" * (len(names) + 5),
    ]
    for result in results:
        if result["unprocessed"]:
            values = " | ".join(f"{result['unprocessed'][name]:.2f}" for name in names)
            lines.append(f"| | the input itself | {values} | | | | | |")
            break
    for result in results:
        for row in result["rows"]:
            cells = " | ".join(shown(row["measures"], name) for name in names)
            time = "" if row["time_saved"] is None else f"{row['time_saved']:.1%}"
            theirs = paper["rows"].get(f"{result['trained']}, {row['rule']}")
            said = "" if theirs is None or not is_whole(result) else theirs
            lines.append(
                f"| {result['trained']} | {row['rule']} | {cells} | {row['mean_exit_layer']:.2f} "
                f"| {row['forced']:.0%} | {row['multiply_adds_saved']:.1%} | {time} | {said} |"
            )
    return lines + equal_compute(results, names)


def equal_compute(results: list[dict[str, Any]], names: list[str]) -> list[str]:
    """Each static exit beside the early exits that cost the same, branches included."""
    lines = []
    for static in results:
        layer = static["trained"].removeprefix("static layer ")
        if layer == static["trained"]:
            continue
        pairs = [(static["trained"], static["rows"][0])]
        pairs += [
            (f"early exit, {result['trained']}", row)
            for result in results
            for row in result["rows"]
            if row["rule"] == f"compute of layer {layer}"
        ]
        lines += [
            f"\nAt the compute of a static exit at layer {layer}, branches included:\n",
            f"| | {' | '.join(names)} | exit layer | multiply-adds saved |",
            "| --- |" + " ---: |" * (len(names) + 2),
        ]
        for name, row in pairs:
            cells = " | ".join(shown(row["measures"], measure) for measure in names)
            lines.append(
                f"| {name} | {cells} | {row['mean_exit_layer']:.2f} "
                f"| {row['multiply_adds_saved']:.1%} |"
            )
    return lines


def draw(results: list[dict[str, Any]], paper: dict[str, Any], path: pathlib.Path) -> None:
    """Figure 3: a measure against the time saved; dots for spans, crosses for static exits."""
    try:
        import matplotlib
    except ImportError:
        print("no picture: pip install 'daisy-jax[plots]'")
        return
    matplotlib.use("agg")
    from matplotlib import pyplot

    tasks = [task for task in TITLES if any(result["task"] == task for result in results)]
    figure, axes = pyplot.subplots(
        1, len(tasks), figsize=(4 * len(tasks), 3.6), layout="constrained", squeeze=False
    )
    for task, axis in zip(tasks, axes[0], strict=True):
        mine = [result for result in results if result["task"] == task]
        name = next(name for name in mine[0]["measures"] if name != "error")
        for result in mine:
            rows = [row for row in result["rows"] if row["time_saved"] is not None]
            spans = [row for row in rows if row["rule"].startswith("span ")] or rows[:1]
            fixed = not spans[0]["rule"].startswith("span ")
            axis.plot(
                [100 * row["time_saved"] for row in spans],
                [row["measures"][name]["value"] for row in spans],
                "kx" if fixed else "o",
                label=result["trained"],
            )
        whole = all(map(is_whole, mine))
        axis.set(
            xlabel="upstream time saved, %",
            ylabel=name.upper().replace("_", "-"),
            title=TITLES[task] + ("" if whole else " (small stand-in)"),
        )
        axis.legend(fontsize="small")
    figure.savefig(path, dpi=150)
    print(f"written: {path}")


if __name__ == "__main__":
    run_command(main)
