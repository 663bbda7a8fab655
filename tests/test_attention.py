"""Attention against jax.nn's, with padding, in short types, and its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close_to_scale

from daisy_jax import attention
from daisy_jax.attention import attend

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
@pytest.mark.parametrize("backend", ["cpu", "other"])
def test_attention_sees_valid_frames_only(monkeypatch, dtype, tolerance, backend):
    monkeypatch.setattr(attention.jax, "default_backend", lambda: backend)
    *arrays, mask = drawn(dtype)
    actual = attend(*arrays, mask)
    assert actual.dtype == dtype
    assert np.isfinite(np.asarray(actual, np.float32)).all()
    valid = np.asarray(mask)[..., None, None]
    wanted = by_hand(*(np.asarray(array, np.float64) for array in arrays), np.asarray(mask))
    error = np.max(np.abs(np.asarray(actual, np.float64) - wanted) * valid)
    assert error / np.max(np.abs(wanted)) < tolerance


def test_large_scores_do_not_overflow():
    *arrays, mask = drawn()
    query, key, value = arrays
    out = attend(1e3 * query, 1e3 * key, value, mask)
    assert np.isfinite(np.asarray(out)).all()
    assert np.abs(out).max() <= np.abs(value).max() * (1 + 1e-6)


@pytest.mark.parametrize("backend", ["cpu", "other"])
def test_gradient_equals_that_of_jax_nn(monkeypatch, backend):
    monkeypatch.setattr(attention.jax, "default_backend", lambda: backend)
    *arrays, mask = drawn()

    def total(function):
        return lambda *arrays: jnp.sum(
            jnp.where(mask[..., None, None], jnp.sin(function(*arrays)), 0)
        )

    def reference(query, key, value):
        return jax.nn.dot_product_attention(query, key, value, mask=mask[:, None, None, :])

    actual = jax.grad(total(lambda *arrays: attend(*arrays, mask)), (0, 1, 2))(*arrays)
    wanted = jax.grad(total(reference), (0, 1, 2))(*arrays)
    for one, other in zip(actual, wanted, strict=True):
        assert_close_to_scale(one, other)


@pytest.mark.parametrize(
    ("backend", "kind", "capability", "head_dim", "fused"),
    [
        ("gpu", "NVIDIA H100 80GB HBM3", "9.0", 64, True),
        ("gpu", "NVIDIA A100-SXM4-80GB", "8.0", 128, True),
        ("gpu", "NVIDIA A100-SXM4-80GB", "8.0", 160, False),
        ("gpu", "NVIDIA A100-SXM4-80GB", "8.0", 4, False),
        ("gpu", "Tesla V100-SXM2-16GB", "7.0", 64, False),
        ("gpu", "AMD Instinct MI250X", "gfx90a", 64, False),
        ("tpu", "TPU v4", "", 64, False),
    ],
)
def test_where_fused_attention_is_used(monkeypatch, backend, kind, capability, head_dim, fused):
    class Device:
        device_kind = kind
        compute_capability = capability

    monkeypatch.setattr(attention.jax, "default_backend", lambda: backend)
    monkeypatch.setattr(attention.jax, "local_devices", lambda: [Device()])
    assert attention._has_fused_attention(head_dim) is fused
