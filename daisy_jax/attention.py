"""Scaled dot-product attention in the form that the backend computes fastest."""

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
    if jax.default_backend() == "cpu":
        return _head_by_head(query, key, value, frame_mask)
    if query.dtype != jnp.float32 and _has_fused_attention(query.shape[-1]):
        # At least one key, so that a row without frames has numbers too.
        counts = jnp.maximum(jnp.sum(frame_mask, axis=1, dtype=jnp.int32), 1)
        return jax.nn.dot_product_attention(
            query, key, value, key_value_seq_lengths=counts, implementation="cudnn"
        )
    return jax.nn.dot_product_attention(query, key, value, mask=frame_mask[:, None, None, :])


def _head_by_head(
    query: jax.Array, key: jax.Array, value: jax.Array, frame_mask: jax.Array
) -> jax.Array:
    """One head after the other: their scores stay in the cache of a CPU."""

    def one_head(inputs):
        query, key, value = inputs  # each [batch, frames, head_dim]
        scores = jnp.einsum("bth,bsh->bts", query, key, preferred_element_type=jnp.float32)
        scores = jnp.where(frame_mask[:, None, :], scores, jnp.finfo(jnp.float32).min)
        attention = jax.nn.softmax(scores).astype(value.dtype)
        return jnp.einsum("bts,bsh->bth", attention, value)

    query = query * query.shape[-1] ** -0.5
    heads_first = tuple(jnp.moveaxis(array, 2, 0) for array in (query, key, value))
    return jnp.moveaxis(jax.lax.map(one_head, heads_first), 0, 2)


def _has_fused_attention(head_dim: int) -> bool:
    """Whether cuDNN's fused attention runs here: NVIDIA GPUs of compute capability 8.0 or more."""
    if jax.default_backend() != "gpu" or head_dim % 8 or head_dim > 128:
        return False
    device = jax.local_devices()[0]
    if "nvidia" not in device.device_kind.lower():
        return False
    return int(device.compute_capability.split(".")[0]) >= 8
