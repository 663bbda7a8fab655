"""What the benchmarks share: options, times, files of noise, memory."""

import dataclasses
import json
import pathlib
import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import jax
import numpy as np
from jaxtyping import PyTree

from daisy_jax.accelerator import Accelerator
from daisy_jax.console.terminal import say
from daisy_jax.parallel import medians

sys.path.append(str(pathlib.Path(__file__).parents[1] / "eval"))  # for torch_place


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimingOptions:
    """Of every benchmark that takes time."""

    runs: int = 3
    """Measurements of each, in turn, after a warm-up."""
    accelerator: Accelerator = "auto"
    """Where to compute."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepOptions(TimingOptions):
    """Of benchmarks of training steps."""

    size: Literal["tiny", "base", "large"] = "base"
    """The trunk's architecture."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """What the trunk computes in."""
    output: str = ""
    """A JSON file for the results; empty: print only."""

    def write(self, result: dict[str, object]) -> None:
        """Writes the results with the options, if there is a file for them."""
        if self.output:
            settings = {"settings": dataclasses.asdict(self)}
            text = json.dumps(settings | result, indent=2)
            pathlib.Path(self.output).write_text(text + "\n", encoding="utf-8")
            say(f"written: {self.output}")


Task = Callable[[], PyTree]
"""Returns JAX's arrays, or a function that waits for what it has started (torch's)."""


def milliseconds(tasks: Mapping[str, Task], runs: int, calls: int = 1) -> dict[str, float]:
    """Median milliseconds of one call of each task, all tasks in turn after a warm-up.

    Args:
      tasks: by name.
      runs: measurements of each.
      calls: in one measurement, which is divided by them: a call's start hides behind the last.
    """

    def repeated(task: Task) -> Callable[[], None]:
        def run() -> None:
            for _ in range(calls):
                out = task()
            out() if callable(out) else jax.block_until_ready(out)

        return run

    times = medians({name: repeated(task) for name, task in tasks.items()}, runs)
    return {name: round(1000 * seconds / calls, 4) for name, seconds in times.items()}


def write_noise(folder: pathlib.Path, lengths: Sequence[int] | np.ndarray) -> list[pathlib.Path]:
    """WAV files of so many drawn samples at 16 kHz: 0.wav, 1.wav and so on; makes the folder."""
    import soundfile

    rng = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{number}.wav" for number in range(len(lengths))]
    for path, length in zip(paths, lengths, strict=True):
        soundfile.write(path, 0.1 * rng.standard_normal(length), 16_000, subtype="PCM_16")
    return paths


def resident_bytes() -> int:
    """Memory that this process holds now (Linux)."""
    pages = pathlib.Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * resource.getpagesize()
