"""Exit criteria: what is compared with the threshold at each layer."""

import dataclasses
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped

from daisy_jax.model.branches import frame_mean, utterance_entropy


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


@dataclasses.dataclass(frozen=True)
class LeastConfidence:
    """One minus the mean of the largest probabilities, in [0, 1): how unsure a branch is.

    Source: the usual criterion of early exits in language models, such as Schuster et al. 2022,
    "Confident adaptive language modeling", section 3.4; here it is a mean over frames.
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
        largest = jnp.max(jax.nn.softmax(logits.astype(jnp.float32)), axis=-1)
        return frame_mean(1 - largest, frame_mask), remembered


@dataclasses.dataclass(frozen=True)
class Patience:
    """The largest share of frames whose label has changed in any of the last layers, in [0, 1].

    Below a threshold once labels have hardly changed for `layers` layers in a row; as long as there
    were not so many it is 2, above every share.

    Source: Zhou et al. 2020, "BERT loses patience", which counts layers with one same label.
    """

    frames: int
    """Of the batches that it is used for: `daisy_jax.audio.frame_count` of their width."""
    layers: int = 1
    """How many in a row, one after the other, counting those that are asked."""

    def start(self, batch: int) -> tuple[Int[Array, "batch frames"], Float[Array, "batch layers"]]:
        """No label, and no share of changes."""
        return (
            jnp.full((batch, self.frames), -1, jnp.int32),
            jnp.full((batch, self.layers), 2.0, jnp.float32),
        )

    def __call__(
        self,
        logits: Float[Array, "rows frames classes"],
        frame_mask: Bool[Array, "rows frames"],
        remembered: tuple[Int[Array, "rows frames"], Float[Array, "rows layers"]],
    ) -> tuple[
        Float[Array, " rows"], tuple[Int[Array, "rows frames"], Float[Array, "rows layers"]]
    ]:
        """As for every `Criterion`."""
        labels = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        before, shares = remembered
        changed = frame_mean((labels != before).astype(jnp.float32), frame_mask)
        first = before[:, 0] < 0  # the first layer has none to be compared with
        shares = jnp.concatenate([shares[:, 1:], jnp.where(first, 2.0, changed)[:, None]], axis=1)
        return jnp.max(shares, axis=1), (labels, shares)
