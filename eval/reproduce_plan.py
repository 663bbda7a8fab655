"""What eval/reproduce.py would run: inputs that are missing, commands, hours, disk."""

import json
import pathlib
import subprocess
import sys
import tempfile

from daisy_jax.console.pages import table
from daisy_jax.console.terminal import say
from daisy_jax.study.reproduction import ROOT, Input, Places, Scale, Step
from daisy_jax.study.step_runner import command_of

TRUNK = ("sid", "all layers")
"""The step that stands for a pass through the trunk: besides it there is next to nothing."""


def expected_hours(steps: list[Step], scale: Scale, places: Places) -> dict[str, float | None]:
    """Hours of each step on this device, by its name; None where no device decides.

    They come from single training steps with random weights (benchmarks/stage2.py), times the audio
    that passes through.
    """
    measured = {step.name: measured_as(step) for step in steps if step.cost.way}
    ways: dict[str, set[str]] = {}
    for task, way in measured.values():
        ways.setdefault(task, set()).add(way)
    costs: dict[tuple[str, str], float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for task in sorted(ways):
            say(f"measuring a training step of {task}", to_stderr=True)
            result = pathlib.Path(folder) / f"{task}.json"
            for way, cost in cost_of(task, sorted(ways[task]), scale, places, result).items():
                costs[task, way] = cost
    return {
        step.name: step.cost.seconds * costs[measured[step.name]] / 3600
        if measured.get(step.name) in costs
        else None
        for step in steps
    }


def measured_as(step: Step) -> tuple[str, str]:
    """The task and the way of the training step that tells what a step takes."""
    return TRUNK if step.cost.way == "forward" else (step.cost.task, step.cost.way)


def cost_of(
    task: str, ways: list[str], scale: Scale, places: Places, result: pathlib.Path
) -> dict[str, float]:
    """Seconds of this device for a second of audio, by way; none where it cannot be measured."""
    batch, length = (1, 4.0) if places.on_cpu else (8, 8.0)
    words = [sys.executable, str(ROOT / "benchmarks" / "stage2.py"), f"--tasks={task}"]
    words += ["--ways", *ways, f"--size={scale.size}", f"--preset={scale.preset}"]
    words += [f"--batch={batch}", f"--seconds={length}", "--runs=1", f"--output={result}"]
    words += [f"--accelerator={places.accelerator}"]
    words += [] if places.on_cpu else ["--dtype=bfloat16"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        say(f"nothing could be measured: {reason}", to_stderr=True)
        return {}
    seconds = json.loads(result.read_text(encoding="utf-8"))["seconds"][task]
    return {way: taken / (batch * length) for way, taken in seconds.items()}


def plan_lines(
    steps: list[Step], hours: dict[str, float | None], output: pathlib.Path, device: str
) -> list[str]:
    """Inputs, then a row a step with its command, then sums."""
    inputs: dict[pathlib.Path, Input] = {each.path: each for step in steps for each in step.inputs}
    lines = ["## Inputs"]
    lines += table(
        ["input", "there", "where it comes from"],
        [[str(p), "yes" if p.exists() else "MISSING", each.source] for p, each in inputs.items()],
    )
    lines += ["## Steps", ""]
    body = []
    for number, step in enumerate(steps, 1):
        expected = hours[step.name]
        took = "" if expected is None else rounded(expected)
        body.append([str(number), step.name, took, rounded(step.cost.gigabytes)])
        lines.append(f"{number}. `{command_of(step)}`")
    lines += table(["step", "name", "hours", "GB"], body)
    total = sum(each for each in hours.values() if each is not None)
    disk = sum(step.cost.gigabytes for step in steps)
    lines.append(
        f"About {rounded(total)} hours on {device}, by single steps of random weights that were "
        f"measured there, and {rounded(disk)} GB below {output}."
    )
    return lines


def rounded(value: float) -> str:
    """Two digits, without an exponent: 45,000."""
    return f"{float(f'{value:.2g}'):,.10g}"
