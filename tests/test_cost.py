"""The cost model against numbers worked out by hand and against products in the traced model."""

import contextlib
import dataclasses

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from flax import nnx

from daisy_jax import Hubert, HubertConfig, InputError, multiply_adds
from daisy_jax.cost import threshold_for_cost
from daisy_jax.exits import exit_layers
from daisy_jax.model.forms import ELSEWHERE, FORMS, one_form
from daisy_jax.model.hubert import embed
from daisy_jax.tasks.evaluation import rule_at_compute

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
    assert 0.36 < multiply_adds(HubertConfig.base(), 16_000, 0) / without < 0.4


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


def products(jaxpr) -> int:
    """Multiply-adds of every matrix product and convolution in a traced program."""
    total = 0
    for equation in jaxpr.eqns:
        out = equation.outvars[0].aval
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += out.size * int(np.prod([equation.invars[0].aval.shape[i] for i in contracted]))
        elif equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval
            total += (
                out.size * kernel.size // kernel.shape[equation.params["dimension_numbers"][1][0]]
            )
        times = equation.params.get("length", 1)  # of a scan, as over the heads
        for part in jax.tree.leaves(list(equation.params.values()), is_leaf=is_program):
            if is_program(part):
                total += times * products(getattr(part, "jaxpr", part))
    return total


def is_program(part) -> bool:
    return hasattr(part, "eqns") or hasattr(part, "jaxpr")


@pytest.mark.parametrize("config", [BASE, HubertConfig.large(num_classes=100, num_layers=2)])
@pytest.mark.parametrize("samples", [400, 16_000, 31_999])
def test_costs_are_the_products_of_the_traced_model(config, samples):
    model = nnx.eval_shape(lambda: Hubert(config, rngs=nnx.Rngs(0)))
    waveform, lengths = np.zeros((1, samples), np.float32), np.array([samples])

    def front_end(model):
        return embed(model, waveform, lengths)

    def one_layer(model):
        embedded = embed(model, waveform, lengths)
        layer, branch = jax.tree.map(lambda leaf: leaf[0], (model.layers, model.branches))
        return branch(layer(embedded.hidden, embedded.frame_mask)[0])

    with contextlib.ExitStack() as forms:
        # A traced program holds the forms for all platforms; those of the CPU do nothing twice,
        # but for the first convolution.
        for step, row in FORMS.items():
            form = "one_dimensional" if step == "front_end" else row.get("cpu", row[ELSEWHERE])
            forms.enter_context(one_form(step, form))
        front = products(jax.make_jaxpr(front_end)(model).jaxpr)
        layer = products(jax.make_jaxpr(one_layer)(model).jaxpr)
    assert multiply_adds(config, samples, 0) == front
    assert multiply_adds(config, samples, 1) == layer


def test_cost_mistakes_are_named():
    for exit_layer in (-1, 13, np.array([3, 13])):
        with pytest.raises(InputError, match="exit_layer must lie between 0 and 12"):
            multiply_adds(BASE, 16_000, exit_layer)
    with pytest.raises(InputError, match=r"allowed has the shape \(3,\), not \(12,\)"):
        multiply_adds(BASE, 16_000, 3, np.ones(3, bool))


@hypothesis.given(st.integers(0, 1_000))
def test_a_threshold_for_a_cost_is_the_smallest_of_all(seed):
    rng = np.random.default_rng(seed)
    entropy = rng.choice(np.linspace(0.1, 2, 7), (6, 12)).astype(np.float32)
    samples = rng.integers(400, 100_000, 6)
    least, most = (
        int(multiply_adds(BASE, samples, exit_layers(entropy, tau)[0]).sum())
        for tau in (np.inf, -np.inf)
    )
    budget = int(rng.integers(least, most + 1))
    found = threshold_for_cost(BASE, entropy, samples, budget)

    def cost(threshold):
        return int(multiply_adds(BASE, samples, exit_layers(entropy, threshold)[0]).sum())

    assert cost(found) <= budget
    smaller = [-np.inf, *np.nextafter(np.unique(entropy), np.float32(np.inf)).tolist()]
    for threshold in smaller:
        if threshold < found:
            assert cost(threshold) > budget


@pytest.mark.parametrize("seed", range(5))
def test_a_rule_at_the_compute_of_a_layer_costs_no_more_and_nearly_as_much(seed):
    rng = np.random.default_rng(seed)
    samples = rng.integers(8_000, 160_000, 40)
    entropy = np.sort(rng.random((40, 12), np.float32), axis=1)[:, ::-1]
    layer = int(rng.integers(3, 12))
    rule = rule_at_compute(BASE, entropy, samples, layer)
    static = int(multiply_adds(BASE, samples, layer, np.zeros(12, bool)).sum())
    spent = int(multiply_adds(BASE, samples, rule.exits(entropy)[0], rule.evaluated).sum())
    assert rule.name == f"compute of layer {layer}"
    assert static - int(multiply_adds(BASE, samples.max(), 12)) < spent <= static


def test_a_cost_that_cannot_be_kept_to_is_named():
    entropy, samples = np.ones((2, 12), np.float32), np.array([16_000, 16_000])
    with pytest.raises(InputError, match="leaving at the first layer costs"):
        threshold_for_cost(BASE, entropy, samples, 1_000)
    assert threshold_for_cost(BASE, entropy, samples, 10**12) == -np.inf
