"""Where utterances leave, from entropies, a threshold and the layers at which they may."""

from typing import NamedTuple, TypeVar

import jax
import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float, Int

from daisy_jax.errors import InputError

AnyArray = TypeVar("AnyArray", jax.Array, np.ndarray)


def fires(score: AnyArray, threshold: AnyArray) -> AnyArray:
    """Whether a score, such as a mean entropy, is low enough to leave: below the threshold.

    The one place where they are compared, on a device or on the host. Paper: section 3.1.
    """
    return score < threshold


def exit_layers(
    entropy: Float[np.ndarray, "utterances layers"],
    threshold: float,
    allowed: npt.ArrayLike | None = None,
) -> tuple[Int[np.ndarray, " utterances"], Bool[np.ndarray, " utterances"]]:
    """Where utterances leave, from entropies that were stored before; `encode` decides the same.

    Args:
      entropy: nats, as in `Calibration.entropy`.
      threshold: nats; an utterance leaves at the first allowed layer whose entropy is below it,
        else, forced, at the deepest allowed one.
      allowed: bool [L], where an utterance may leave; None: everywhere.

    Returns:
      exit layers, 1..L, and who was forced out.
    """
    layers = layer_numbers(allowed, entropy.shape[1])
    # Rounded to float32 as encode rounds it; stored entropies are exact in it.
    low = fires(np.asarray(entropy, np.float32)[:, layers - 1], np.asarray(threshold, np.float32))
    forced = np.logical_not(low.any(axis=1))
    return layers[np.where(forced, -1, low.argmax(axis=1))], forced


class ExitRule(NamedTuple):
    """Where utterances leave, as `encode` takes it."""

    name: str
    threshold: float | None
    """Nats; None: at the deepest allowed layer, without any branch."""
    allowed: Bool[np.ndarray, " layers"]
    """Where they may leave."""

    @property
    def allowed_or_all(self) -> Bool[np.ndarray, " layers"] | None:
        """`allowed` for a jitted function; None where everybody runs all layers.

        A jitted function cannot see that, and would ask for each layer.
        """
        return None if self.threshold is None and self.allowed[-1] else self.allowed

    @property
    def evaluated(self) -> Bool[np.ndarray, " layers"]:
        """The layers whose branches are computed."""
        return self.allowed if self.threshold is not None else np.zeros_like(self.allowed)

    def exits(
        self, entropy: Float[np.ndarray, "utterances layers"]
    ) -> tuple[Int[np.ndarray, " utterances"], Bool[np.ndarray, " utterances"]]:
        """From stored entropies: exit layers, and who was forced out."""
        threshold = -np.inf if self.threshold is None else self.threshold
        if self.threshold is None:  # a model without branches has no entropies
            entropy = np.full((len(entropy), len(self.allowed)), np.inf, np.float32)
        return exit_layers(entropy, threshold, self.allowed)


def fixed_layer(layer: int, num_layers: int) -> ExitRule:
    """Everybody leaves at one layer; the last one is full depth."""
    if not 1 <= layer <= num_layers:
        raise InputError(f"layer {layer} of a model with {num_layers} layers")
    name = "full depth" if layer == num_layers else f"static layer {layer}"
    return ExitRule(name, None, np.arange(1, num_layers + 1) == layer)


def layer_numbers(allowed: npt.ArrayLike | None, num_layers: int) -> Int[np.ndarray, " allowed"]:
    """Numbers of the allowed layers, from 1; None: all."""
    allowed = np.ones(num_layers, bool) if allowed is None else np.asarray(allowed, bool)
    if allowed.shape != (num_layers,) or not allowed.any():
        raise InputError(
            f"allowed must be bool [{num_layers}] with at least one layer; it has the shape "
            f"{allowed.shape} and {int(allowed.sum())} layers"
        )
    return np.flatnonzero(allowed) + 1
