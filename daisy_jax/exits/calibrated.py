"""What branches said of a data set, and the threshold that the paper makes of them."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.core import Tracer
from jaxtyping import Array, Float

from daisy_jax.errors import InputError


@dataclasses.dataclass(frozen=True, eq=False)
class Calibration:
    """What branches said of a data set, from which thresholds are made."""

    entropy: Float[np.ndarray, "utterances layers"]
    """Nats: each utterance's mean entropy at each layer."""
    dataset: str = ""
    """Name of the data set."""
    agreement: Float[np.ndarray, "utterances layers"] | None = None
    """Share of each utterance's frames to which a layer's branch gives the last layer's label; None
    in a calibration of before this was kept."""

    @property
    def mean_entropy(self) -> Float[np.ndarray, " layers"]:
        """float32, nats: the mean over utterances."""
        return np.asarray(np.mean(self.entropy, axis=0, dtype=np.float64), np.float32)

    # A model carries its calibration as static data, so that it has to be hashable by content.
    @functools.cached_property
    def _key(self) -> tuple:
        arrays = (self.entropy,) if self.agreement is None else (self.entropy, self.agreement)
        return self.dataset, *((a.dtype.str, a.shape, a.tobytes()) for a in arrays)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Calibration) and (self is other or self._key == other._key)

    def __hash__(self) -> int:
        return self._hash

    @functools.cached_property
    def _hash(self) -> int:
        return hash(self._key)


def exit_threshold(
    mean_entropy: Float[Array, " layers"] | npt.ArrayLike,
    ratio: float | np.number | Float[Array, ""],
) -> Float[Array, ""]:
    """Entropy below which an utterance leaves the model.

    The mid-point between the largest and the smallest layer-wise mean entropy, scaled. A smaller
    ratio means later exits and more compute.

    Args:
      mean_entropy: float [L], mean branch entropy of each layer over a data set, nats.
      ratio: ρ, in [0, 1]; the paper uses 0.7, 0.76 and 1.0.

    Returns:
      The threshold τ, float32 scalar, nats.

    Raises:
      InputError: the ratio is concrete and outside of [0, 1].

    Paper: eq. (3), section 3.2.
    """
    if not isinstance(ratio, Tracer) and not 0 <= ratio <= 1:
        raise InputError(f"ratio is {ratio}; it must be in [0, 1], smaller for later exits")
    mean_entropy = jnp.asarray(mean_entropy, jnp.float32)
    return (jnp.max(mean_entropy) + jnp.min(mean_entropy)) / 2 * ratio
