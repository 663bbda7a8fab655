"""The page of eval/reproduce.py: our numbers beside the paper's, and where each comes from."""

import pathlib
import re
import time
from typing import Any

from daisy_jax.console.pages import escaped, html_page, table
from daisy_jax.study.reproduction import Step
from daisy_jax.study.step_runner import Runner, command_of
from daisy_jax.tasks.presets import TASKS, read_table1
from daisy_jax.whole_files import read_json, whole_files


def write_page(output: pathlib.Path, steps: list[Step], runner: Runner, *, stand_in: bool) -> None:
    """Writes OUTPUT/report.md and OUTPUT/report.html out of what the steps have made.

    With `stand_in` the page says that its numbers are not the paper's.
    """
    lines = ["# DAISY, reproduced", ""]
    lines += origin(output, steps, stand_in)
    lines += table1(output / "table1")
    lines += figure2(output / "figure2")
    lines += figure4(output / "figure4")
    lines += figure5(output / "figure5")
    lines += commands(steps, runner)
    text = "\n".join(lines) + "\n"
    shown = re.findall(r"\]\((\w+/[\w.-]+\.png)\)", text)
    page = html_page("DAISY, reproduced", text, output, shown)
    with whole_files(output / "report.md", output / "report.html") as (markdown, html):
        markdown.write_text(text, encoding="utf-8")
        html.write_text(page, encoding="utf-8")


def origin(output: pathlib.Path, steps: list[Step], stand_in: bool) -> list[str]:
    """Device, versions, seeds, and whether these can be the paper's numbers."""
    configs = [
        content_of(step.run / "config.json")
        for step in steps
        if step.run is not None and (step.run / "config.json").is_file()
    ]
    lines = [f"Written on {time.strftime('%Y-%m-%d')} into {escaped(output.name)}."]
    if configs:
        versions = configs[-1].get("versions", {})
        named = ", ".join(f"{n} {version}" for n, version in versions.items() if n != "command")
        seeds = sorted({str(config.get("seed")) for config in configs})
        lines.append(f"Seeds: {', '.join(seeds)}. The last training ran with {escaped(named)}.")
    if stand_in:
        lines.append(
            "\n**A stand-in**: a small model, small corpora or few steps. It shows that everything "
            "runs and comes out where it should, and **says nothing about the paper's figures**."
        )
    return [*lines, ""]


def table1(folder: pathlib.Path) -> list[str]:
    """A table a task with the paper's numbers and differences, then eval/report.py's own tables."""
    lines = ["## Table 1 and figure 3"]
    if not (folder / "report.json").is_file():
        return [*lines, "", "Not made.", ""]
    results = content_of(folder / "report.json")["results"]
    paper = read_table1()
    for task in TASKS:
        runs = [result for result in results if result["task"] == task]
        if not runs:
            continue
        measures = list(runs[0]["measures"].values())
        heading = " / ".join(measure["title"] for measure in measures)
        body = []
        for label, theirs in paper.rows[task].items():
            ours = row_of(runs, label)
            if ours is None:
                body.append(
                    [label, "not made", theirs["measures"], "", "", theirs["time_saved"], ""]
                )
                continue
            values = [
                ours["measures"][name]["value"]
                and ours["measures"][name]["value"] * fields["scale"]
                for name, fields in runs[0]["measures"].items()
            ]
            printed = [number.strip() for number in theirs["measures"].split("/")]
            time_saved = ours["time_saved"] and 100 * ours["time_saved"]["value"]
            body.append(
                [
                    label,
                    " / ".join(map(number_of, values)),
                    theirs["measures"],
                    " / ".join(map(apart, values, printed)),
                    number_of(time_saved),
                    theirs["time_saved"],
                    apart(time_saved, theirs["time_saved"]),
                ]
            )
        header = [f"{task}: {heading}", "ours", "paper", "difference"]
        lines += table([*header, "time saved, %", "paper", "difference"], body)
    lines.append(
        f"The paper's: {paper.source}. Its time is that of the whole loop, ours the trunk's with "
        "its branches."
    )
    if (folder / "figure3.png").is_file():
        lines += ["", "![figure 3](table1/figure3.png)"]
    text = (folder / "report.md").read_text(encoding="utf-8")
    return [*lines, "", *inside(text, "table1", "All rules, with intervals"), ""]


def row_of(runs: list[dict[str, Any]], label: str) -> dict[str, Any] | None:
    """The row of a rule as Table 1 names it: "ratio 1, span mean"."""
    for run in runs:
        for row in run["rows"]:
            name = run["trained"] if row["kind"] == "own" else f"{run['trained']}, {row['rule']}"
            if name == label:
                return row
    return None


def figure2(folder: pathlib.Path) -> list[str]:
    """Mean entropies by layer."""
    lines = ["## Figure 2"]
    if not (folder / "entropy.json").is_file():
        return [*lines, "", "Not made.", ""]
    sets = content_of(folder / "entropy.json")["sets"]
    layers = [str(layer + 1) for layer in range(len(sets[0]["mean_entropy"]))]
    body = [
        [
            each["name"],
            *(f"{value:.3f}" for value in each["mean_entropy"]),
            f"{each['slope']:.4f}",
            f"{each['r_squared']:.3f}",
        ]
        for each in sets
    ]
    lines += table(["mean entropy, nats, at layer", *layers, "slope", "r squared"], body)
    lines.append(
        "The paper prints no numbers: entropies fall with depth, surprisingly linearly, and "
        "noisier data sets lie higher (section 3.2)."
    )
    if (folder / "entropy.png").is_file():
        lines += ["", "![figure 2](figure2/entropy.png)"]
    return [*lines, ""]


def figure4(folder: pathlib.Path) -> list[str]:
    """The noise study."""
    lines = ["## Figure 4", ""]
    if not (folder / "report.md").is_file():
        return [*lines, "Not made.", ""]
    lines.append(
        "The paper prints no numbers: the lower the signal-to-noise ratio, the later the exits "
        "(section 4.2)."
    )
    text = (folder / "report.md").read_text(encoding="utf-8")
    return [*lines, "", *inside(text, "figure4", "The noise study"), ""]


def figure5(folder: pathlib.Path) -> list[str]:
    """Word error rates under mixed noise; the paper prints their averages."""
    lines = ["## Figure 5"]
    if not (folder / "report.md").is_file():
        return [*lines, "", "Not made.", ""]
    body = []
    for rule in content_of(folder / "results.json")["asr"]:
        name = rule["rule"]
        span = re.sub(r"^ratio \S+, span ", "", name)
        theirs = read_table1().average_wer.get(span, "")
        plain, weighted = (
            100 * value[0] if value else None for value in (rule["wer"][1], rule["wer"][2])
        )
        cells = [number_of(plain), number_of(weighted), theirs]
        body.append([name, *cells, apart(plain, theirs), apart(weighted, theirs)])
    header = ["average WER, %", "plain", "40/30/20/10", "paper"]
    lines += table([*header, "plain minus paper", "40/30/20/10 minus paper"], body)
    lines.append("The paper does not say which of the two averages it prints, nor for which ratio.")
    text = (folder / "report.md").read_text(encoding="utf-8")
    section = text[text.index("## Recognition") :] if "## Recognition" in text else ""
    return [*lines, "", *inside(section, "figure5", "By level, with intervals"), ""]


def commands(steps: list[Step], runner: Runner) -> list[str]:
    """Every step with its command, its hours and what became of it."""
    lines = ["## Where every number comes from", ""]
    body = []
    for step in steps:
        record = runner.record(step)
        lines += [f"- {step.name}: `{command_of(step)}`"]
        hours = "" if record is None else f"{record['seconds'] / 3600:.2f}"
        done = "done" if runner.is_done(step, steps) else "not done"
        body.append([step.name, hours, done])
    return [*lines, *table(["step", "hours", "state"], body)]


def inside(text: str, folder: str, title: str) -> list[str]:
    """A report's lines as a part of this page.

    Its first heading is `title` at the third level, the others follow, pictures are in its folder.
    Nothing where there is no report.
    """
    if not text:
        return []
    first, *rest = text.splitlines()
    level = len(first) - len(first.lstrip("#"))
    deeper = "#" * (3 - level)
    lines = [deeper + line if line.startswith("#") else line for line in rest]
    shown = [re.sub(r"\]\(([\w.-]+\.png)\)", rf"]({folder}/\1)", line) for line in lines]
    return [f"### {title}", *shown]


def content_of(path: pathlib.Path) -> dict[str, Any]:
    """A JSON file that one of our commands wrote."""
    return read_json(path, dict[str, Any], "remove the folder, and its step is run again")


def number_of(value: float | None) -> str:
    """With two decimals; nothing where it is not defined."""
    return "" if value is None else f"{value:.2f}"


def apart(ours: float | None, theirs: str) -> str:
    """Ours minus the paper's, which is printed."""
    return "" if ours is None or not theirs else f"{ours - float(theirs):+.2f}"
