"""Attention against jax.nn's, with padding, in short types, and its gradient."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close_to_scale

from daisy_jax.model import attention
from daisy_jax.model.attention import attend
from daisy_jax.model.forms import one_form

FRAMES = np.array([17, 5, 1, 0])


def drawn(dtype=np.float32):
    """Query, key and value [4, 17, 3, 8], and the mask of rows with `FRAMES`."""
    rng = np.random.default_rng(0)
    query, key, value = rng.standard_normal((3, 4, 17, 3, 8))
    mask = np.arange(17) < FRAMES[:, None]
    return *(jnp.asarray(array, dtype) for array in (query, key, value)), jnp.asarray(mask)


def by_hand(query, key, value, mask):
    """In float64, row by row, on the valid frames alone."""
    out = np.zeros(query.shape)
    for row, frames in enumerate(mask.sum(axis=1)):
        q, k, v = (np.asarray(array, np.float64)[row, :frames] for array in (query, key, value))
        scores = np.exp(np.einsum("thd,shd->hts", q, k) / np.sqrt(8))
        weights = scores / scores.sum(axis=-1, keepdims=True)
        out[row, :frames] = np.einsum("hts,shd->thd", weights, v)
    return out


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 2e-2)])
@pytest.mark.parametrize("form", ["by_head", "at_once"])
def test_attention_sees_valid_frames_only(dtype, tolerance, form):
    *arrays, mask = drawn(dtype)
    with one_form("attention", form):
        actual = attend(jnp.stack(arrays, 2), mask)
    assert actual.dtype == dtype
    assert np.isfinite(np.asarray(actual, np.float32)).all()
    valid = np.asarray(mask)[..., None, None]
    wanted = by_hand(*(np.asarray(array, np.float64) for array in arrays), np.asarray(mask))
    error = np.max(np.abs(np.asarray(actual, np.float64) - wanted) * valid)
    assert error / np.max(np.abs(wanted)) < tolerance


def test_large_scores_do_not_overflow():
    *arrays, mask = drawn()
    query, key, value = arrays
    out = attend(jnp.stack([1e3 * query, 1e3 * key, value], 2), mask)
    assert np.isfinite(np.asarray(out)).all()
    assert np.abs(out).max() <= np.abs(value).max() * (1 + 1e-6)


@pytest.mark.parametrize("form", ["by_head", "at_once"])
def test_gradient_equals_that_of_jax_nn(form):
    *arrays, mask = drawn()

    def total(function):
        return lambda *arrays: jnp.sum(
            jnp.where(mask[..., None, None], jnp.sin(function(*arrays)), 0)
        )

    def reference(query, key, value):
        return jax.nn.dot_product_attention(query, key, value, mask=mask[:, None, None, :])

    def ours(*arrays):
        return attend(jnp.stack(arrays, 2), mask)

    with one_form("attention", form):
        actual = jax.grad(total(ours), (0, 1, 2))(*arrays)
    wanted = jax.grad(total(reference), (0, 1, 2))(*arrays)
    for one, other in zip(actual, wanted, strict=True):
        assert_close_to_scale(one, other)


@pytest.mark.parametrize(
    ("capabilities", "dtype", "head_dim", "fused"),
    [
        (["9.0"], "bfloat16", 64, True),
        (["8.0", "9.0"], "float16", 128, True),
        (["8.0"], "float32", 64, False),
        (["8.0"], "bfloat16", 160, False),
        (["8.0"], "bfloat16", 4, False),
        (["7.0"], "float16", 64, False),
        (["9.0", "7.5"], "bfloat16", 64, False),
        ([None], "bfloat16", 64, False),
        (RuntimeError("Unknown backend cuda"), "bfloat16", 64, False),
    ],
)
def test_where_the_fused_kernel_is_used(monkeypatch, capabilities, dtype, head_dim, fused):
    def local_devices(backend):
        assert backend == "cuda"
        if isinstance(capabilities, Exception):
            raise capabilities
        given = [{} if each is None else {"compute_capability": each} for each in capabilities]
        return [types.SimpleNamespace(**fields) for fields in given]

    traced = []
    monkeypatch.setattr(attention.jax, "local_devices", local_devices)
    monkeypatch.setattr(attention, "_fused", lambda *arrays: traced.append(1) or arrays[0])
    projected = jax.ShapeDtypeStruct((2, 4, 3, 3, head_dim), dtype)
    jax.eval_shape(attend, projected, jax.ShapeDtypeStruct((2, 4), bool))
    assert bool(traced) is fused
