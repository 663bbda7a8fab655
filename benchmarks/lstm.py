"""Time of the heads' bidirectional LSTM against torch's, in one run.

    python benchmarks/lstm.py [--accelerator=gpu]

Forward pass alone, and with all gradients, on a ragged batch or a full one; medians of tasks that
take turns.
"""

import dataclasses
import pathlib
import sys
from typing import Any

import tyro

from daisy_jax.accelerator import Accelerator, use_accelerator
from daisy_jax.console.terminal import run_command
from daisy_jax.devices import medians

sys.path.append(str(pathlib.Path(__file__).parents[1] / "eval"))  # for torch_place


@dataclasses.dataclass(frozen=True)
class Config:
    """What to time; the defaults are MiniSUPERB's ASR head on HuBERT Base."""

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
    layers: int = 3
    """Bidirectional layers."""
    runs: int = 11
    """Measurements of each, in turn, after a warm-up."""
    accelerator: Accelerator = "auto"
    """Where to compute; torch goes to the same kind, or to the CPU if it has no CUDA."""


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    device = use_accelerator(config.accelerator, share_memory=True)

    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx
    from torch_place import torch_place

    from daisy_jax.tasks.lstm import BidirectionalLstm

    rng = np.random.default_rng(0)
    x = rng.standard_normal((config.batch, config.frames, config.inputs)).astype(np.float32)
    lengths = np.linspace(
        config.frames / (2 if config.ragged else 1), config.frames, config.batch
    ).astype(int)
    mask = jnp.asarray(np.arange(config.frames) < lengths[:, None])
    lstm = BidirectionalLstm(config.inputs, config.units, config.layers, rngs=nnx.Rngs(0))
    forward = jax.jit(lambda lstm, x: lstm(x, mask))
    backward = jax.jit(jax.grad(lambda lstm, x: jnp.sum(lstm(x, mask) ** 2), argnums=(0, 1)))
    ours = jnp.asarray(x)
    tasks: dict[str, Any] = {
        "ours, forward": lambda: jax.block_until_ready(forward(lstm, ours)),
        "ours, with gradients": lambda: jax.block_until_ready(backward(lstm, ours)),
    }
    place = torch_place()
    tasks |= torch_tasks(config, x, lengths, place) if place else {}
    times = medians(tasks, config.runs)
    beside = f", torch on {place}" if place else ""
    print(f"{config.layers} x {config.units}, batch {list(x.shape)}, on {device}{beside}")
    for name, seconds in times.items():
        print(f"{name}: {1000 * seconds:.0f} ms")
    for kind in ("forward", "with gradients"):
        if f"torch, {kind}" in times:
            print(f"ours / torch, {kind}: {times[f'ours, {kind}'] / times[f'torch, {kind}']:.2f}")


def torch_tasks(config: Config, x: Any, lengths: Any, place: str) -> dict[str, Any]:
    """The same of torch, on packed sequences."""
    import torch

    lstm = torch.nn.LSTM(
        config.inputs, config.units, config.layers, batch_first=True, bidirectional=True
    ).to(place)
    theirs = torch.tensor(x, device=place, requires_grad=True)

    def run() -> Any:
        if not config.ragged:
            return lstm(theirs)[0]
        packed = torch.nn.utils.rnn.pack_padded_sequence(
            theirs, torch.tensor(lengths), batch_first=True, enforce_sorted=False
        )
        return torch.nn.utils.rnn.pad_packed_sequence(lstm(packed)[0], batch_first=True)[0]

    def forward() -> None:
        with torch.no_grad():
            run()
        if place == "cuda":
            torch.cuda.synchronize()

    def backward() -> None:
        (run() ** 2).sum().backward()
        if place == "cuda":
            torch.cuda.synchronize()

    return {"torch, forward": forward, "torch, with gradients": backward}


if __name__ == "__main__":
    run_command(main)
