"""How well branches predict HuBERT's own frame labels: what stage 1 minimizes, and measures."""

from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from daisy_jax import audio
from daisy_jax.model.branches import (
    Branches,
    agreement_with_last,
    branch_loss,
    utterance_entropy,
    utterance_loss,
)
from daisy_jax.model.frame_labels import label_frames
from daisy_jax.model.hubert import Hubert, embed
from daisy_jax.model.layer_loops import tapped_layers

Waveform: TypeAlias = Float[Array, "batch samples"]
Lengths: TypeAlias = Int[Array, " batch"]
Labels: TypeAlias = Int[Array, "batch frames"]
Metrics: TypeAlias = dict[str, Float[Array, "..."]]


def _labelled_taps(
    trunk: Hubert, waveform: Waveform, lengths: Lengths, labels: Labels | None
) -> tuple[Float[Array, "layers batch frames dim"], Labels, Bool[Array, "batch frames"]]:
    """Taps, labels, and which frames are valid."""
    embedded = embed(trunk, waveform, lengths)
    last, tapped = jax.lax.stop_gradient(tapped_layers(trunk, embedded))
    if labels is None:
        labels = label_frames(trunk, last, embedded.frame_mask)
    return tapped, labels, embedded.frame_mask


def branches_loss(
    branches: Branches,
    trunk: Hubert,
    waveform: Waveform,
    lengths: Lengths,
    labels: Labels | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """Sum over the branches of eq. (1), nats, on unmasked input; no gradient reaches the trunk.

    Rows without a frame do not count, nor do labels of padded frames. Without labels the trunk's
    own prediction head gives them.

    Returns:
      the loss and metrics: "loss" and "accuracy", means over the branches; "layer_loss" and
      "layer_accuracy", float [L]; "audio_seconds" in the batch.
    """
    tapped, labels, mask = _labelled_taps(trunk, waveform, lengths, labels)

    def one_branch(
        branch: Branches, tapped: Float[Array, "batch frames dim"]
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        logits = branch(tapped)
        hits = jnp.argmax(logits, axis=-1) == labels
        return branch_loss(logits, labels, mask), jnp.sum(hits & mask) / jnp.maximum(mask.sum(), 1)

    losses, accuracies = jax.vmap(one_branch)(branches, tapped)
    return jnp.sum(losses), {
        "loss": jnp.mean(losses),
        "accuracy": jnp.mean(accuracies),
        "layer_loss": losses,
        "layer_accuracy": accuracies,
        "audio_seconds": jnp.sum(lengths).astype(jnp.float32) / audio.SAMPLE_RATE,
    }


class BranchScores(NamedTuple):
    """How well branches do on each utterance."""

    entropy: Float[Array | np.ndarray, "batch layers"]
    """float32, nats: eq. (2)."""
    loss: Float[Array | np.ndarray, "batch layers"]
    """float32, nats: the mean over the utterance's frames."""
    hits: Int[Array | np.ndarray, "batch layers"]
    """int32, frames whose label is predicted."""
    agreement: Float[Array | np.ndarray, "batch layers"]
    """float32, share of the frames to which a branch gives the class that the last one gives."""
    frames: Int[Array | np.ndarray, " batch"]
    """int32, valid frames."""


def branch_scores(
    branches: Branches,
    trunk: Hubert,
    waveform: Waveform,
    lengths: Lengths,
    labels: Labels | None = None,
) -> BranchScores:
    """Scores of every utterance at every layer; arguments as of `branches_loss`."""
    tapped, labels, mask = _labelled_taps(trunk, waveform, lengths, labels)

    def one_layer(branch_and_tapped):
        branch, tapped = branch_and_tapped
        logits = branch(tapped)
        chosen = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        return utterance_entropy(logits, mask), utterance_loss(logits, labels, mask), chosen

    # One after the other: logits of all layers would take as much memory as a training step.
    entropy, loss, chosen = jax.lax.map(one_layer, (branches, tapped))
    hits = jnp.sum((chosen == labels[None]) & mask[None], axis=-1, dtype=jnp.int32)
    agreement = agreement_with_last(chosen, mask)
    frames = jnp.sum(mask, axis=-1, dtype=jnp.int32)
    return BranchScores(entropy.T, loss.T, hits.T, agreement.T, frames)
