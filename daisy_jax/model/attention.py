"""Scaled dot-product attention in the form that the platform computes fastest."""

import functools
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from daisy_jax.model.forms import run_form

Projected: TypeAlias = Float[Array, "batch frames 3 heads head_dim"]
"""Queries, keys and values: what looks, what it is compared with, and what is averaged."""
Heads: TypeAlias = Float[Array, "batch frames heads head_dim"]
Frames: TypeAlias = Bool[Array, "batch frames"]


def attend(projected: Projected, frame_mask: Frames) -> Heads:
    """Attention in which no frame looks at padding; softmax in float32.

    Args:
      projected: queries, keys and values.
      frame_mask: true on valid frames. Padded frames get garbage.
    """
    head_dim = projected.shape[-1]
    short = projected.dtype in (jnp.bfloat16, jnp.float16)
    fused = short and head_dim % 8 == 0 and head_dim <= 128 and _fused_kernel_runs()
    forms = {
        "by_head": _by_head,
        "at_once": _at_once,
        "fused": _in_fused_kernel if fused else _at_once,
    }
    return run_form("attention", forms, projected, frame_mask)


def _by_head(projected: Projected, frame_mask: Frames) -> Heads:
    """The scores of one head stay in the cache."""

    def one_head(head):
        # Cut out in the loop: heads that are sorted before it would be copied twice more.
        cut = jax.lax.dynamic_index_in_dim(projected, head, axis=3, keepdims=False)
        query, key, value = jnp.moveaxis(cut, 2, 0)
        return _average(query, key, value, frame_mask[:, None, :])

    return jnp.moveaxis(jax.lax.map(one_head, jnp.arange(projected.shape[3])), 0, 2)


def _at_once(projected: Projected, frame_mask: Frames) -> Heads:
    """One product for all heads."""
    query, key, value = jnp.moveaxis(projected, (2, 3), (0, 2))
    return jnp.moveaxis(_average(query, key, value, frame_mask[:, None, None, :]), 1, 2)


def _in_fused_kernel(projected: Projected, frame_mask: Frames) -> Heads:
    """Scores are never stored."""
    query, key, value = jnp.moveaxis(projected, 2, 0)
    return _fused(query, key, value, frame_mask)


def _average(
    query: Float[Array, "*rows frames head_dim"],
    key: Float[Array, "*rows frames head_dim"],
    value: Float[Array, "*rows frames head_dim"],
    frame_mask: Bool[Array, "..."],
) -> Float[Array, "*rows frames head_dim"]:
    """Values averaged by softmax(query . key).

    The sum of the weights divides the average: as many numbers as there are frames, instead of as
    many as there are pairs of them, and a gradient keeps fewer arrays.
    """
    query = query * query.shape[-1] ** -0.5
    in_float32 = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    scores = in_float32("...th,...sh->...ts", query, key)
    scores = jnp.where(frame_mask, scores, jnp.finfo(jnp.float32).min)
    highest = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.exp(scores - highest)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    average = in_float32("...ts,...sh->...th", weights.astype(value.dtype), value) / total
    return average.astype(value.dtype)


# JAX's rules for the kernel take for granted that its arguments are batched under vmap, and split
# over devices, all as one of them is. But a mask may be shared by all rows of a vmap or lie on
# every device, and many cotangents may be asked about one batch. So arguments are made to depend on
# the one that decides.


def _tied(
    array: Shaped[Array, "batch ..."], decides: Heads, otherwise: int | Shaped[Array, ""]
) -> Shaped[Array, "batch ..."]:
    """The array itself, made to depend on another one, row by row.

    Only where the other's row begins with a NaN is it `otherwise`; nothing there is of use anyhow.
    """
    broken = jnp.isnan(decides[:, 0, 0, 0])
    return jnp.where(jnp.expand_dims(broken, range(1, array.ndim)), otherwise, array)


def _kernel(query: Heads, key: Heads, value: Heads, frame_mask: Frames) -> Heads:
    # An even number of frames, which the gradient asks for, and at least one more than there are.
    frames = query.shape[1]
    padded = frames + 2 - frames % 2
    widths = ((0, 0), (0, padded - frames), (0, 0), (0, 0))
    # At least one key, so that a row without frames has numbers too.
    counts = jnp.maximum(jnp.sum(frame_mask, axis=1, dtype=jnp.int32), 1)
    attended = jax.nn.dot_product_attention(
        *(jnp.pad(array, widths) for array in (query, key, value)),
        query_seq_lengths=_tied(jnp.full_like(counts, frames), query, padded),
        key_value_seq_lengths=_tied(counts, query, padded),
        implementation="cudnn",
    )
    return attended[:, :frames]


@jax.custom_vjp
def _fused(query: Heads, key: Heads, value: Heads, frame_mask: Frames) -> Heads:
    """CuDNN's kernel with a gradient of its own."""
    return _kernel(query, key, value, frame_mask)


def _fused_forward(query, key, value, frame_mask):
    return _kernel(query, key, value, frame_mask), (query, key, value, frame_mask)


def _fused_backward(saved, gradient):
    *arrays, frame_mask = saved
    arrays = [_tied(array, gradient, jnp.asarray(jnp.nan, array.dtype)) for array in arrays]
    # The forward pass is run again: it is a small part of a layer, and less is kept meanwhile.
    _, pullback = jax.vjp(functools.partial(_kernel, frame_mask=frame_mask), *arrays)
    return (*pullback(gradient), None)


_fused.defvjp(_fused_forward, _fused_backward)


def _fused_kernel_runs() -> bool:
    """Whether this process has NVIDIA GPUs of compute capability 8.0 or more, and no others."""
    try:
        devices = jax.local_devices(backend="cuda")
    except RuntimeError:  # none at all
        return False
    # A device that plays a GPU has no compute capability.
    capabilities = [getattr(device, "compute_capability", "0.0") for device in devices]
    return all(int(capability.split(".")[0]) >= 8 for capability in capabilities)
