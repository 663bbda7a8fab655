"""The cost model against numbers worked out by hand and against what XLA counts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from daisy_jax import HubertConfig, InputError, multiply_adds
from daisy_jax.branches import Branches
from daisy_jax.feature_encoder import FeatureEncoder
from daisy_jax.transformer import PositionalConvolution, TransformerLayer

BASE = HubertConfig.base(num_classes=500)

# One second: 16000 samples, steps 3199 1599 799 399 199 99 49 through the seven convolutions.
CONVOLUTIONS = 512 * (10 * 3199 + 512 * (3 * (1599 + 799 + 399 + 199) + 2 * (99 + 49)))
PROJECTION = 49 * 512 * 768
POSITIONAL = 49 * 128 * 768 * (768 // 16)
LAYER = 49 * (4 * 768 * 768 + 2 * 768 * 3072) + 2 * 49 * 49 * 768
BRANCH = 49 * 768 * 500


@pytest.mark.parametrize("exit_layer", [0, 1, 7, 12])
def test_base_at_one_second_by_hand(exit_layer):
    desired = CONVOLUTIONS + PROJECTION + POSITIONAL + exit_layer * (LAYER + BRANCH)
    cost = multiply_adds(BASE, 16_000, exit_layer)
    assert cost.dtype == np.int64
    assert cost == desired


def test_the_front_end_is_the_share_that_the_literature_knows():
    without = multiply_adds(HubertConfig.base(), 16_000, 12)
    assert 0.36 < multiply_adds(HubertConfig.base(), 16_000, 0) / without < 0.39


def test_branches_count_where_they_are_evaluated():
    allowed = np.zeros(12, bool)
    allowed[[2, 6, 9]] = True
    full = CONVOLUTIONS + PROJECTION + POSITIONAL
    assert multiply_adds(BASE, 16_000, 7, allowed) == full + 7 * LAYER + 2 * BRANCH
    assert multiply_adds(BASE, 16_000, 12, allowed) == full + 12 * LAYER + 3 * BRANCH
    assert multiply_adds(BASE, 16_000, 2, allowed) == full + 2 * LAYER
    assert multiply_adds(BASE, 16_000, 12, np.zeros(12, bool)) == full + 12 * LAYER
    assert multiply_adds(dataclasses.replace(BASE, num_classes=0), 16_000, 12) == full + 12 * LAYER


def test_arrays_broadcast_and_audio_without_a_frame_is_free():
    samples = np.array([[0], [399], [400], [48_000]])
    exits = np.array([0, 3, 12])
    costs = multiply_adds(BASE, samples, exits)
    assert costs.shape == (4, 3)
    assert not np.any(costs[:2])
    for row in (2, 3):
        for column in range(3):
            assert costs[row, column] == multiply_adds(BASE, samples[row, 0], exits[column])
    assert np.all(costs[2:] > 0)


def test_hours_of_audio_do_not_overflow():
    hour = multiply_adds(HubertConfig.xlarge(num_classes=500), 3600 * 16_000, 48)
    assert 1e15 < hour < 2**63


def counted_by_xla(module, *shapes) -> float:
    """Multiply-adds of a module's products, as twice-counted operations without the small stuff."""
    arguments = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes]
    compiled = jax.jit(lambda module, *a: module(*a)).lower(module, *arguments).compile()
    return compiled.cost_analysis()["flops"] / 2


@pytest.mark.parametrize("conv_norm", ["group", "layer"])
def test_parts_cost_what_xla_counts(conv_norm):
    config = HubertConfig(dim=256, ffn_dim=512, num_heads=4, conv_dim=128, conv_norm=conv_norm)
    config = dataclasses.replace(config, num_layers=1, num_classes=100)
    frames, rngs = 49, nnx.Rngs(0)
    hidden, mask = ((1, frames, 256), jnp.float32), ((1, frames), jnp.bool_)
    layer = counted_by_xla(TransformerLayer(config, rngs=rngs), hidden, mask)
    branches = jax.tree.map(lambda leaf: leaf[0], Branches(1, 256, 100, rngs=rngs))
    branch = counted_by_xla(branches, hidden)
    front_end = counted_by_xla(
        FeatureEncoder(config, rngs=rngs), ((1, 16_000), jnp.float32), ((1,), jnp.int32)
    )
    # XLA does not count products with the zeros that pad both ends.
    positional = counted_by_xla(PositionalConvolution(config, rngs=rngs), hidden)
    taps = sum(min(frames, t + 64) - max(0, t - 64) for t in range(frames))
    positional *= frames * 128 / taps
    projection = frames * 128 * 256

    none = np.zeros(1, bool)
    front = multiply_adds(config, 16_000, 0)
    one = multiply_adds(config, 16_000, 1, none) - front
    with_branch = multiply_adds(config, 16_000, 1) - front - one
    np.testing.assert_allclose(one, layer, rtol=0.03)
    np.testing.assert_allclose(with_branch, branch, rtol=0.01)
    np.testing.assert_allclose(front, front_end + positional + projection, rtol=0.03)


def test_cost_mistakes_are_named():
    for exit_layer in (-1, 13, np.array([3, 13])):
        with pytest.raises(InputError, match="exit_layer must lie between 0 and 12"):
            multiply_adds(BASE, 16_000, exit_layer)
    with pytest.raises(InputError, match=r"allowed has the shape \(3,\), not \(12,\)"):
        multiply_adds(BASE, 16_000, 3, np.ones(3, bool))
