"""Stage 2: a task head and its layer weights, on features up to each utterance's own exit.

Features come out of a store or out of the trunk itself; either way one jitted step serves all
exits, and no gradient reaches the trunk.
"""

import collections
import functools
from collections.abc import Callable
from typing import NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PyTree

from daisy_jax import audio, parallel
from daisy_jax.data.batches import WholeBatches
from daisy_jax.data.side_work import Batch, SideProcesses, batches
from daisy_jax.encode import encode_taps
from daisy_jax.errors import InputError
from daisy_jax.exits import ExitRule
from daisy_jax.model.hubert import Hubert
from daisy_jax.model.inputs import AnyArray
from daisy_jax.model.pooling import pool
from daisy_jax.parallel import fetched_behind
from daisy_jax.tasks.metrics import Sums, quotient
from daisy_jax.tasks.task import Measured, Task, TaskSettings
from daisy_jax.tasks.task_data import Exits, TaskData


class Params(TypedDict):
    """What stage 2 trains."""

    layer_weights: Float[Array, " items"]
    """float32, of eq. (4)."""
    head: nnx.Module
    """The task's."""


class Features(NamedTuple):
    """Eq. (4) on a batch."""

    pooled: Float[Array, "batch frames dim"]
    """float32."""
    num_frames: Int[Array, " batch"]
    exit_layer: Int[Array, " batch"]
    forced: Bool[Array, " batch"]


def batch_features(
    params: Params,
    trunk: Hubert | None,
    threshold: float | Float[AnyArray, "*batch"] | None,
    allowed: Bool[AnyArray, " layers"] | None,
    batch: dict[str, PyTree[AnyArray]],
    *,
    normalized: bool = True,
) -> Features:
    """Pools stored features, or those of the trunk, each device its own rows."""
    if trunk is None:
        names = ("items", "num_frames", "exit_layer", "forced")
        items, *rest = (jnp.asarray(batch[name]) for name in names)
    else:
        rows = len(batch["lengths"])
        if threshold is not None:
            threshold = jnp.broadcast_to(jnp.asarray(threshold, jnp.float32), (rows,))

        def own_rows(replicated, waveform, lengths, threshold):
            trunk, allowed = replicated
            out = encode_taps(trunk, waveform, lengths, threshold, allowed)
            assert out.hidden_states is not None
            return out.hidden_states, out.num_frames, out.exit_layer, out.forced

        run = parallel.over_rows(own_rows, 3)
        frozen = jax.lax.stop_gradient(trunk)
        arguments = (batch["waveform"], batch["lengths"], threshold)
        items, *rest = run((frozen, jax.tree.map(jnp.asarray, allowed)), *arguments)
    pooled = pool(items, params["layer_weights"], rest[1], normalized=normalized)
    return Features(pooled, *rest)


def new_params(
    task: Task, dim: int, num_layers: int, classes: tuple[str, ...], seed: int
) -> Params:
    """Layer weights that are all equal, and a new task head."""
    head = task.head(dim, classes, rngs=nnx.Rngs(seed))
    return {"layer_weights": jnp.zeros(num_layers + 1, jnp.float32), "head": head}


def head_optimizer(learning_rate: float, settings: TaskSettings) -> optax.GradientTransformation:
    """Adam with a constant rate and decoupled weight decay; the gradient's norm is clipped."""
    adam = optax.adamw(learning_rate, eps=settings.epsilon, weight_decay=settings.weight_decay)
    return optax.chain(optax.clip_by_global_norm(settings.clip), adam)


def downstream_step(
    task: Task, optimizer: optax.GradientTransformation, seed: int
) -> Callable[..., tuple[tuple[Params, optax.OptState], dict[str, Float[Array, ""]]]]:
    """One step of stage 2, jitted: from (params, optimizer's state), trunk, rule and batch.

    The batch is one of `TaskData.read` with a scalar "number", from which dropout and augmentation
    are drawn. The step returns the new state, for which the old one is given up, and metrics.
    """
    options = {"normalized": task.settings.normalize}

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=parallel.replicated())
    def step(state, trunk, threshold, allowed, batch):
        params, optimizer_state = state
        key = jax.random.fold_in(jax.random.key(seed), batch["number"])

        def loss_of(params):
            features = batch_features(params, trunk, threshold, allowed, batch, **options)
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


class Utterance(NamedTuple):
    """What a task head does with one utterance."""

    id: str
    samples: int
    exit_layer: int
    forced: bool
    measured: Measured
    """Empty where nothing was measured."""


WAITING = 64
"""Utterances that may be with other processes, to be measured: their audio takes memory."""


class Evaluation(NamedTuple):
    """What a task head does on one part of a corpus."""

    utterances: list[Utterance]
    """In the corpus' order."""
    loss: float
    """The task's loss, mean over utterances."""

    def measure(self, name: str) -> Sums:
        """Totals and weights of the utterances for which the measure is defined."""
        sums = np.asarray([row.measured.values[name] for row in self.utterances], np.float64)
        totals, weights = sums[np.isfinite(sums[:, 0])].T
        return totals, weights

    def value(self, name: str) -> float:
        """The measure of the whole part; NaN where it is not defined for any utterance."""
        return self.loss if name == "loss" else float(quotient(*self.measure(name)))


class Evaluator:
    """Runs task heads over one part of a task's corpus, whole utterances."""

    def __init__(self, data: TaskData, batch_seconds: float):
        self._data, self.task = data, data.task
        self.names = data.examples.corpus.names
        samples = round(batch_seconds * audio.SAMPLE_RATE)
        self._draw = WholeBatches(data.lengths, samples, jax.device_count())
        task, options = data.task, {"normalized": data.task.settings.normalize}

        def run(params, trunk, threshold, allowed, batch):
            features = batch_features(params, trunk, threshold, allowed, batch, **options)
            pooled, num_frames = features.pooled, features.num_frames
            head, targets = params["head"], batch["targets"]
            loss = task.loss(head, pooled, num_frames, targets, None)
            outputs = task.outputs(head, pooled, num_frames, targets)
            return loss, outputs, num_frames, features.exit_layer, features.forced

        self._run = jax.jit(run, out_shardings=parallel.replicated())
        self._processes = SideProcesses()

    def __call__(
        self, params: Params, rule: ExitRule, exits: Exits | None = None, measures: bool = True
    ) -> Evaluation:
        """Evaluates.

        Args:
          params: on every device.
          rule: where utterances leave.
          exits: in the place of what the rule says; with stored features alone.
          measures: whether to measure each utterance; without, there is only the loss.
        """
        data, losses = self._data, []
        utterances: dict[int, Utterance] = {}
        waiting: collections.deque[tuple[int, Callable[[], Measured]]] = collections.deque()

        def take() -> None:
            index, measured = waiting.popleft()
            utterances[index] = utterances[index]._replace(measured=measured())

        if exits is not None and data.trunk is not None:
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
        arguments = (params, data.trunk, rule.threshold, rule.allowed_or_all)
        placed = map(parallel.place, batches(read, 0, count, workers=0))
        started = (self._run(*arguments, batch) for batch in placed)
        for number, results in enumerate(fetched_behind(started)):
            loss, outputs, frames, layers, forced = results
            there = int(np.sum(frames > 0))
            losses.append((float(loss) * there, there))
            for row, crop in enumerate(self._draw(number)):
                if not frames[row]:
                    continue
                name, exit_layer = data.examples.corpus.names[crop.index], int(layers[row])
                utterances[crop.index] = Utterance(
                    name, crop.samples, exit_layer, bool(forced[row]), Measured({})
                )
                if measures:
                    output = data.task.cut(np.asarray(outputs[row]), int(frames[row]), crop.samples)
                    begun = (data.examples, crop.index, output, self._processes)
                    waiting.append((crop.index, data.task.measure_beside(*begun)))
                    if len(waiting) > WAITING:
                        take()
        while waiting:
            take()
        total, count = np.sum(losses, axis=0)
        in_order = [utterances[index] for index in sorted(utterances)]
        return Evaluation(in_order, float(total / max(count, 1)))

    def unprocessed(self) -> dict[str, float]:
        """The means of the input's own measures, by name; empty where the task has no such."""
        data, measured = self._data, []
        for start in range(0, len(data.lengths), WAITING):
            begun = []
            for index in range(start, min(start + WAITING, len(data.lengths))):
                output = data.task.unprocessed(data.examples, index)
                if output is not None:
                    arguments = (data.examples, index, output, self._processes)
                    begun.append(data.task.measure_beside(*arguments))
            measured += [waited().values for waited in begun]
        names = measured[0] if measured else ()
        return {name: float(np.nanmean([values[name][0] for values in measured])) for name in names}

    def scores(self, params: Params, rule: ExitRule) -> dict[str, float]:
        """For metrics.jsonl: the loss, and the measures unless the loss is what counts."""
        measured = self.task.settings.criterion != "loss"
        evaluation = self(params, rule, measures=measured)
        names = ["loss", *(self.task.measures if measured else ())]
        return {f"validation_{name}": evaluation.value(name) for name in names}
