"""Thresholds that are certified for a task's own measure."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from daisy_jax import threshold_for_risk
from daisy_jax.exits import ExitRule
from daisy_jax.tasks.evaluation import Choice, sums_by_layer
from daisy_jax.tasks.task import Measure
from daisy_jax.tasks.task_data import TaskData
from daisy_jax.tasks.trained_heads import TrainedHead
from daisy_jax.tasks.training import Evaluator, Params


class Losses(NamedTuple):
    """What utterances lose by leaving early, from 0 to 1."""

    entropy: Float[np.ndarray, "utterances layers"]
    """float32, nats."""
    loss: Float[np.ndarray, "utterances layers"]
    """By how much worse the measure is than at the last layer, as a share of its bounds; never
    less than nothing, so that what others gain pays for nobody's loss."""


def task_losses(head: TrainedHead, data: TaskData, params: Params, batch_seconds: float) -> Losses:
    """Evaluates a task head at every layer; utterances without a measure are left out.

    Args:
      head: the task head.
      data: the utterances.
      params: the head's, on every device.
      batch_seconds: audio in a batch.

    Raises:
      InputError: the task's measure has no bounds.
    """
    measure: Measure = next(iter(data.task.measures.values()))
    totals, weights = sums_by_layer(head, Evaluator(data, batch_seconds), params)
    nothing = np.full_like(totals, np.nan)
    badness = measure.badness(np.divide(totals, weights, out=nothing, where=weights > 0))
    loss = np.maximum(badness - badness[:, -1:], 0)
    defined = np.isfinite(loss).all(axis=1)
    return Losses(data.entropy[defined], loss[defined])


def at_risk(losses: Losses, level: float, confidence: float | None) -> Choice:
    """The cheapest threshold whose expected loss is certified to be at most `level`.

    Raises:
      InputError: no threshold can be certified; it says what would do.
    """
    threshold = threshold_for_risk(losses.entropy, losses.loss, level, confidence)
    rule = ExitRule("", threshold, np.ones(losses.entropy.shape[1], bool))
    sure = "" if confidence is None else f", confidence {confidence:g}"
    return Choice(f"risk {level:g}{sure}", "risk", level, rule)
