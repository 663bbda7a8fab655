"""Shapes that benchmarks/first_gpu.py measures, and the lines it prints."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import NamedTuple

import daisy_jax

Line = dict[str, str | float | bool | list[str] | None]
"""What is printed as JSON: a measurement's name, and its figures by name."""


class Sizes(NamedTuple):
    """One shape for everything, so that few programs are compiled."""

    config: daisy_jax.HubertConfig
    """The architecture, with a prediction head and branches."""
    name: str
    """Of the architecture."""
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

    @property
    def samples(self) -> int:
        """Of an utterance."""
        return round(self.seconds * daisy_jax.audio.SAMPLE_RATE)

    @property
    def frames(self) -> int:
        """Of an utterance."""
        return int(daisy_jax.audio.frame_count(self.samples))


Measure = Callable[[Sizes], Iterator[Line]]


def sizes(small: bool, runs: int) -> Sizes:
    """Those of the paper's model and benchmark, or tiny ones."""
    if small:
        config = dataclasses.replace(daisy_jax.load().config, num_layers=2)
        lstm = (2, 8, 16, 4, 1)
        return Sizes(config, "tiny", 4, 0.5, 1.0, (2, 0.5), lstm, 4, 1, 1)
    config = daisy_jax.HubertConfig.base(num_clusters=504, num_classes=504)
    lstm = (16, 600, 768, 1024, 2)
    return Sizes(config, "base", 16, 10.0, 30.0, (32, 12.3), lstm, 400, runs, 10)
