"""Everything of the paper by one command: from the downloaded files to Table 1 and figures 2 to 5.

    python eval/reproduce.py --corpora corpora --checkpoint hubert_base_ls960.pt --plan
    python eval/reproduce.py --corpora corpora --checkpoint hubert_base_ls960.pt --output runs/paper

Converts and verifies the checkpoint, trains branches (stage 1) and a task head for each rule of
Table 1 (stage 2), mixes the noisy corpora, evaluates and reports. Every step is a command that is
printed and can be run by hand; one that has ended is not run again, one that was stopped goes on,
and one that fails stops only those that need it. OUTPUT/report.html is the page: each number
beside the paper's, with the commands it came from. --plan runs nothing but a measurement of a few
minutes, and says what is missing, what will be run, for how long and with how much disk.

--scale tiny does the same with the packaged model on small corpora of the same layouts.
"""

# First, so that Ctrl-C ends the program while everything else is loaded.
from daisy_jax import InputError

# isort: split

import dataclasses
import pathlib
import subprocess
import sys
from typing import Literal

import tyro
from reproduce_page import write_page
from reproduce_plan import expected_hours, plan_lines

from daisy_jax.accelerator import Accelerator
from daisy_jax.console.terminal import run_command, say
from daisy_jax.study.reproduction import SCALES, Places, Step, Target
from daisy_jax.study.reproduction_steps import all_steps, chosen
from daisy_jax.study.step_runner import NOT_MADE, Runner, only_one


@dataclasses.dataclass(frozen=True)
class Config:
    """What to reproduce."""

    corpora: str = "corpora"
    """A folder with LibriSpeech, VoxCeleb1, noisy-vctk-16k (or VoiceBank-DEMAND), Libri2Mix and
    MUSAN, each in its own layout."""
    checkpoint: str = ""
    """fairseq's HuBERT Base, hubert_base_ls960.pt; not needed with --scale tiny."""
    output: str = "runs/paper"
    """Folder for everything that is made."""
    only: tuple[Target, ...] = ()
    """Some of table1, figure2, figure3, figure4 and figure5, with what they need; empty: all."""
    plan: bool = False
    """Say what would be run, and run nothing."""
    scale: Literal["paper", "tiny"] = "paper"
    """The paper's set-up, or small corpora with the packaged model."""
    steps: int = 0
    """Optimizer steps of every training, to try the way through; 0: as the set-up has it."""
    accelerator: Accelerator = "auto"
    """Where to compute."""


def main() -> int:
    config = tyro.cli(Config, description=__doc__)
    scale, output = SCALES[config.scale], pathlib.Path(config.output)
    if config.steps < 0:
        raise InputError(f"steps is {config.steps}; it must be at least 0")
    if not config.checkpoint and not scale.model and not config.plan:
        raise InputError("--checkpoint is needed: the file hubert_base_ls960.pt of fairseq")
    device = found_device(config.accelerator)
    places = Places(
        pathlib.Path(config.corpora),
        config.checkpoint or "hubert_base_ls960.pt",
        output,
        config.accelerator,
        device.startswith("cpu"),
        config.steps,
        bool(scale.model),
    )
    steps = chosen(all_steps(places, scale), config.only)
    if config.plan:
        hours = expected_hours(steps, scale, places)
        say("\n".join(plan_lines(steps, hours, output, device)))
        return 0
    with only_one(output) as lock:
        return reproduce(steps, output, lock, config)


def found_device(accelerator: Accelerator) -> str:
    """Kind and name of the device; asked in a process of its own, which gives it back."""
    code = (
        "import sys, jax; from daisy_jax.accelerator import use_accelerator; "
        "name = use_accelerator(sys.argv[1]); "
        "print(*dict.fromkeys((jax.devices()[0].platform, name)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, accelerator], capture_output=True, text=True, check=False
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise InputError(
            f"--accelerator={accelerator}: {reason.partition('InputError: ')[2] or reason}"
        )
    return done.stdout.strip()


def reproduce(steps: list[Step], output: pathlib.Path, lock: int, config: Config) -> int:
    """Runs what is not done, and writes the page; 1 if a step could not be made."""
    runner = Runner(output, lambda line: say(line, flush=True), (lock,))
    outcome = runner.run_all(steps)
    write_page(output, steps, runner, stand_in=config.scale != "paper" or config.steps > 0)
    not_made = {name: what for name, what in outcome.items() if what in NOT_MADE}
    for name, what in not_made.items():
        say(f"{what}: {name}")
    say(f"written: {output / 'report.html'}, {output / 'report.md'}")
    return 1 if not_made else 0


if __name__ == "__main__":
    run_command(main)
