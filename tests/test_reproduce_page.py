"""The page and the plan of a reproduction, out of results that are made up here."""

import json
import pathlib
import re
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
sys.path.append(str(ROOT / "eval"))

import reproduce_page
import reproduce_plan

from daisy_jax.study.reproduction import SCALES, Cost, Input, Places, Step
from daisy_jax.study.reproduction_steps import all_steps
from daisy_jax.study.step_runner import Runner
from daisy_jax.tasks.presets import TASKS, make_task, read_preset, read_table1


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def rows_of(lines):
    """Cells of a page's tables, by the first cell of a row."""
    cells = [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if "|" in line
    ]
    return {row[0].strip().replace("\\", ""): row[1:] for row in cells}


# ---- the page ----


def run_of(task, trained, *rows):
    """What eval/report.py stores of a run: rows of (kind, rule, values, time saved)."""
    measures = make_task(task, read_preset(task, "superb")).measures
    return {
        "task": task,
        "trained": trained,
        "measures": {
            name: {"title": each.title, "unit": each.unit, "scale": each.scale}
            for name, each in measures.items()
        },
        "rows": [
            {
                "kind": kind,
                "rule": rule,
                "measures": {
                    name: {"value": value} for name, value in zip(measures, values, strict=True)
                },
                "time_saved": None if saved is None else {"value": saved},
            }
            for kind, rule, values, saved in rows
        ],
    }


REPORT = "## Table 1\n\nall rows\n\n## Speech recognition\n\n- one\n"


def test_every_row_of_table_1_stands_beside_the_papers(tmp_path):
    results = [
        run_of(
            "asr",
            "ratio 1",
            ("own", "ratio 1", [0.5], 0.4),
            ("span", "span mean", [0.1], 0.25),
            ("span", "span min-max", [None], None),
        ),
        run_of("asr", "full depth, no LayerNorm", ("own", "full depth, no LayerNorm", [0.0650], 0)),
        run_of("se", "ratio 0.7", ("span", "span threshold", [2.5, 0.9], 0.3)),
    ]
    write(tmp_path / "report.json", {"results": results})
    write(tmp_path / "report.md", REPORT)
    (tmp_path / "figure3.png").write_bytes(b"")
    lines = reproduce_page.table1(tmp_path)
    paper = read_table1().rows
    begins = [number for number, line in enumerate(lines) if line.startswith(("| asr", "| se"))]
    assert len(begins) == 2  # nothing of tasks without a run
    asr, se = rows_of(lines[begins[0] : begins[1]]), rows_of(lines[begins[1] :])
    assert set(paper["asr"]) <= set(asr)
    # Numbers of the paper, by hand: 15.45 % and 21.63 %, 6.42 and 0, 2.59 / 94.0 and 25.03.
    assert asr["ratio 1, span mean"] == ["10.00", "15.45", "-5.45", "25.00", "21.63", "+3.37"]
    full = asr["full depth, no LayerNorm"]
    assert full == ["6.50", "6.42", "+0.08", "0.00", "0", "+0.00"]
    assert asr["ratio 1, span min-max"] == ["", "15.43", "", "", "18.99", ""]
    assert asr["ratio 0.7, span mean"] == ["not made", "6.96", "", "", "4.98", ""]
    row = ["2.50 / 90.00", "2.59 / 94.0", "-0.09 / -4.00", "30.00", "25.03", "+4.97"]
    assert se["ratio 0.7, span threshold"] == row
    assert "![figure 3](table1/figure3.png)" in lines


def test_every_row_of_the_paper_is_made_by_some_rule(tmp_path):
    """Rules of the reproduction are called as the paper's table calls them."""
    places = Places(tmp_path, "hubert.pt", tmp_path / "out", "cpu", on_cpu=True)
    heads = [
        step.arguments
        for step in all_steps(places, SCALES["paper"])
        if step.script == "train/downstream.py"
    ]
    for task in TASKS:
        for label in read_table1().rows[task]:
            rule = label.partition(", ")[0]
            options = ("--full", "--no-normalize")
            if rule.startswith("ratio"):
                options = (f"--ratio={rule.removeprefix('ratio ')}",)
            assert any({f"--task={task}", *options} <= set(each) for each in heads), label


def test_figure_2_has_a_row_a_set(tmp_path):
    sets = [
        {"name": "asr", "mean_entropy": [0.75, 0.25], "slope": -0.5, "r_squared": 1.0},
        {"name": "a|b", "mean_entropy": [0.5, 0.4], "slope": -0.1, "r_squared": 0.9},
    ]
    write(tmp_path / "entropy.json", {"sets": sets})
    lines = reproduce_page.figure2(tmp_path)
    assert rows_of(lines)["asr"] == ["0.750", "0.250", "-0.5000", "1.000"]
    assert any(line.startswith(r"| a\|b | 0.500 |") for line in lines)
    assert not any("png" in line for line in lines)  # it was not drawn


def test_figure_5_stands_beside_the_papers_averages(tmp_path):
    rules = [
        {"rule": "ratio 1, span mean", "wer": [[], [0.3, 0.2, 0.4], [0.25, 0.2, 0.3]]},
        {"rule": "static layer 6", "wer": [[], [0.2, 0.1, 0.3], None]},
        {"rule": "the compute of layer 6", "wer": [[], [0.2, 0.1, 0.3], [0.2, 0.1, 0.3]]},
    ]
    write(tmp_path / "results.json", {"asr": rules})
    write(
        tmp_path / "report.md",
        "# Noise study\n\n## Exit layers\n\nno\n\n## Recognition under mixed noise\n\nyes\n",
    )
    lines = reproduce_page.figure5(tmp_path)
    found = rows_of(lines)
    assert found["ratio 1, span mean"] == ["30.00", "25.00", "20.67", "+9.33", "+4.33"]
    assert found["static layer 6"] == ["20.00", "", "26.1", "-6.10", ""]
    assert found["the compute of layer 6"] == ["20.00", "20.00", "", "", ""]
    assert "no" not in lines
    assert "yes" in lines


def test_what_was_not_made_is_said(tmp_path):
    for part in ("table1", "figure2", "figure4", "figure5"):
        assert "Not made." in getattr(reproduce_page, part)(tmp_path)


def test_a_whole_page_has_every_heading_once_and_in_its_place(tmp_path):
    made = tmp_path / "made"
    step = Step("a", "it.py", (), (made,), run=tmp_path / "run")
    write(tmp_path / "run" / "config.json", {"seed": 3, "versions": {"jax": "0.1", "command": "x"}})
    write(tmp_path / "table1" / "report.json", {"results": []})
    write(tmp_path / "table1" / "report.md", REPORT)
    study = "# Noise study\n\n## Exit layers\n\n### Ratio 1\n\n![exits](exits-1.png)\n"
    write(tmp_path / "figure4" / "report.md", study)
    (tmp_path / "figure4" / "exits-1.png").write_bytes(b"picture")
    runner = Runner(tmp_path, lambda line: None)
    write(
        tmp_path / "steps" / "a.json", {"command": "python it.py", "seconds": 5400, "finished": 1}
    )
    reproduce_page.write_page(tmp_path, [step], runner, stand_in=True)
    text = (tmp_path / "report.md").read_text()
    headings = re.findall(r"^#+ .*$", text, re.MULTILINE)
    assert headings == [
        "# DAISY, reproduced",
        "## Table 1 and figure 3",
        "### All rules, with intervals",
        "### Speech recognition",
        "## Figure 2",
        "## Figure 4",
        "### The noise study",
        "#### Exit layers",
        "##### Ratio 1",
        "## Figure 5",
        "## Where every number comes from",
    ]
    assert "Seeds: 3. The last training ran with jax 0.1." in text
    assert "A stand-in" in text
    assert rows_of(text.splitlines())["a"] == ["1.50", "not done"]  # what it makes is gone
    page = (tmp_path / "report.html").read_text()
    assert "<code>python it.py</code>" in page
    assert 'src="data:image/png;base64,cGljdHVyZQ=="' in page
    made.touch()
    reproduce_page.write_page(tmp_path, [step], runner, stand_in=False)
    text = (tmp_path / "report.md").read_text()
    assert rows_of(text.splitlines())["a"] == ["1.50", "done"]
    assert "A stand-in" not in text


# ---- the plan ----


@pytest.mark.parametrize("on_cpu", [True, False])
@pytest.mark.parametrize("name", SCALES)
def test_only_the_ways_that_steps_take_are_measured(tmp_path, monkeypatch, name, on_cpu):
    places = Places(tmp_path, "hubert.pt", tmp_path / "out", "cpu", on_cpu)
    steps, scale = all_steps(places, SCALES[name]), SCALES[name]
    asked = {}

    def cost_of(task, ways, scale, places, result):
        asked[task] = ways
        return dict.fromkeys(ways, 0.5)

    monkeypatch.setattr(reproduce_plan, "cost_of", cost_of)
    hours = reproduce_plan.expected_hours(steps, scale, places)
    live = ["all layers", "with exits"]
    stored = {task: ["stored features"] for task in TASKS} | {"sid": live}
    assert asked == (stored if on_cpu else dict.fromkeys(TASKS, live))
    for step in steps:
        wanted = step.cost.seconds * 0.5 / 3600 if step.cost.way else None
        assert hours[step.name] == wanted


def test_a_plan_without_measurements_has_no_hours(tmp_path, monkeypatch):
    places = Places(tmp_path, "hubert.pt", tmp_path / "out", "cpu", on_cpu=True)
    steps = all_steps(places, SCALES["paper"])
    monkeypatch.setattr(reproduce_plan, "cost_of", lambda *arguments: {})
    hours = reproduce_plan.expected_hours(steps, SCALES["paper"], places)
    assert set(hours.values()) == {None}


def test_a_plan_names_inputs_commands_hours_and_disk(tmp_path):
    there = tmp_path / "there"
    there.touch()
    inputs = (Input(there, "here"), Input(tmp_path / "gone", "elsewhere"))
    steps = [
        Step("a", "it.py", ("--x=1 2",), (), inputs=inputs, cost=Cost("forward", "", 9, 0.5)),
        Step("b", "it.py", (), (), ("a",), inputs[:1], cost=Cost("", "", 0, 1234)),
    ]
    lines = reproduce_plan.plan_lines(steps, {"a": 45_123.0, "b": None}, tmp_path, "a device")
    found = rows_of(lines)
    assert found[str(there)] == ["yes", "here"]
    assert found[str(tmp_path / "gone")] == ["MISSING", "elsewhere"]
    assert "1. `python it.py '--x=1 2'`" in lines
    assert found["1"] == ["a", "45,000", "0.5"]
    assert found["2"] == ["b", "", "1,200"]
    assert lines[-1].startswith("About 45,000 hours on a device, by single steps")
    assert lines[-1].endswith(f"and 1,200 GB below {tmp_path}.")
