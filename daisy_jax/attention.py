"""Scaled dot-product attention in the form that the platform computes fastest."""

import functools

import jax
import jax.numpy as jnp

from daisy_jax.forms import run_form


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
    head_dim = query.shape[-1]
    short = query.dtype in (jnp.bfloat16, jnp.float16)
    fused = short and head_dim % 8 == 0 and head_dim <= 128 and _fused_kernel_runs()
    forms = {"by_head": _by_head, "at_once": _at_once, "fused": _fused if fused else _at_once}
    return run_form("attention", forms, query, key, value, frame_mask)


def _by_head(query, key, value, frame_mask):
    """The scores of one head stay in the cache."""
    heads_first = tuple(jnp.moveaxis(array, 2, 0) for array in (query, key, value))
    one_head = functools.partial(_average, frame_mask=frame_mask[:, None, :])
    return jnp.moveaxis(jax.lax.map(lambda head: one_head(*head), heads_first), 0, 2)


def _at_once(query, key, value, frame_mask):
    """One product for all heads."""
    query, key, value = (jnp.moveaxis(array, 2, 1) for array in (query, key, value))
    return jnp.moveaxis(_average(query, key, value, frame_mask[:, None, None, :]), 1, 2)


def _average(
    query: jax.Array, key: jax.Array, value: jax.Array, frame_mask: jax.Array
) -> jax.Array:
    """Values averaged by softmax(query . key); each array is [..., frames, head_dim]."""
    query = query * query.shape[-1] ** -0.5
    scores = jnp.einsum("...th,...sh->...ts", query, key, preferred_element_type=jnp.float32)
    scores = jnp.where(frame_mask, scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores).astype(value.dtype)
    return jnp.einsum("...ts,...sh->...th", weights, value)


def _fused(query: jax.Array, key: jax.Array, value: jax.Array, frame_mask: jax.Array) -> jax.Array:
    """CuDNN's kernel, by which scores are never stored."""
    # At least one key, so that a row without frames has numbers too.
    counts = jnp.maximum(jnp.sum(frame_mask, axis=1, dtype=jnp.int32), 1)
    # The kernel takes for granted that counts are batched and split over devices as queries are,
    # but a mask may be shared by all rows of a vmap, and may be on every device. So they are made
    # to depend on the queries: what is not a number has any count.
    broken = jnp.isnan(query[:, 0, 0, 0])
    key_counts = jnp.where(broken, 1, counts)
    query_counts = jnp.where(broken, 1, jnp.int32(query.shape[1]))
    # An even number of frames, which the gradient asks for.
    frames = query.shape[1]
    widths = ((0, 0), (0, frames % 2), (0, 0), (0, 0))
    query, key, value = (jnp.pad(array, widths) for array in (query, key, value))
    attended = jax.nn.dot_product_attention(
        query,
        key,
        value,
        query_seq_lengths=query_counts,
        key_value_seq_lengths=key_counts,
        implementation="cudnn",
    )
    return attended[:, :frames]


def _fused_kernel_runs() -> bool:
    """Whether this process has NVIDIA GPUs of compute capability 8.0 or more, and no others."""
    try:
        devices = jax.local_devices(backend="cuda")
    except RuntimeError:  # none at all
        return False
    # A device that plays a GPU has no compute capability.
    capabilities = [getattr(device, "compute_capability", "0.0") for device in devices]
    return all(int(capability.split(".")[0]) >= 8 for capability in capabilities)
