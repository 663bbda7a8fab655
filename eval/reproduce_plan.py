"""What eval/reproduce.py would run: inputs that are missing, commands, hours, disk."""

import json
import pathlib
import subprocess
import sys

from daisy_jax.console.pages import table
from daisy_jax.console.terminal import say
from daisy_jax.study.reproduction import ROOT, Input, Places, Scale, Step
from daisy_jax.study.step_runner import command_of

MEASURED_SECONDS = 8.0
"""Length of the utterances that are measured."""


def expected_hours(steps: list[Step], scale: Scale, places: Places) -> dict[str, float | None]:
    """Hours of each step on this device, by its name; None where no device decides.

    They come from single training steps with random weights (benchmarks/stage2.py), times the audio
    that passes through.
    """
    batch = 1 if places.on_cpu else 8
    tasks = sorted({step.cost.task or "sid" for step in steps if step.cost.way})
    say(f"measuring a training step of {', '.join(tasks)}, a few minutes", to_stderr=True)
    output = places.output / "steps" / "cost.json"
    words = [sys.executable, str(ROOT / "benchmarks" / "stage2.py"), "--tasks", *tasks]
    words += [f"--size={scale.size}", f"--preset={scale.preset}", f"--batch={batch}"]
    words += [f"--seconds={MEASURED_SECONDS}", "--runs=1", f"--output={output}"]
    words += [f"--accelerator={places.accelerator}"]
    words += [] if places.on_cpu else ["--dtype=bfloat16"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        say(f"nothing could be measured: {reason}", to_stderr=True)
        return dict.fromkeys((step.name for step in steps), None)
    times = json.loads(output.read_text(encoding="utf-8"))["seconds"]
    hours: dict[str, float | None] = {}
    for step in steps:
        way, task, seconds, _ = step.cost
        if not way:
            hours[step.name] = None
            continue
        one = times[task or "sid"]
        # A step of sid is the trunk and next to nothing else.
        cost = one["all layers" if way == "forward" else way] / (batch * MEASURED_SECONDS)
        hours[step.name] = seconds * cost / 3600
    return hours


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
        took = "" if expected is None else f"{expected:.2g}"
        body.append([str(number), step.name, took, f"{step.cost.gigabytes:.2g}"])
        lines.append(f"{number}. `{command_of(step)}`")
    lines += table(["step", "name", "hours", "GB"], body)
    total = sum(each for each in hours.values() if each is not None)
    disk = sum(step.cost.gigabytes for step in steps)
    lines.append(
        f"About {total:.3g} hours on {device}, by single steps of random weights that were "
        f"measured there, and {disk:.3g} GB below {output}."
    )
    return lines
