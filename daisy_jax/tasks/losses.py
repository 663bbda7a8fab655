"""Losses of the downstream tasks."""

import itertools
from typing import TypeAlias

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

# What task heads and their losses take:
Features: TypeAlias = Float[Array, "batch frames dim"]
"""float32, of eq. (4) up to each exit."""
Counts: TypeAlias = Int[Array, " batch"]
"""Valid frames, or samples, of each row of a batch."""


def utterance_mean(
    losses: Float[Array, " batch"], there: Bool[Array, " batch"]
) -> Float[Array, ""]:
    """Mean loss of the rows that are utterances; rows that only fill the batch do not count."""
    count = jnp.maximum(jnp.sum(there), 1).astype(jnp.float32)
    return jnp.sum(jnp.where(there, losses, 0)) / count


def ctc_loss(
    logits: Float[Array, "batch frames classes"],
    frame_mask: Bool[Array, "batch frames"],
    labels: Int[Array, "batch labels"],
    label_mask: Bool[Array, "batch labels"],
) -> Float[Array, ""]:
    """Connectionist temporal classification, per label: the mean that torch's CTCLoss takes.

    Args:
      logits: scores; class 0 is the blank.
      frame_mask: true on valid frames.
      labels: from 1; whatever where the mask is false.
      label_mask: true on a text's labels.

    Returns:
      float32, nats: over the utterances, the mean of each loss divided by its number of labels. An
      utterance with fewer frames than its labels need counts as 0 (zero_infinity), a row without a
      frame not at all.

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
    return utterance_mean(jnp.where(possible, per_label, 0), jnp.any(frame_mask, axis=-1))


def best_permutation(
    scores: Float[Array, "batch sources sources"],
) -> tuple[Float[Array, " batch"], Int[Array, "batch sources"]]:
    """The assignment of estimates to targets with the highest mean score.

    Args:
      scores: of each estimate (second axis) against each target (third).

    Returns:
      The mean score, and for each target its estimate.

    Source: utterance-level permutation invariant training, Kolbaek et al. 2017.
    """
    sources = scores.shape[-1]
    orders = np.array(list(itertools.permutations(range(sources))), np.int32)
    means = jnp.mean(scores[:, orders, np.arange(sources)[None]], axis=-1)  # [batch, orders]
    best = jnp.argmax(means, axis=-1)
    return jnp.max(means, axis=-1), jnp.asarray(orders)[best]
