"""What a training step of stage 2 costs with stored features, and with the trunk in the step.

    python benchmarks/stage2.py [--accelerator=gpu --dtype=bfloat16 --batch 8 --seconds 10]

For each task, with the task head of a preset on full-size HuBERT: a step on stored features, a step
that runs the trunk up to each utterance's exit (spread, 6 on average), and one that runs all
layers, or some of these ways; in turns, medians. Weights are random and exits are forced: time does
not depend on what they say.
"""

# First, so that Ctrl-C ends the program while everything else is loaded.
import daisy_jax

# isort: split

import dataclasses
from collections.abc import Callable
from typing import Literal, get_args

import jax
import numpy as np
import tyro
from jaxtyping import Array, Float32, PyTree
from timing import StepOptions

from daisy_jax import parallel
from daisy_jax.accelerator import use_accelerator
from daisy_jax.console.terminal import run_command, say
from daisy_jax.study.forced_exits import Forced

Way = Literal["stored features", "with exits", "all layers"]


@dataclasses.dataclass(frozen=True)
class Config(StepOptions):
    """What to time."""

    tasks: tuple[Literal["asr", "sid", "se", "ss"], ...] = ("asr", "sid", "se", "ss")
    """Tasks."""
    ways: tuple[Way, ...] = get_args(Way)
    """Where a step takes its features from."""
    preset: str = "superb"
    """Whose task heads."""
    batch: int = 4
    """Utterances."""
    seconds: float = 8.0
    """Length of each."""


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    device = use_accelerator(config.accelerator, dtype=config.dtype)

    from daisy_jax.tasks.asr import CHARACTERS
    from daisy_jax.tasks.presets import make_task, read_preset
    from daisy_jax.tasks.training import downstream_step, head_optimizer, new_params

    forced = Forced(config.size, config.dtype)
    trunk = parallel.replicate(forced.model)
    layers, dim = forced.layers, forced.model.config.dim
    exits = forced.spread(config.batch)
    samples = round(config.seconds * daisy_jax.audio.SAMPLE_RATE)
    frames = int(daisy_jax.audio.frame_count(samples))
    rng = np.random.default_rng(0)

    def noise(*shape: int) -> Float32[np.ndarray, "..."]:
        return rng.standard_normal(shape, np.float32)

    rows, lengths = config.batch, np.full(config.batch, samples, np.int32)
    mixture = noise(rows, samples)
    targets: dict[str, dict[str, np.ndarray]] = {
        "asr": {"characters": rng.integers(4, 32, (rows, round(14 * config.seconds)), np.int32)},
        "sid": {"speaker": rng.integers(0, 1251, rows, np.int32)},
        "se": {"mixture": mixture, "sources": noise(rows, 1, samples), "samples": lengths},
        "ss": {"mixture": mixture, "sources": noise(rows, 2, samples), "samples": lengths},
    }
    stored = {
        "items": noise(rows, layers + 1, frames, dim).astype(np.float16),
        "num_frames": np.full(rows, frames, np.int32),
        "exit_layer": np.asarray(exits, np.int32),
        "forced": np.zeros(rows, bool),
    }
    everywhere = np.ones(layers, bool)
    seconds: dict[str, dict[str, float]] = {}
    say(
        f"HuBERT {config.size}, {config.dtype}, {config.preset} heads, {rows} x "
        f"{config.seconds:g} s, mean exit layer {np.mean(exits):.2f}, on {device}; medians of "
        f"{config.runs}\n"
    )
    say(f"| task | {' | '.join(f'{way}, s' for way in config.ways)} |")
    say(f"| --- |{' ---: |' * len(config.ways)}", flush=True)
    for name in config.tasks:
        settings = read_preset(name, config.preset)
        task = make_task(name, settings)
        classes = CHARACTERS if name == "asr" else tuple(map(str, range(1251)))
        optimizer = head_optimizer(1e-4, settings)
        common = {"targets": targets[name], "number": np.asarray(0, np.int32)}
        live = {"waveform": mixture, "lengths": lengths} | common
        step = downstream_step(task, optimizer, 0)
        ways: dict[Way, tuple] = {
            "stored features": (None, None, everywhere, stored | common),
            "with exits": (trunk, forced.thresholds(exits), everywhere, live),
            "all layers": (trunk, None, everywhere, live),
        }

        tasks = {}
        for way in config.ways:
            *arguments, batch = ways[way]
            params = parallel.replicate(new_params(task, dim, layers, classes, 0))
            state = (params, jax.jit(optimizer.init)(params))
            tasks[way] = repeated(step, state, (*arguments, parallel.place(batch)))
        times = parallel.medians(tasks, config.runs)
        seconds[name] = times
        say(f"| {name} | {' | '.join(f'{times[way]:.3f}' for way in config.ways)} |", flush=True)
    config.write({"device": device, "exits": exits, "seconds": seconds})


def repeated(
    step: Callable, state: PyTree[Array], arguments: tuple[object, ...]
) -> Callable[[], None]:
    """A task that takes one step more each time it is called, and waits for it."""

    def one_step() -> None:
        nonlocal state
        state, metrics = step(state, *arguments)
        jax.block_until_ready(metrics)

    return one_step


if __name__ == "__main__":
    run_command(main)
