"""`metrics.jsonl` of a run: one line a logged step, and the same for TensorBoard.

A run that goes on behind a checkpoint drops the lines behind it, which will be written again.
"""

import importlib
import json
import pathlib
from typing import Any

import jax
import numpy as np

from daisy_jax.whole_files import write_text

METRICS, TENSORBOARD = "metrics.jsonl", "events"

Metrics = dict[str, jax.Array]


class MetricsLog:
    """The file, and TensorBoard's events if they are wanted."""

    def __init__(self, folder: pathlib.Path, tensorboard: bool, last_step: int):
        """Of a run folder whose newest checkpoint is that of `last_step`; 0: there is none."""
        self._path = folder / METRICS
        self._events = None
        if tensorboard:
            writer = importlib.import_module("tensorboardX").SummaryWriter
            self._events = writer(str(folder / TENSORBOARD), purge_step=last_step + 1)

    def cut(self, step: int) -> None:
        """Drops lines behind `step`, and half a line that a killed run may have left."""
        kept = [line for line in read_metrics(self._path.parent) if line["step"] <= step]
        write_text(self._path, "".join(json.dumps(line) + "\n" for line in kept))

    def append(self, step: int, metrics: dict[str, Any]) -> None:
        """Adds a line: numbers, or lists of numbers.

        Raises:
          OSError: it could not be written.
        """
        try:
            with open(self._path, "a", encoding="utf-8") as stream:
                stream.write(json.dumps({"step": step, **metrics}) + "\n")
        except OSError as error:
            raise OSError(f"{self._path}: {error.strerror}; make room, then --resume") from error
        if self._events is not None:
            for name, value in metrics.items():
                values = np.atleast_1d(value)
                for place, number in enumerate(values, 1):
                    tag = f"{name}/{place}" if len(values) > 1 else name
                    self._events.add_scalar(tag, float(number), step)
            self._events.flush()

    def close(self) -> None:
        """Ends TensorBoard's file."""
        if self._events is not None:
            self._events.close()


def read_metrics(folder: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`, without one that is only half written."""
    path = folder / METRICS
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def as_numbers(history: list[Metrics]) -> list[dict[str, Any]]:
    """Metrics as numbers and lists of numbers."""
    return jax.tree.map(lambda value: np.asarray(value).tolist(), jax.device_get(history))
