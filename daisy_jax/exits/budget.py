"""The threshold that keeps within a budget of layers."""

import bisect

import numpy as np
import numpy.typing as npt
from jaxtyping import Float

from daisy_jax.errors import InputError
from daisy_jax.exits.steps import exit_steps


def threshold_for_budget(
    entropy: Float[np.ndarray, "utterances layers"] | npt.ArrayLike,
    mean_layers: float | np.number,
    allowed: npt.ArrayLike | None = None,
) -> float:
    """The smallest threshold whose mean exit layer on these utterances is within a budget.

    Args:
      entropy: float [utterances, L], nats, as in `Calibration.entropy`.
      mean_layers: the largest mean exit layer wanted, from 1 to L.
      allowed: bool [L], where an utterance may leave; None: everywhere.

    Returns:
      The threshold, nats, a float32 value; -inf if the budget allows everybody the deepest layer.

    Raises:
      InputError: even leaving at the first allowed layer costs more than the budget.
    """
    layers, lowest, candidates = exit_steps(entropy, allowed)

    def within_budget(threshold: float) -> bool:
        # Leaving at the deepest layer, less each step that a layer before it spares.
        stays = lowest >= threshold
        total = layers[0] * len(lowest) + int(np.sum(stays.sum(axis=0) * np.diff(layers)))
        return bool(total / len(lowest) <= mean_layers)

    if not within_budget(candidates[-1]):
        raise InputError(
            f"a mean exit layer of {mean_layers} cannot be reached: the first allowed layer is "
            f"{layers[0]}; raise the budget or allow earlier layers"
        )
    return float(candidates[bisect.bisect_left(candidates, True, key=within_budget)])
