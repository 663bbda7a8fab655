"""The first ten minutes on a GPU: what was only estimated, measured, and what follows from it.

    python benchmarks/first_gpu.py --accelerator=gpu --output runs/first_gpu.jsonl
    python benchmarks/first_gpu.py --small --accelerator=cpu

Prints JSON lines: what was measured, and what that decides by the rules in gpu_rules.py, at once,
so that a run that is cut short has not run in vain. Weights are random and exits are forced: time
does not depend on what the weights say. Compiled programs are kept in a folder, so that a second
run spends its time on measuring. `--small` takes tiny shapes; its times say nothing, it shows that
everything runs.
"""

import dataclasses
import json
import os
import pathlib
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import tyro

from daisy_jax.accelerator import Accelerator, use_accelerator, use_compilation_cache
from daisy_jax.console.terminal import run_command

sys.path.append(str(pathlib.Path(__file__).parents[1] / "eval"))  # for forced_exits, torch_place

COMMAND_BUFFERS = "--xla_gpu_enable_command_buffer=+CONDITIONAL,+WHILE"
"""XLA's flag for conditions and loops that a GPU decides without asking its host."""


@dataclasses.dataclass(frozen=True)
class Config:
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
    accelerator: Accelerator = "auto"
    """Where to compute."""


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    device = use_accelerator(config.accelerator, dtype="bfloat16", share_memory=True)
    use_compilation_cache(config.compilation_cache)

    import gpu_models
    import gpu_steps
    from gpu_rules import decisions
    from gpu_sizes import sizes

    from daisy_jax import InputError

    measurements = gpu_steps.MEASUREMENTS | gpu_models.MEASUREMENTS
    unknown = [name for name in config.only if name not in measurements]
    if unknown:
        raise InputError(f"{unknown[0]} is no measurement; there are {', '.join(measurements)}")
    chosen = [name for name in measurements if not config.only or name in config.only]
    with Lines(config.output) as show:
        show({"measurement": "versions", "device": device, **versions()})
        for name in chosen:
            lines = []
            for line in measured(name, measurements[name], sizes(config.small, config.runs)):
                lines.append(line)
                show(line)
            for decision in decisions(lines):
                show(decision)
            # XLA reads its flags once, so that another process measures with them.
            if name == "exits" and not config.only and not config.small:
                for line in with_flags(config, COMMAND_BUFFERS):
                    show(line)


def measured(name: str, measure: Any, shapes: Any) -> Iterator[dict[str, Any]]:
    """The lines of one measurement; one that fails says so and does not stop the others."""
    start = time.perf_counter()
    try:
        for line in measure(shapes):
            yield {"measurement": name, **line}
    except Exception as error:  # of a kernel, a compiler, another library
        yield {"measurement": name, "failed": f"{type(error).__name__}: {error}"[:500]}
    yield {"measurement": name, "took_seconds": round(time.perf_counter() - start, 1)}


def with_flags(config: Config, flags: str) -> Iterator[dict[str, Any]]:
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


def versions() -> dict[str, Any]:
    """Of Python and of the libraries that are installed."""
    import importlib.metadata

    found: dict[str, Any] = {"python": platform.python_version(), "cores": os.cpu_count()}
    for name in ("daisy-jax", "jax", "jaxlib", "flax", "torch", "transformers"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


class Lines:
    """Prints dictionaries as JSON lines, and writes them into a file if there is one."""

    def __init__(self, path: str):
        self._path, self._file = path, None

    def __enter__(self):
        if self._path:
            pathlib.Path(self._path).parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self._path, "w", encoding="utf-8")
        return self

    def __exit__(self, *error: object) -> None:
        if self._file:
            self._file.close()

    def __call__(self, line: dict[str, Any]) -> None:
        """Shows one line."""
        text = json.dumps(line)
        print(text, flush=True)
        if self._file:
            print(text, file=self._file, flush=True)


if __name__ == "__main__":
    run_command(main)
