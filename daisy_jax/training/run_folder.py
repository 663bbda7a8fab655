"""Run folders of the training scripts: configuration, metrics, checkpoints that resume exactly.

A run folder holds `config.json` (settings, and the versions they ran with), `metrics.jsonl` (one
line a logged step), `checkpoints/` (Orbax; state, settings and versions of each) and, when the
script has ended, `model/`, a model folder.
"""

import contextlib
import dataclasses
import importlib
import json
import logging
import operator
import os
import pathlib
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import jax
import numpy as np
from jaxtyping import PyTree

from daisy_jax import parallel
from daisy_jax.accelerator import installed_versions
from daisy_jax.checkpoints import fill, named_leaves
from daisy_jax.errors import InputError, require_file
from daisy_jax.reporting import logger
from daisy_jax.training.metrics_log import Metrics, MetricsLog, Values, as_numbers
from daisy_jax.whole_files import arrays_digest, differences, read_json, write_text

CONFIG, CHECKPOINTS = "config.json", "checkpoints"
DIGEST = "sha256"
"""Under which a checkpoint's settings hold the digest of its state."""
# These may differ between a run and its continuation.
FREE_FIELDS = (
    "accelerator",
    "deterministic",
    "features",
    "output",
    "processes",
    "resume",
    "strict",
    "tensorboard",
    "workers",
)
KEPT = 2  # of the latest checkpoints, beside the best

State = TypeVar("State")


@runtime_checkable
class Settings(Protocol):
    """Any dataclass."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]


class Run:
    """A run folder, new or to be continued. With several processes, the first one writes.

    `data` says what the run is trained on beyond its settings, and must not change either. The best
    checkpoint is that with the lowest, or highest, `score` of the validation.

    Raises:
      InputError: the folder holds a checkpoint and `resume` was not asked for, or something else;
        or the run's settings or data differ (the differences are printed), also between
        processes; or there is nothing to resume.
      OSError: the folder cannot be written.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        config: Settings,
        resume: bool,
        *,
        data: Mapping[str, object] | None = None,
        tensorboard: bool = False,
        score: str = "validation_loss",
        higher_is_better: bool = False,
    ):
        import orbax.checkpoint as ocp
        from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

        if tensorboard:
            importlib.import_module("tensorboardX")  # before anything is written
        self.folder = folder.resolve()
        every = dataclasses.asdict(config) | dict(data or {})
        every = json.loads(json.dumps(every, default=str))  # as they are read again
        self.settings = {key: value for key, value in every.items() if key not in FREE_FIELDS}
        earlier = self._earlier()
        if resume and earlier is None:
            raise InputError(f"{folder} holds no run to resume; leave --resume out to start one")
        if earlier is not None and not resume and any(self.folder.glob(f"{CHECKPOINTS}/[0-9]*")):
            raise InputError(
                f"{folder} holds a run; pass --resume to continue it, or another --output"
            )
        if earlier is not None and resume:
            kept = {key: value for key, value in earlier.items() if key not in FREE_FIELDS}
            kept |= self._more_steps(kept.get("steps"))
            changes = [
                f"{name} was {old!r} and is {new!r}"
                for name, (old, new) in differences(kept, self.settings).items()
                if name != "versions"
            ]
            if changes:
                raise InputError(f"{self.folder} was started otherwise: {'; '.join(changes)}")
        parallel.require_same(json.dumps(self.settings, sort_keys=True), "settings and data")
        self.settings["versions"] = _versions()
        if parallel.is_first():
            self.folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps(every | self.settings, indent=2) + "\n"
            write_text(self.folder / CONFIG, text)
        logging.getLogger("absl").addFilter(_not_from_orbax)

        self._score = score
        best = BestN(
            get_metric_fn=operator.itemgetter(score),
            reverse=not higher_is_better,
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        self._manager = ocp.CheckpointManager(
            self.folder / CHECKPOINTS,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=AnyPreservationPolicy([LatestN(KEPT), best]),
                best_fn=operator.itemgetter(score),
                best_mode="max" if higher_is_better else "min",
                cleanup_tmp_directories=True,  # of a run that was killed while it saved
            ),
        )
        self._log = None
        if parallel.is_first():
            self._log = MetricsLog(self.folder, tensorboard, self._manager.latest_step() or 0)

    def _more_steps(self, earlier: object) -> dict[str, int]:
        """The number of steps, if it is larger than before: a run may go on when it has ended."""
        steps = self.settings.get("steps")
        if not isinstance(earlier, int) or not isinstance(steps, int) or steps <= earlier:
            return {}
        logger.info(
            "%s goes on from %d to %d steps; a learning rate that falls to the end follows the "
            "longer run from here on",
            *(self.folder, earlier, steps),
        )
        return {"steps": steps}

    def _earlier(self) -> dict[str, object] | None:
        """What an earlier run left in `config.json`."""
        path = self.folder / CONFIG
        if not path.exists():
            return None
        content = read_json(path, dict[str, object], "give another --output")
        if "versions" not in content:
            raise InputError(
                f"{self.folder} holds no run but something else; give another --output"
            )
        return content

    def restore(self, state: State) -> tuple[State, int, list[Metrics]]:
        """The newest checkpoint: state, step, and the metrics since the last logged step.

        `state` itself, 0 and none if there is no checkpoint.

        Raises:
          InputError: the disk has no room for the checkpoints to come.
        """
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        step = self._manager.latest_step() or 0
        wanted = (KEPT + 2 if step == 0 else 2) * size  # the best, and one that is being written
        free = shutil.disk_usage(self.folder).free
        if free < wanted:
            raise InputError(
                f"{self.folder}: checkpoints need {wanted / 1e6:.0f} MB, and {free / 1e6:.0f} MB "
                "are free; make room, or give another --output"
            )
        recent = []
        if step:
            state, recent = self._read(state, step)
        if self._log is not None:
            self._log.cut(step)
        return state, step, recent

    def _read(self, state: State, step: int) -> tuple[State, list[Metrics]]:
        """The state of one checkpoint, in the place of `state`, and its recent metrics."""
        import orbax.checkpoint as ocp

        place = self.folder / CHECKPOINTS / str(step)
        for path in place.rglob("*"):  # reading a pipe would never end
            if not path.is_dir():
                require_file(path)
        target = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
            named_leaves(state),
        )
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(target), config=ocp.args.JsonRestore()
                ),
            )
        except Exception as error:  # of Orbax, TensorStore, zstd, JSON
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(
                f"{place}: not a whole checkpoint ({reason:.80}); "
                "remove this folder, and --resume takes the one before"
            ) from error
        found = fill(state, restored["state"])
        written = restored["config"].get(DIGEST)  # which earlier versions did not write
        if written is not None and written != state_digest(found):
            raise InputError(
                f"{place}: its numbers are not those that were "
                "saved; remove this folder, and --resume takes the one before"
            )
        return found, restored["config"].get("recent", [])

    def best(self, state: State) -> State:
        """The state with the best score; `state`, the last one, if that is it."""
        with self._written():
            self._manager.wait_until_finished()
        step = self._manager.best_step()
        if step in (None, self._manager.latest_step()):
            return state
        if parallel.is_first():
            named = self._score.replace("_", " ")
            logger.info(
                "the %s was best after step %s; what was learned then is taken", named, step
            )
        return self._read(state, step)[0]

    def save(
        self, state: PyTree, step: int, recent: list[Metrics], scores: Values | None = None
    ) -> None:
        """Writes a checkpoint in the background; others are dropped when it is complete.

        With the state after a step go the metrics that are not logged yet, and the scores of the
        validation if there was one.

        Raises:
          OSError: this checkpoint, or the one before, could not be written. Older ones are whole.
        """
        import orbax.checkpoint as ocp

        if self._manager.latest_step() == step:
            return
        content = ocp.args.Composite(
            state=ocp.args.StandardSave(named_leaves(state)),
            config=ocp.args.JsonSave(
                self.settings | {"recent": as_numbers(recent), DIGEST: state_digest(state)}
            ),
        )
        metrics = scores and {self._score: scores[self._score]}
        with self._written():
            self._manager.save(step, args=content, metrics=metrics)

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        """What Orbax raises while it writes, as one line."""
        try:
            yield
        except (OSError, ValueError) as error:
            # Of TensorStore's errors Orbax passes the text alone, in which the number stands.
            code = re.search(r"os_error_code='?(\d+)", str(error))
            number = int(code[1]) if code else getattr(error, "errno", None)
            reason = os.strerror(number) if number else str(error).splitlines()[0]
            raise OSError(
                f"{self.folder / CHECKPOINTS}: a checkpoint could not be written ({reason}); make "
                f"room, then --resume goes on after step {self._manager.latest_step() or 0}"
            ) from error

    def log(self, step: int, values: Values) -> None:
        """Appends one line to `metrics.jsonl`.

        Raises:
          OSError: it could not be written.
        """
        if self._log is not None:
            self._log.append(step, values)

    def close(self) -> None:
        """Waits for checkpoints that are being written.

        Raises:
          OSError: one could not be written.
        """
        try:
            with self._written():
                self._manager.wait_until_finished()
        finally:
            self._manager.close()
            logging.getLogger("absl").removeFilter(_not_from_orbax)
            if self._log is not None:
                self._log.close()


def state_digest(state: PyTree) -> str:
    """SHA-256 of everything in a state, of which every process has a copy."""
    return arrays_digest(
        {
            name: np.asarray(leaf.addressable_data(0) if isinstance(leaf, jax.Array) else leaf)
            for name, leaf in named_leaves(state).items()
        }
    )


def _not_from_orbax(record: logging.LogRecord) -> bool:
    """Orbax logs what it raises, too; of that our own line is enough."""
    return "orbax" not in record.pathname


def _versions() -> dict[str, str]:
    """What a run's numbers may depend on beside its settings."""
    libraries = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {
        "daisy-jax": sys.modules["daisy_jax"].__version__,
        **installed_versions(*libraries),
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "processes": str(jax.process_count()),
        "command": " ".join(sys.argv),
    }
