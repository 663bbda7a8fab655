"""Stage 1: all branches learn HuBERT's own frame labels, in one step, from a frozen trunk."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from daisy_jax import audio, parallel
from daisy_jax.model.branches import Branches, branch_loss, utterance_entropy, utterance_loss
from daisy_jax.model.frame_labels import label_frames
from daisy_jax.model.hubert import Hubert, embed
from daisy_jax.model.layer_loops import tapped_layers


def _labelled_taps(
    trunk: Hubert, waveform: jax.Array, lengths: jax.Array, labels: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Taps [L, batch, frames, dim], labels int [batch, frames], bool mask [batch, frames]."""
    embedded = embed(trunk, waveform, lengths)
    last, tapped = jax.lax.stop_gradient(tapped_layers(trunk, embedded))
    if labels is None:
        labels = label_frames(trunk, last, embedded.frame_mask)
    return tapped, labels, embedded.frame_mask


def branches_loss(
    branches: Branches,
    trunk: Hubert,
    waveform: jax.Array,
    lengths: jax.Array,
    labels: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Sum over the branches of eq. (1), on unmasked input.

    Args:
      branches: what is trained.
      trunk: a model; no gradient reaches it.
      waveform: float [batch, samples], 16 kHz.
      lengths: int [batch], true sample counts; rows without a frame do not count.
      labels: int [batch, frames], whatever on padded frames; None: those of the trunk's own
        prediction head.

    Returns:
      the sum of the branches' losses, nats, and metrics: "loss" and "accuracy", means over the
      branches; "layer_loss" and "layer_accuracy", float [L]; "audio_seconds" in the batch.
    """
    tapped, labels, mask = _labelled_taps(trunk, waveform, lengths, labels)

    def one_branch(branch, tapped):
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

    entropy: jax.Array | np.ndarray
    """float32 [batch, L], nats: eq. (2)."""
    loss: jax.Array | np.ndarray
    """float32 [batch, L], nats: the mean over the utterance's frames."""
    hits: jax.Array | np.ndarray
    """int32 [batch, L], frames whose label is predicted."""
    frames: jax.Array | np.ndarray
    """int32 [batch], valid frames."""


def branch_scores(
    branches: Branches,
    trunk: Hubert,
    waveform: jax.Array,
    lengths: jax.Array,
    labels: jax.Array | None = None,
) -> BranchScores:
    """Scores of every utterance at every layer. Arguments as of `branches_loss`."""
    tapped, labels, mask = _labelled_taps(trunk, waveform, lengths, labels)

    def one_layer(branch_and_tapped):
        branch, tapped = branch_and_tapped
        logits = branch(tapped)
        hits = (jnp.argmax(logits, axis=-1) == labels) & mask
        return (
            utterance_entropy(logits, mask),
            utterance_loss(logits, labels, mask),
            jnp.sum(hits, axis=-1, dtype=jnp.int32),
        )

    # One after the other: logits of all layers would take as much memory as a training step.
    entropy, loss, hits = jax.lax.map(one_layer, (branches, tapped))
    frames = jnp.sum(mask, axis=-1, dtype=jnp.int32)
    return BranchScores(entropy.T, loss.T, hits.T, frames)


def clip_each_branch(max_norm: float) -> optax.GradientTransformation:
    """Scales each layer's gradient to a norm of at most `max_norm`, apart from the other layers'.

    A norm over all branches would couple them: one branch's outlier would slow all others down.
    """

    def update(gradients: Any, params: Any = None) -> Any:
        del params
        norms = jax.vmap(optax.tree.norm)(gradients)  # [L]
        scale = jnp.minimum(1, max_norm / jnp.maximum(norms, 1e-12))
        return jax.tree.map(
            lambda leaf: leaf * scale.reshape((-1,) + (1,) * (leaf.ndim - 1)), gradients
        )

    return optax.stateless(update)


def branch_optimizer(
    learning_rate: optax.ScalarOrSchedule, weight_decay: float, clip: float
) -> optax.GradientTransformation:
    """Adam as HuBERT's (betas 0.9 and 0.98, decoupled weight decay), each branch clipped apart."""
    return optax.chain(
        clip_each_branch(clip),
        optax.adamw(learning_rate, b1=0.9, b2=0.98, eps=1e-6, weight_decay=weight_decay),
    )


def branch_step(optimizer: optax.GradientTransformation) -> Callable:
    """One step of stage 1, jitted: from (branches, optimizer's state), trunk and batch.

    The batch is a dictionary of `branches_loss`'s arguments, its rows split over the devices. The
    step returns the new state, for which the old one is given up, and metrics.
    """

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=parallel.replicated())
    def step(state, trunk, batch):
        branches, optimizer_state = state
        gradient = jax.grad(branches_loss, has_aux=True)
        gradients, metrics = gradient(branches, trunk, **batch)
        updates, optimizer_state = optimizer.update(gradients, optimizer_state, branches)
        return (optax.apply_updates(branches, updates), optimizer_state), metrics

    return step
