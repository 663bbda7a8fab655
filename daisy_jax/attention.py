"""Scaled dot-product attention in the form that the backend computes fastest."""

import functools

import jax
import jax.numpy as jnp


def attend(query: jax.Array, key: jax.Array, value: jax.Array, frame_mask: jax.Array) -> jax.Array:
    """Attention in which no frame looks at padding; softmax in float32.

    Args:
      query: [batch, frames, heads, head_dim], as key and value.
      key: what a query is compared with.
      value: what is averaged.
      frame_mask: bool [batch, frames], true on valid frames. Padded frames get garbage.

    Returns:
      [batch, frames, heads, head_dim].
    """
    if query.dtype in (jnp.bfloat16, jnp.float16) and _has_fused_attention(query.shape[-1]):
        return _fused(query, key, value, frame_mask)
    query = query * query.shape[-1] ** -0.5
    if jax.default_backend() == "cpu":  # head by head: the scores of one stay in the cache
        heads_first = tuple(jnp.moveaxis(array, 2, 0) for array in (query, key, value))
        one_head = functools.partial(_average, frame_mask=frame_mask[:, None, :])
        return jnp.moveaxis(jax.lax.map(lambda head: one_head(*head), heads_first), 0, 2)
    query, key, value = (jnp.moveaxis(array, 2, 1) for array in (query, key, value))
    return jnp.moveaxis(_average(query, key, value, frame_mask[:, None, None, :]), 1, 2)


def _average(
    query: jax.Array, key: jax.Array, value: jax.Array, frame_mask: jax.Array
) -> jax.Array:
    """Values averaged by softmax(query . key); each array is [..., frames, head_dim]."""
    scores = jnp.einsum("...th,...sh->...ts", query, key, preferred_element_type=jnp.float32)
    scores = jnp.where(frame_mask, scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores).astype(value.dtype)
    return jnp.einsum("...ts,...sh->...th", weights, value)


def _fused(query: jax.Array, key: jax.Array, value: jax.Array, frame_mask: jax.Array) -> jax.Array:
    """Scores are never stored."""
    # At least one key, so that a row without frames has numbers too.
    counts = jnp.maximum(jnp.sum(frame_mask, axis=1, dtype=jnp.int32), 1)
    # An even number of frames, which the gradient asks for.
    frames = query.shape[1]
    widths = ((0, 0), (0, frames % 2), (0, 0), (0, 0))
    query, key, value = (jnp.pad(array, widths) for array in (query, key, value))
    attended = jax.nn.dot_product_attention(
        query,
        key,
        value,
        # Made from the counts, so that it is batched with them under vmap.
        query_seq_lengths=counts * 0 + query.shape[1],
        key_value_seq_lengths=counts,
        implementation="cudnn",
    )
    return attended[:, :frames]


def _has_fused_attention(head_dim: int) -> bool:
    """Whether cuDNN's fused attention runs here: NVIDIA GPUs of compute capability 8.0 or more."""
    if jax.default_backend() != "gpu" or head_dim % 8 or head_dim > 128:
        return False
    device = jax.local_devices()[0]
    if "nvidia" not in device.device_kind.lower():
        return False
    return int(device.compute_capability.split(".")[0]) >= 8
