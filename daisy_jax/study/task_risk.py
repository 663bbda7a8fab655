"""Thresholds that are certified for a task's own measure."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from daisy_jax import InputError, threshold_for_risk
from daisy_jax.exits import ExitRule
from daisy_jax.model.hubert import Hubert
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
    less than nothing, so that one utterance's gain does not make up for another's loss. 1 where the
    measure is defined at the last layer alone."""


def why_no_risk(head: TrainedHead, trunk: Hubert) -> str | None:
    """Why no threshold can be certified for a task head on a trunk; None: it can."""
    measure = next(iter(head.task.measures.values()))
    if trunk.branches is None:
        return "the trunk has no branches, so that nobody can leave early"
    if measure.bounds is None:
        return f"{measure.title} has no bounds, so that nothing says how bad a value is"
    if not head.rule.allowed[-1]:
        return "the task head has never seen the last layer, which others are compared with"
    return None


def task_losses(head: TrainedHead, data: TaskData, params: Params, batch_seconds: float) -> Losses:
    """Evaluates a task head at every layer.

    Utterances whose measure is not defined at the last layer are left out.

    Args:
      head: the task head, for which there is no `why_no_risk`.
      data: the utterances.
      params: the head's, on every device.
      batch_seconds: audio in a batch.

    Raises:
      InputError: the measure is not defined for any utterance.
    """
    measure: Measure = next(iter(data.task.measures.values()))
    totals, weights = sums_by_layer(head, Evaluator(data, batch_seconds), params)
    nothing = np.full_like(totals, np.nan)
    badness = measure.badness(np.divide(totals, weights, out=nothing, where=weights > 0))
    defined = np.isfinite(badness[:, -1])
    if not defined.any():
        raise InputError(f"{measure.title} is not defined for any of {len(defined)} utterances")
    badness = badness[defined]
    loss = np.where(np.isnan(badness), 1, np.maximum(badness - badness[:, -1:], 0))
    return Losses(data.entropy[defined], loss)


def at_risk(losses: Losses, level: float, confidence: float | None) -> Choice:
    """The cheapest threshold whose expected loss is certified to be at most `level`.

    Raises:
      InputError: no threshold can be certified; it says what would do.
    """
    threshold = threshold_for_risk(losses.entropy, losses.loss, level, confidence)
    # Where nobody may leave early no branch need be asked.
    chosen = None if threshold == -np.inf else threshold
    rule = ExitRule("", chosen, np.ones(losses.entropy.shape[1], bool))
    sure = "" if confidence is None else f", confidence {confidence:g}"
    return Choice(f"risk {level:g}{sure}", "risk", level, rule)
