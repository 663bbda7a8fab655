"""`metrics.jsonl` of a run: one line a logged step, and the same for TensorBoard.

A run that goes on behind a checkpoint drops the lines behind it, which will be written again.
"""

import importlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import TypeAlias, TypedDict

import jax
import numpy as np
from jaxtyping import Array

from daisy_jax.whole_files import checked, parse_json, read_text, write_text

METRICS, TENSORBOARD = "metrics.jsonl", "events"

Values: TypeAlias = Mapping[str, float | list[float]]
"""A line: numbers, and lists of numbers such as those of each layer."""
_Line: TypeAlias = dict[str, int | float | list[float]]


class _Step(TypedDict):
    """What every line has."""

    step: int


Metrics: TypeAlias = Mapping[str, Array | np.ndarray | np.generic | float | list[float]]
"""What a step returns, still on the device, or what a checkpoint has kept of it."""


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
        lines = read_metrics(self._path.parent)
        kept = [line for line in lines if one_number(line["step"]) <= step]
        write_text(self._path, "".join(json.dumps(line) + "\n" for line in kept))

    def append(self, step: int, values: Values) -> None:
        """Adds a line.

        Raises:
          OSError: it could not be written.
        """
        try:
            with open(self._path, "a", encoding="utf-8") as stream:
                stream.write(json.dumps({"step": step, **values}) + "\n")
        except OSError as error:
            raise OSError(f"{self._path}: {error.strerror}; make room, then --resume") from error
        if self._events is not None:
            for name, value in values.items():
                numbers = np.atleast_1d(value)
                for layer, number in enumerate(numbers, 1):
                    tag = f"{name}/{layer}" if len(numbers) > 1 else name
                    self._events.add_scalar(tag, float(number), step)
            self._events.flush()

    def close(self) -> None:
        """Ends TensorBoard's file."""
        if self._events is not None:
            self._events.close()


def read_metrics(folder: pathlib.Path) -> list[Values]:
    """The lines of a run's `metrics.jsonl`, without one that is only half written."""
    path = folder / METRICS
    if not path.is_file():
        return []
    remedy, lines = "remove the line that is not UTF-8", []
    for number, text in enumerate(read_text(path, remedy=remedy).splitlines(keepends=True), 1):
        if text.endswith("\n"):
            place = f"{path}:{number}"
            line = parse_json(place, text, _Line, "remove this line")
            checked(place, line, _Step, "remove this line")
            lines.append(line)
    return lines


def one_number(value: float | list[float]) -> float:
    """A value that is known not to be a list."""
    assert not isinstance(value, list)
    return value


def as_numbers(history: Sequence[Metrics]) -> list[Values]:
    """Metrics on the host, as numbers and lists of numbers."""
    return jax.tree.map(lambda value: np.asarray(value).tolist(), jax.device_get(history))
