"""Eq. 4: LayerNorm on every hidden state up to the exit, and a weighted sum of them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from daisy_jax.model.feature_encoder import EPSILON


def normalize(hidden: Float[Array, "*rows dim"]) -> Float[Array, "*rows dim"]:
    """LayerNorm without scale and bias over the last axis, in float32: that of eq. (4)."""
    hidden = hidden.astype(jnp.float32)
    deviation = hidden - jnp.mean(hidden, axis=-1, keepdims=True)
    variance = jnp.mean(deviation * deviation, axis=-1, keepdims=True)
    return deviation * jax.lax.rsqrt(variance + EPSILON)


class RunningWeights(NamedTuple):
    """Softmax weights of items 0..L that can be applied one item after the other.

    After item k the running sum is `keep[k] * sum + add[k] * item`, which is the softmax over items
    0..k alone: what an exit at layer k needs, whatever comes behind it.
    """

    keep: Float[Array, "*items"]
    """float32 [L+1], or one number for one layer."""
    add: Float[Array, "*items"]
    """As `keep`."""


def running_weights(layer_weights: Float[Array, " items"]) -> RunningWeights:
    """From raw scores of items 0..L. A score of -inf leaves its item out."""
    items = jnp.arange(len(layer_weights))
    shares = prefix_softmax(layer_weights, items)  # [exits, items]
    add = jnp.diagonal(shares)
    return RunningWeights(jnp.sum(jnp.tril(shares, -1), axis=-1), add)


def prefix_softmax(
    layer_weights: Float[Array, " items"], exit_layer: Int[Array, " rows"]
) -> Float[Array, "rows items"]:
    """Softmax of raw scores over items 0..exit of each row.

    Zero behind the exit and where a score is -inf, all zero where nothing is left; values and
    gradients stay finite.
    """
    scores = jnp.broadcast_to(
        layer_weights.astype(jnp.float32)[None], (len(exit_layer), len(layer_weights))
    )
    used = jnp.arange(len(layer_weights))[None] <= exit_layer[:, None]
    return jax.nn.softmax(scores, where=used & ~jnp.isneginf(scores))


def pool(
    hidden_states: Float[Array, "batch items frames dim"],
    layer_weights: Float[Array, " items"],
    exit_layer: Int[Array, " batch"],
    *,
    normalized: bool = True,
) -> Float[Array, "batch frames dim"]:
    """Weighted sum of stored hidden states up to each utterance's exit: what a task head sees.

    Args:
      hidden_states: items 0..L; item 0 is what enters the transformer.
      layer_weights: raw scores; softmax over the entries up to the exit.
      exit_layer: 0..L.
      normalized: whether `normalize` comes first; SUPERB sums the hidden states as they are.

    Returns:
      float32. Differentiable in `layer_weights`, one executable for all exits.

    Paper: eq. (4), section 3.2, with the authors' softmax and item 0.
    """
    weights = prefix_softmax(layer_weights, exit_layer)
    items = normalize(hidden_states) if normalized else hidden_states.astype(jnp.float32)
    return jnp.einsum("bl,bltd->btd", weights, items, precision=jax.lax.Precision.HIGHEST)
