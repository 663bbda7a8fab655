"""What the training scripts share: the run folder, checkpoints that resume exactly, the loop.

A run folder holds `config.json`, `metrics.jsonl` (one line a logged step), `checkpoints/` (Orbax;
the state and the config of each) and at the end `model/`, a model folder.
"""

import contextlib
import dataclasses
import json
import math
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from daisy_jax.checkpoints import fill, named_leaves
from daisy_jax.data.loading import Batch, batches
from daisy_jax.errors import InputError
from daisy_jax.terminal import delayed_signals, training_bar

CONFIG, METRICS, CHECKPOINTS = "config.json", "metrics.jsonl", "checkpoints"
# These may differ between a run and its continuation.
FREE_FIELDS = ("accelerator", "resume", "output", "workers", "strict")

Metrics = dict[str, jax.Array]


class Run:
    """A run folder, new or to be continued.

    Raises:
      InputError: the folder holds a run and `resume` was not asked for, or the run's configuration
        differs (the differences are printed), or there is nothing to resume.
    """

    def __init__(self, folder: pathlib.Path, config: Any, resume: bool, keep: int = 2):
        import orbax.checkpoint as ocp

        self.folder = folder.resolve()
        self.settings = {
            name: value
            for name, value in json.loads(
                json.dumps(dataclasses.asdict(config), default=str)
            ).items()
            if name not in FREE_FIELDS
        }
        path = self.folder / CONFIG
        if path.exists() and not resume:
            raise InputError(
                f"{folder} holds a run; pass --resume to continue it, or another --output"
            )
        if resume and not path.exists():
            raise InputError(f"{folder} holds no run to resume; leave --resume out to start one")
        if path.exists():
            self._compare(json.loads(path.read_text(encoding="utf-8")))
        self.folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.settings, indent=2) + "\n", encoding="utf-8")
        self._manager = ocp.CheckpointManager(
            self.folder / CHECKPOINTS, options=ocp.CheckpointManagerOptions(max_to_keep=keep)
        )

    def _compare(self, before: dict[str, Any]) -> None:
        changes = [
            f"{name} was {before.get(name)!r} and is {self.settings.get(name)!r}"
            for name in sorted(before.keys() | self.settings.keys())
            if before.get(name) != self.settings.get(name)
        ]
        if changes:
            raise InputError(f"{self.folder} was started otherwise: {'; '.join(changes)}")

    def restore(self, state: Any) -> tuple[Any, int, list[Metrics]]:
        """The newest checkpoint: state, step, and the metrics since the last logged step.

        `state` itself, 0 and none if there is no checkpoint.
        """
        import orbax.checkpoint as ocp

        step = self._manager.latest_step()
        if step is None:
            (self.folder / METRICS).write_text("", encoding="utf-8")
            return state, 0, []
        target = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
            named_leaves(state),
        )
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(target), config=ocp.args.JsonRestore()
            ),
        )
        # Lines behind the checkpoint will be written again; a killed run may leave half a line.
        lines = (self.folder / METRICS).read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        (self.folder / METRICS).write_text("".join(kept), encoding="utf-8")
        return fill(state, restored["state"]), step, restored["config"].get("recent", [])

    def save(self, state: Any, step: int, recent: list[Metrics]) -> None:
        """Writes a checkpoint in the background; earlier ones are dropped when it is complete."""
        import orbax.checkpoint as ocp

        if self._manager.latest_step() != step:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(named_leaves(state)),
                    config=ocp.args.JsonSave(self.settings | {"recent": _as_numbers(recent)}),
                ),
            )

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Appends one line to `metrics.jsonl`."""
        with open(self.folder / METRICS, "a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": step, **metrics}) + "\n")

    def close(self) -> None:
        """Waits for checkpoints that are being written."""
        self._manager.wait_until_finished()
        self._manager.close()


def warmup_then_decay(peak: float, warmup: int, steps: int) -> Callable[[Any], Any]:
    """A learning rate that grows linearly over `warmup` steps, then falls linearly to 0."""
    import optax

    up = optax.linear_schedule(0, peak, warmup)
    down = optax.linear_schedule(peak, 0, max(steps - warmup, 1))
    return optax.join_schedules([up, down], [warmup])


def fit(
    run: Run,
    state: Any,
    step: Callable[[Any, Batch], tuple[Any, Metrics]],
    batch: Callable[[int], Batch],
    *,
    steps: int,
    save_every: int,
    log_every: int,
    workers: int = 0,
    shown: tuple[str, ...] = ("loss", "accuracy"),
) -> Any:
    """Trains from the run's newest checkpoint to the last step.

    A run that was interrupted and resumed computes the same numbers as one that was not: a batch
    depends on its number alone, and the state holds everything else. SIGTERM and Ctrl-C end it
    after the current step, which is saved.

    Args:
      run: where checkpoints and metrics go.
      state: a pytree of arrays; donated.
      step: jitted; from a state and a batch to the next state and scalar metrics.
      batch: from a step number (from 0) to numpy arrays, a function of the number alone; called
        ahead, in threads or worker processes.
      steps: how many steps the whole run has.
      save_every: steps between two checkpoints.
      log_every: steps between two lines of `metrics.jsonl`, whose values are means over them.
      workers: processes that read batches; 0: threads.
      shown: metrics on the progress bar.

    Raises:
      FloatingPointError: the loss has become NaN or infinite.
    """
    # The batch is split over all devices, the state is on each.
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    replicated = NamedSharding(mesh, PartitionSpec())
    by_row = NamedSharding(mesh, PartitionSpec("data"))

    def place(array: np.ndarray) -> jax.Array:
        if array.ndim and len(array) % jax.device_count():
            raise InputError(
                f"a batch of {len(array)} cannot be split over {jax.device_count()} devices; make "
                "the batch size a multiple of them"
            )
        return jax.device_put(array, by_row if array.ndim else replicated)

    state, first, recent = run.restore(jax.device_put(state, replicated))
    upcoming = batches(batch, first, steps, workers)
    started = time.perf_counter()
    with (
        contextlib.closing(run),  # after an error too, or the program hangs at a half checkpoint
        contextlib.closing(upcoming),
        delayed_signals() as stopped,
        training_bar(steps, first) as show,
    ):
        for done in range(first + 1, steps + 1):
            current = next(upcoming)
            state, metrics = step(state, jax.tree.map(place, current))
            recent.append(metrics)
            if done % log_every == 0 or done == steps:
                values = _means(recent)
                rate = min(len(recent), done - first) / (time.perf_counter() - started)
                if not math.isfinite(values["loss"]):
                    raise FloatingPointError(f"the loss is {values['loss']} at step {done}")
                run.log(done, values | {"steps_per_second": rate})
                text = "  ".join(f"{name} {values[name]:.3f}" for name in shown)
                show(done, f"{text}  {rate:.2f} steps/s")
                recent, started = [], time.perf_counter()
            if done % save_every == 0 or done == steps or stopped():
                run.save(state, done, recent)
            if stopped():
                print(f"stopped after step {done}; --resume goes on from there", file=sys.stderr)
                break
    return state


def _as_numbers(history: list[Metrics]) -> list[dict[str, Any]]:
    return jax.tree.map(lambda value: np.asarray(value).tolist(), jax.device_get(history))


def _means(history: list[Metrics]) -> dict[str, Any]:
    """Mean of each metric, a number or a list of numbers."""
    numbers = _as_numbers(history)
    return {
        name: np.mean([metrics[name] for metrics in numbers], axis=0).tolist()
        for name in numbers[0]
    }
