"""Shapes that benchmarks/first_gpu.py measures, and how it takes time."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

import daisy_jax
from daisy_jax.devices import medians


class Sizes(NamedTuple):
    """One shape for everything, so that few programs are compiled."""

    config: daisy_jax.HubertConfig
    """The architecture, with a prediction head and branches."""
    name: str
    """Of the architecture, as forced_exits knows it."""
    rows: int
    """Utterances in a batch."""
    seconds: float
    """Length of each."""
    long_seconds: float
    """Length where attention's square shows."""
    stage1: tuple[int, float]
    """Rows and seconds of a step of stage 1."""
    lstm: tuple[int, int, int, int, int]
    """Batch, frames, inputs, units and layers of a recognition head."""
    files: int
    """Sound files."""
    runs: int
    """Measurements of each task."""
    calls: int
    """Calls in one measurement, which is divided by them: a call's start hides behind the last."""


def sizes(small: bool, runs: int) -> Sizes:
    """Those of the paper's model and benchmark, or tiny ones."""
    if small:
        config = daisy_jax.HubertConfig(
            num_layers=2,
            dim=32,
            ffn_dim=48,
            num_heads=4,
            conv_dim=16,
            pos_conv_kernel=16,
            pos_conv_groups=4,
            num_clusters=7,
            head_dim=8,
            num_classes=12,
        )
        lstm = (2, 8, 16, 4, 1)
        return Sizes(config, "tiny", 4, 0.5, 1.0, (2, 0.5), lstm, 4, 1, 1)
    config = daisy_jax.HubertConfig.base(num_clusters=504, num_classes=504)
    lstm = (16, 600, 768, 1024, 2)
    return Sizes(config, "base", 16, 10.0, 30.0, (32, 12.3), lstm, 400, runs, 10)


def milliseconds(tasks: dict[Any, Callable[[], Any]], shapes: Sizes) -> dict[Any, float]:
    """Median milliseconds of one call of each task, all tasks in turn after a warm-up.

    What the last call returns is waited for: JAX's arrays, or a function that waits (torch's).
    """

    def repeated(task: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> None:
            for _ in range(shapes.calls):
                out = task()
            out() if callable(out) else jax.block_until_ready(out)

        return run

    times = medians({name: repeated(task) for name, task in tasks.items()}, shapes.runs)
    return {name: round(1000 * seconds / shapes.calls, 4) for name, seconds in times.items()}
