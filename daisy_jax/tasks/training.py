"""Stage 2: a head and its layer weights, on features up to each utterance's own exit.

Features come out of a store or out of the upstream itself; either way one jitted step serves all
exits, and no gradient reaches the upstream.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from daisy_jax import audio, parallel
from daisy_jax.data.batches import WholeBatches
from daisy_jax.data.prefetch import Batch, batches
from daisy_jax.devices import fetched_behind
from daisy_jax.encode import encode_taps
from daisy_jax.errors import InputError
from daisy_jax.exits import ExitRule
from daisy_jax.model.hubert import Hubert
from daisy_jax.model.pooling import pool
from daisy_jax.tasks.task import Task
from daisy_jax.tasks.task_data import TaskData

Params = dict[str, Any]
"""`layer_weights`, float32 [L+1], and `head`."""


class Features(NamedTuple):
    """Eq. (4) on a batch."""

    pooled: jax.Array
    """float32 [batch, frames, dim]."""
    num_frames: jax.Array
    """int32 [batch]."""
    exit_layer: jax.Array
    """int32 [batch]."""
    forced: jax.Array
    """bool [batch]."""


def batch_features(
    params: Params, upstream: Hubert | None, threshold: Any, allowed: Any, batch: dict[str, Any]
) -> Features:
    """Pools stored features, or those of the upstream, each device its own rows."""
    if upstream is None:
        items, rest = batch["items"], (batch["num_frames"], batch["exit_layer"], batch["forced"])
    else:
        rows = len(batch["lengths"])
        if threshold is not None:
            threshold = jnp.broadcast_to(jnp.asarray(threshold, jnp.float32), (rows,))

        def own_rows(replicated, waveform, lengths, threshold):
            upstream, allowed = replicated
            out = encode_taps(upstream, waveform, lengths, threshold, allowed)
            return out.hidden_states, out.num_frames, out.exit_layer, out.forced

        run = parallel.over_rows(own_rows, 3)
        frozen = jax.lax.stop_gradient(upstream)
        arguments = (batch["waveform"], batch["lengths"], threshold)
        items, *rest = run((frozen, jax.tree.map(jnp.asarray, allowed)), *arguments)
    pooled = pool(items, params["layer_weights"], rest[1])
    return Features(pooled, *rest)


def new_params(task: Task, dim: int, num_layers: int, classes: tuple[str, ...], seed: int):
    """Layer weights that are all equal, and a new head."""
    head = task.head(dim, classes, rngs=nnx.Rngs(seed))
    return {"layer_weights": jnp.zeros(num_layers + 1, jnp.float32), "head": head}


def head_optimizer(
    learning_rate: float, weight_decay: float, clip: float
) -> optax.GradientTransformation:
    """Adam with a constant rate and decoupled weight decay; the gradient's norm is clipped."""
    return optax.chain(
        optax.clip_by_global_norm(clip), optax.adamw(learning_rate, weight_decay=weight_decay)
    )


def downstream_step(task: Task, optimizer: optax.GradientTransformation, seed: int) -> Callable:
    """One step of stage 2, jitted: from (params, optimizer's state), upstream, rule and batch.

    The batch is one of `TaskData.read` with a scalar "number", from which dropout and augmentation
    are drawn. The step returns the new state, for which the old one is given up, and metrics.
    """

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=parallel.replicated())
    def step(state, upstream, threshold, allowed, batch):
        params, optimizer_state = state
        key = jax.random.fold_in(jax.random.key(seed), batch["number"])

        def loss_of(params):
            features = batch_features(params, upstream, threshold, allowed, batch)
            pooled, num_frames = features.pooled, features.num_frames
            loss = task.loss(params["head"], pooled, num_frames, batch["targets"], key)
            return loss, (num_frames, features.exit_layer)

        (loss, (num_frames, exits)), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, optimizer_state = optimizer.update(gradients, optimizer_state, params)
        rows = jnp.maximum(jnp.sum(num_frames > 0), 1).astype(jnp.float32)
        hop = audio.FRAME_HOP / audio.SAMPLE_RATE
        metrics = {
            "loss": loss,
            "mean_exit_layer": jnp.sum(exits).astype(jnp.float32) / rows,
            "audio_seconds": jnp.sum(num_frames).astype(jnp.float32) * hop,
        }
        return (optax.apply_updates(params, updates), optimizer_state), metrics

    return step


class Evaluation(NamedTuple):
    """What a head does on one part of a corpus."""

    rows: list[dict[str, Any]]
    """For each utterance, in the corpus' order: id, seconds, exit_layer, forced, text, and
    MEASURE_total and MEASURE_weight of each measure."""
    loss: float
    """The task's loss, mean over utterances."""

    def measure(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Totals and weights, float [utterances], of those where the measure is defined."""
        totals = np.asarray([row[f"{name}_total"] for row in self.rows], np.float64)
        weights = np.asarray([row[f"{name}_weight"] for row in self.rows], np.float64)
        defined = np.isfinite(totals)
        return totals[defined], weights[defined]

    def value(self, name: str) -> float:
        """The measure of the whole part; NaN where it is not defined for any utterance."""
        if name == "loss":
            return self.loss
        totals, weights = self.measure(name)
        return float(totals.sum() / weights.sum()) if weights.sum() else float("nan")


class Evaluator:
    """Runs heads over one part of a task's corpus, whole utterances."""

    def __init__(self, data: TaskData, batch_seconds: float):
        self._data, self.task = data, data.task
        samples = round(batch_seconds * audio.SAMPLE_RATE)
        self._draw = WholeBatches(data.lengths, samples, jax.device_count())
        task = data.task

        def run(params, upstream, threshold, allowed, batch):
            features = batch_features(params, upstream, threshold, allowed, batch)
            pooled, num_frames = features.pooled, features.num_frames
            head, targets = params["head"], batch["targets"]
            loss = task.loss(head, pooled, num_frames, targets, None)
            outputs = task.outputs(head, pooled, num_frames, targets)
            return loss, outputs, num_frames, features.exit_layer, features.forced

        self._run = jax.jit(run, out_shardings=parallel.replicated())

    def __call__(
        self,
        params: Params,
        rule: ExitRule,
        exits: tuple[np.ndarray, np.ndarray] | None = None,
        measures: bool = True,
    ) -> Evaluation:
        """Evaluates.

        Args:
          params: on every device.
          rule: where utterances leave.
          exits: exit layers and forced exits in the place of what the rule says; with stored
            features alone.
          measures: whether to measure each utterance; without, there is only the loss.
        """
        data, rows, losses = self._data, {}, []
        if exits is not None and data.upstream is not None:
            raise InputError(
                "exits can be told only where features are stored: with features computed on the "
                "way, utterances leave where the rule lets them (--cache=layers stores them)"
            )
        exits = rule.exits(data.entropy) if exits is None else exits

        def read(number: int) -> Batch:
            crops = self._draw(number)
            width = audio.padded_width(crops[0].samples)
            return data.read(crops, width, exits, parallel.local_rows(len(crops)))

        count = len(self._draw)
        arguments = (params, data.upstream, rule.threshold, rule.allowed_or_all)
        placed = map(parallel.place, batches(read, 0, count, workers=0))
        started = (self._run(*arguments, batch) for batch in placed)
        for number, results in enumerate(fetched_behind(started)):
            loss, outputs, frames, layers, forced = results
            there = int(np.sum(frames > 0))
            losses.append((float(loss) * there, there))
            for row, crop in enumerate(self._draw(number)):
                if not frames[row]:
                    continue
                found: dict[str, Any] = {
                    "id": data.examples.corpus.names[crop.index],
                    "seconds": crop.samples / audio.SAMPLE_RATE,
                    "exit_layer": int(layers[row]),
                    "forced": bool(forced[row]),
                }
                if measures:
                    output = data.task.cut(outputs[row], int(frames[row]), crop.samples)
                    measured = data.task.measure(data.examples, crop.index, output)
                    found["text"] = measured.text
                    for name, (total, weight) in measured.values.items():
                        found |= {f"{name}_total": total, f"{name}_weight": weight}
                rows[crop.index] = found
        total, utterances = np.sum(losses, axis=0)
        return Evaluation([rows[index] for index in sorted(rows)], total / max(utterances, 1))

    def scores(self, params: Params, rule: ExitRule) -> dict[str, Any]:
        """For metrics.jsonl: the loss, and the measures unless the loss is what counts."""
        task = self._data.task
        measured = task.settings.criterion != "loss"
        found = self(params, rule, measures=measured)
        names = task.measures if measured else ()
        return {"validation_loss": found.loss} | {
            f"validation_{name}": found.value(name) for name in names
        }
