"""Where exits move as a threshold rises: what every search for a threshold walks along."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from jaxtyping import Float, Float32, Int

from daisy_jax.errors import InputError
from daisy_jax.exits.rules import layer_numbers


class ExitSteps(NamedTuple):
    """All ways of leaving that one threshold for everybody can bring about."""

    layers: Int[np.ndarray, " allowed"]
    """Numbers of the allowed layers, from 1."""
    lowest: Float32[np.ndarray, "utterances before_last"]
    """Each utterance's smallest entropy up to each allowed layer but the deepest, nats. It leaves
    at the first of them that is below the threshold, else at the deepest."""
    thresholds: Float[np.ndarray, " steps"]
    """Ascending, from -inf, where everybody leaves at the deepest allowed layer; between two of
    them nobody moves. float32 values."""

    def totals(
        self, values: Float[np.ndarray, "utterances allowed"]
    ) -> Float[np.ndarray, " steps"]:
        """At each threshold the sum of what utterances have where they leave, rounded a little."""
        # An utterance leaves at a layer while the threshold is above the smallest entropy up to
        # there and not above the smallest before it.
        start = np.searchsorted(self.thresholds, self.lowest, side="right")
        ones = np.ones((len(values), 1), np.int64)
        first = np.concatenate([start, 0 * ones], axis=1)
        end = np.concatenate([len(self.thresholds) * ones, start], axis=1)
        change = np.zeros(len(self.thresholds) + 1)
        np.add.at(change, first, values)
        np.add.at(change, end, -values)
        return np.cumsum(change[:-1])


def exit_steps(
    entropy: Float[np.ndarray, "utterances layers"] | npt.ArrayLike,
    allowed: npt.ArrayLike | None,
) -> ExitSteps:
    """The steps of some utterances; arguments as of `threshold_for_budget`."""
    entropy = np.asarray(entropy, np.float32)
    if entropy.ndim != 2 or not entropy.size:
        raise InputError(f"entropy has the shape {entropy.shape}; it must be [utterances, layers]")
    layers = layer_numbers(allowed, entropy.shape[1])
    entropy = np.where(np.isnan(entropy), np.inf, entropy)[:, layers - 1]
    # An utterance is still inside after a layer unless a smaller entropy fired before: only the
    # running minimum matters, and the exit layer falls in steps as the threshold rises past it.
    lowest = np.minimum.accumulate(entropy, axis=1)[:, :-1]
    values = np.unique(lowest[np.isfinite(lowest)])
    # Not below the smallest normal number: XLA takes what is smaller for 0.
    above = np.maximum(np.nextafter(values, np.float32(np.inf)), np.finfo(np.float32).tiny)
    return ExitSteps(layers, lowest, np.concatenate([[-np.inf], above]))
