"""Time of the task heads' bidirectional LSTM against torch's, in one run.

    python benchmarks/lstm.py [--accelerator=gpu]

Forward pass alone, and with all gradients, on a ragged batch or a full one; medians of tasks that
take turns.
"""

# First, so that Ctrl-C ends the program while everything else is loaded.
from daisy_jax.accelerator import use_accelerator

# isort: split

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx
from gpu_steps import torch_lstm
from timing import TimingOptions, milliseconds

from daisy_jax.console.terminal import run_command, say
from daisy_jax.tasks.lstm import BidirectionalLstm


@dataclasses.dataclass(frozen=True)
class Config(TimingOptions):
    """What to time; the defaults are MiniSUPERB's ASR head on HuBERT Base.

    torch goes to the same kind of device, or to the CPU if it has no CUDA.
    """

    batch: int = 8
    """Sequences."""
    frames: int = 400
    """Of the longest."""
    ragged: bool = True
    """The shortest sequence has half of the frames; torch then takes packed sequences."""
    inputs: int = 768
    """Features a frame."""
    units: int = 256
    """Of each direction."""
    runs: int = 11
    """Measurements of each, in turn, after a warm-up; more than elsewhere, as a forward pass takes
    some milliseconds only."""
    layers: int = 3
    """Bidirectional layers."""


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    # torch runs beside JAX where `torch_place` says.
    device = use_accelerator(config.accelerator, share_memory=True)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((config.batch, config.frames, config.inputs)).astype(np.float32)
    shortest = config.frames / (2 if config.ragged else 1)
    lengths = np.linspace(shortest, config.frames, config.batch).astype(int)
    mask = jnp.asarray(np.arange(config.frames) < lengths[:, None])
    lstm = BidirectionalLstm(config.inputs, config.units, config.layers, rngs=nnx.Rngs(0))
    forward = jax.jit(lambda lstm, x: lstm(x, mask))
    backward = jax.jit(jax.grad(lambda lstm, x: jnp.sum(lstm(x, mask) ** 2), argnums=(0, 1)))
    kinds, beside = ("forward", "with gradients"), ""
    tasks = {
        f"ours, {kind}": functools.partial(run, lstm, jnp.asarray(x))
        for kind, run in zip(kinds, (forward, backward), strict=True)
    }
    theirs = torch_lstm(x, config.units, config.layers, lengths if config.ragged else None)
    if theirs:
        place, *runs = theirs
        tasks |= {f"torch, {kind}": run for kind, run in zip(kinds, runs, strict=True)}
        beside = f", torch on {place}"
    times = milliseconds(tasks, config.runs)
    say(f"{config.layers} x {config.units}, batch {list(x.shape)}, on {device}{beside}")
    for name, taken in times.items():
        say(f"{name}: {taken:.0f} ms")
    for kind in kinds if theirs else ():
        say(f"ours / torch, {kind}: {times[f'ours, {kind}'] / times[f'torch, {kind}']:.2f}")


if __name__ == "__main__":
    run_command(main)
