"""Exit criteria: what is compared with the threshold at each layer."""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax

from daisy_jax.model.branches import utterance_entropy


@runtime_checkable
class Criterion(Protocol):
    """A score of each utterance at each layer; one below the threshold leaves.

    For a criterion of one's own: a frozen dataclass with these two methods, given to `encode`. It
    is compiled in, so that equal ones must be equal and hash alike.
    """

    def start(self, batch: int) -> Any:
        """What is remembered before the first layer: a pytree of arrays [batch, ...], or ()."""
        ...

    def __call__(
        self, logits: jax.Array, frame_mask: jax.Array, remembered: Any
    ) -> tuple[jax.Array, Any]:
        """The score of a layer's predictions.

        Args:
          logits: float32 [rows, frames, classes], of the layer's branch, for some of the rows.
          frame_mask: bool [rows, frames].
          remembered: of these rows, as the last layer that was asked left it.

        Returns:
          float32 [rows], and what is to be remembered.
        """
        ...


@dataclasses.dataclass(frozen=True)
class MeanEntropy:
    """The mean entropy of a branch's predictions, nats: DAISY's criterion.

    Paper: section 3.1, with eq. (2).
    """

    def start(self, batch: int) -> tuple:
        """Nothing is remembered."""
        return ()

    def __call__(
        self, logits: jax.Array, frame_mask: jax.Array, remembered: tuple
    ) -> tuple[jax.Array, tuple]:
        """As for every `Criterion`."""
        return utterance_entropy(logits, frame_mask), remembered
