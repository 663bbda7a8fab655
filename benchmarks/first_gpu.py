"""The first ten minutes on a GPU: what was only estimated, measured, and what follows from it.

    python benchmarks/first_gpu.py --accelerator=gpu --output runs/first_gpu.jsonl
    python benchmarks/first_gpu.py --small --accelerator=cpu

Prints JSON lines: what was measured, and what that decides by the rules in gpu_rules.py, at once,
so that a run that is cut short has not run in vain. Weights are random and exits are forced: time
does not depend on what the weights say. Compiled programs are kept in a folder, so that a second
run spends its time on measuring. `--small` takes tiny shapes; its times say nothing, it shows that
everything runs.
"""

# First, so that Ctrl-C ends the program while everything else is loaded.
from daisy_jax import InputError

# isort: split

import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping

import tyro
from gpu_rules import decisions
from gpu_sizes import Line, Measure, Sizes, sizes
from timing import TimingOptions

from daisy_jax.accelerator import installed_versions, use_accelerator, use_compilation_cache
from daisy_jax.console.terminal import run_command, say

LIBRARIES = ("daisy-jax", "jax", "jaxlib", "flax", "torch", "transformers")
COMMAND_BUFFERS = "--xla_gpu_enable_command_buffer=+CONDITIONAL,+WHILE"
"""XLA's flag for conditions and loops that a GPU decides without asking its host."""


@dataclasses.dataclass(frozen=True)
class Config(TimingOptions):
    """What to measure."""

    only: tuple[str, ...] = ()
    """Measurements to take, such as attention exits; empty: all."""
    small: bool = False
    """Tiny shapes, for a machine without a GPU."""
    runs: int = 5
    """Measurements of each task, in turn, after a warm-up."""
    output: str = ""
    """A file for the lines, which are printed as well; empty: print only."""
    compilation_cache: str = "runs/compiled"
    """Folder for compiled programs."""


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    # torch runs beside JAX where `torch_place` says.
    device = use_accelerator(config.accelerator, dtype="bfloat16", share_memory=True)
    use_compilation_cache(config.compilation_cache)

    import gpu_models
    import gpu_steps

    measurements = gpu_steps.MEASUREMENTS | gpu_models.MEASUREMENTS
    unknown = [name for name in config.only if name not in measurements]
    if unknown:
        raise InputError(f"{unknown[0]} is no measurement; there are {', '.join(measurements)}")
    with contextlib.ExitStack() as stack:
        kept = None
        if config.output:
            pathlib.Path(config.output).parent.mkdir(parents=True, exist_ok=True)
            kept = stack.enter_context(open(config.output, "w", encoding="utf-8"))
        for line in all_lines(config, device, measurements):
            if kept is not None:
                kept.write(json.dumps(line) + "\n")
                kept.flush()
            say(json.dumps(line), flush=True)


def all_lines(config: Config, device: str, measurements: Mapping[str, Measure]) -> Iterator[Line]:
    """Versions, then what is measured, each measurement with what it decides."""
    found = {"cores": os.cpu_count(), **dict.fromkeys(LIBRARIES), **installed_versions(*LIBRARIES)}
    yield {"measurement": "versions", "device": device, **found}
    shapes = sizes(config.small, config.runs)
    for name, measure in measurements.items():
        if config.only and name not in config.only:
            continue
        lines = []
        for line in measured(name, measure, shapes):
            lines.append(line)
            yield line
        yield from decisions(lines)
        # XLA reads its flags once, so that another process measures with them.
        if name == "exits" and not config.only and not config.small:
            yield from with_flags(config, COMMAND_BUFFERS)


def measured(name: str, measure: Measure, shapes: Sizes) -> Iterator[Line]:
    """The lines of one measurement; one that fails says so and does not stop the others."""
    start = time.perf_counter()
    try:
        for line in measure(shapes):
            yield {"measurement": name, **line}
    except Exception as error:  # of a kernel, a compiler, another library
        yield {"measurement": name, "failed": f"{type(error).__name__}: {error}"[:500]}
    yield {"measurement": name, "took_seconds": round(time.perf_counter() - start, 1)}


def with_flags(config: Config, flags: str) -> Iterator[Line]:
    """The lines of exits in a process with these flags of XLA."""
    command = [sys.executable, __file__, "--only", "exits", "--runs", str(config.runs)]
    command += ["--accelerator", config.accelerator]
    command += ["--compilation-cache", config.compilation_cache]
    environment = {**os.environ, "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True, timeout=180
        )
    except subprocess.SubprocessError as error:
        said = getattr(error, "stderr", None) or str(error)
        last = str(said).strip().rpartition("\n")[2]
        yield {"measurement": "exits", "xla_flags": flags, "failed": last[:500]}
        return
    for text in done.stdout.splitlines():
        if text.startswith('{"measurement": "exits"'):
            yield {**json.loads(text), "xla_flags": flags}


if __name__ == "__main__":
    run_command(main)
