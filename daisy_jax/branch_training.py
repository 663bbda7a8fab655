"""Stage 1: all branches learn HuBERT's own frame labels, in one step, from a frozen trunk."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from daisy_jax.branches import Branches, branch_loss
from daisy_jax.hubert import Hubert, embed, label_frames, tapped_layers


def branches_loss(
    branches: Branches, trunk: Hubert, waveform: jax.Array, lengths: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Sum over the branches of eq. (1), on labels that the trunk's head gives to unmasked input.

    Args:
      branches: what is trained.
      trunk: a model with a prediction head; no gradient reaches it.
      waveform: float [batch, samples], 16 kHz.
      lengths: int [batch], true sample counts; rows without a frame do not count.

    Returns:
      the sum of the branches' losses, nats, and metrics: "loss" and "accuracy", means over the
      branches; "layer_loss" and "layer_accuracy", float [L].
    """
    embedded = embed(trunk, waveform, lengths)
    mask = embedded.frame_mask
    last, tapped = jax.lax.stop_gradient(tapped_layers(trunk, embedded))
    labels = label_frames(trunk, last, mask)

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
    }


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
