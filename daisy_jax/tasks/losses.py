"""Losses of the downstream tasks."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax


def ctc_loss(
    logits: jax.Array, frame_mask: jax.Array, labels: jax.Array, label_mask: jax.Array
) -> jax.Array:
    """Connectionist temporal classification, per label: the mean that torch's CTCLoss takes.

    Args:
      logits: float [batch, frames, classes]; class 0 is the blank.
      frame_mask: bool [batch, frames].
      labels: int [batch, labels], from 1; whatever where the mask is false.
      label_mask: bool [batch, labels].

    Returns:
      float32 scalar, nats: over the utterances, the mean of each loss divided by its number of
      labels. An utterance with fewer frames than its labels need counts as 0 (zero_infinity), a
      row without a frame not at all.

    Source: Graves et al. 2006.
    """
    losses = optax.ctc_loss(
        logits.astype(jnp.float32),
        1.0 - frame_mask.astype(jnp.float32),
        jnp.where(label_mask, labels, 0),
        1.0 - label_mask.astype(jnp.float32),
    )
    count = jnp.sum(label_mask, axis=-1, dtype=jnp.int32)
    # Between two equal labels there must be a blank.
    repeats = (labels[:, 1:] == labels[:, :-1]) & label_mask[:, 1:]
    needed = count + jnp.sum(repeats, axis=-1, dtype=jnp.int32)
    possible = jnp.sum(frame_mask, axis=-1, dtype=jnp.int32) >= needed
    per_label = losses / jnp.maximum(count, 1).astype(jnp.float32)
    rows = jnp.maximum(jnp.sum(jnp.any(frame_mask, axis=-1)), 1).astype(jnp.float32)
    return jnp.sum(jnp.where(possible, per_label, 0)) / rows


def best_permutation(scores: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The assignment of estimates to targets with the highest mean score.

    Args:
      scores: float [batch, sources, sources], of estimate (second axis) against target (third).

    Returns:
      the mean score, float [batch], and for each target its estimate, int32 [batch, sources].

    Source: utterance-level permutation invariant training, Kolbaek et al. 2017.
    """
    sources = scores.shape[-1]
    orders = np.array(list(itertools.permutations(range(sources))), np.int32)
    means = jnp.mean(scores[:, orders, np.arange(sources)[None]], axis=-1)  # [batch, orders]
    best = jnp.argmax(means, axis=-1)
    return jnp.max(means, axis=-1), jnp.asarray(orders)[best]
