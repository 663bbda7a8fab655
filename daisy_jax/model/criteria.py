"""Exit criteria: what is compared with the threshold at each layer."""

import dataclasses
from typing import Protocol, runtime_checkable

from jaxtyping import Array, Bool, Float, PyTree, Shaped

from daisy_jax.model.branches import utterance_entropy


@runtime_checkable
class Criterion(Protocol):
    """A score of each utterance at each layer; one below the threshold leaves.

    For a criterion of one's own: a frozen dataclass with these two methods, given to `encode`. It
    is compiled in, so that equal ones must be equal and hash alike.
    """

    def start(self, batch: int) -> PyTree[Shaped[Array, "batch ..."]]:
        """What is remembered before the first layer: a pytree of arrays, or ()."""
        ...

    def __call__(
        self,
        logits: Float[Array, "rows frames classes"],
        frame_mask: Bool[Array, "rows frames"],
        remembered: PyTree[Shaped[Array, "rows ..."]],
    ) -> tuple[Float[Array, " rows"], PyTree[Shaped[Array, "rows ..."]]]:
        """The score of a layer's predictions, and what is to be remembered.

        Args:
          logits: float32, of the layer's branch, for some of the rows of a batch.
          frame_mask: true on the valid frames of these rows.
          remembered: of these rows, as the last layer that was asked left it.
        """
        ...


@dataclasses.dataclass(frozen=True)
class MeanEntropy:
    """The mean entropy of a branch's predictions, nats: DAISY's criterion.

    Paper: section 3.1, with eq. (2).
    """

    def start(self, batch: int) -> tuple[()]:
        """Nothing is remembered."""
        return ()

    def __call__(
        self,
        logits: Float[Array, "rows frames classes"],
        frame_mask: Bool[Array, "rows frames"],
        remembered: tuple[()],
    ) -> tuple[Float[Array, " rows"], tuple[()]]:
        """As for every `Criterion`."""
        return utterance_entropy(logits, frame_mask), remembered
