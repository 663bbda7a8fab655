"""Thresholds from calibration, and the layers at which an utterance may leave."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from daisy_jax import (
    Calibration,
    InputError,
    exit_threshold,
    span_mean,
    span_min_max,
    span_threshold,
    threshold_for_budget,
)
from daisy_jax.exits import exit_layers

TINY = np.finfo(np.float32).tiny


# ---------------------------------------------------------------- eq. 3


def test_eq_3_by_hand():
    # (2.5 + 0.5) / 2 = 1.5, times 0.7
    threshold = exit_threshold(np.array([2.5, 1.0, 0.5, 0.7]), 0.7)
    assert threshold.dtype == jnp.float32
    assert threshold.shape == ()
    np.testing.assert_allclose(threshold, 1.05, rtol=1e-6)
    np.testing.assert_allclose(exit_threshold([3.0, 1.0], 1), 2.0)
    assert exit_threshold([3.0, 1.0], 0) == 0


def test_eq_3_under_jit_and_vmap():
    entropy = jnp.array([2.5, 1.0, 0.5])
    ratios = jnp.array([0.0, 0.7, 0.76, 1.0])
    thresholds = jax.jit(jax.vmap(exit_threshold, in_axes=(None, 0)))(entropy, ratios)
    np.testing.assert_allclose(thresholds, 1.5 * np.asarray(ratios), rtol=1e-6)
    concrete = jax.jit(lambda entropy: exit_threshold(entropy, jnp.float32(0.7)))
    np.testing.assert_allclose(concrete(entropy), 1.05, rtol=1e-6)


@pytest.mark.parametrize("ratio", [-0.1, 1.01, np.nan, np.inf])
def test_ratios_outside_of_0_and_1_are_refused(ratio):
    with pytest.raises(InputError, match=r"ratio is .*; it must be in \[0, 1\]"):
        exit_threshold([2.0, 1.0], ratio)


# ---------------------------------------------------------------- budgets


def exits_by_hand(entropy, threshold, allowed=None):
    """Where each utterance leaves, spelled out: XLA counts numbers below `TINY` as zero."""
    layers = entropy.shape[1]
    allowed = np.ones(layers, bool) if allowed is None else allowed
    deepest = max(np.flatnonzero(allowed)) + 1
    threshold = np.float32(threshold) if abs(threshold) >= TINY else np.float32(0)
    exits = []
    for row in entropy.astype(np.float32):
        fired = [k + 1 for k in range(layers) if allowed[k] and row[k] < threshold]
        exits.append(fired[0] if fired else deepest)
    return np.array(exits)


ENTROPIES = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 6), st.integers(1, 5)),
    elements=st.one_of(
        st.sampled_from([0.0, 0.5, 1.0, np.inf]).map(np.float32),  # ties
        st.floats(0, 4, width=32, allow_subnormal=False),
    ),
)


@given(entropy=ENTROPIES, share=st.floats(0, 1.1), data=st.data())
def test_the_budgets_threshold_is_the_smallest_of_all(entropy, share, data):
    layers = entropy.shape[1]
    allowed = data.draw(st.lists(st.booleans(), min_size=layers, max_size=layers).filter(any))
    budget = 1 + share * (layers - 1)
    candidates = {-np.inf}
    for value in entropy[np.isfinite(entropy)]:
        above = np.nextafter(value, np.float32(np.inf))
        candidates |= {float(value), max(float(above), float(TINY))}
    within = [
        threshold
        for threshold in candidates
        if exits_by_hand(entropy, threshold, allowed).mean() <= budget
    ]
    if not within:
        with pytest.raises(InputError, match="cannot be reached"):
            threshold_for_budget(entropy, budget, np.array(allowed))
        return
    threshold = threshold_for_budget(entropy, budget, np.array(allowed))
    assert threshold == min(within)
    assert threshold == np.float32(threshold)
    assert exits_by_hand(entropy, threshold, allowed).mean() <= budget


@given(entropy=ENTROPIES, threshold=st.floats(0, 4, allow_subnormal=False), data=st.data())
def test_exits_of_stored_entropies(entropy, threshold, data):
    layers = entropy.shape[1]
    allowed = data.draw(st.lists(st.booleans(), min_size=layers, max_size=layers).filter(any))
    exits, forced = exit_layers(entropy, threshold, np.array(allowed))
    assert list(exits) == list(exits_by_hand(entropy, threshold, allowed))
    deepest = max(np.flatnonzero(allowed))
    fires = entropy[:, allowed] < np.float32(threshold)
    assert list(forced) == [not row.any() for row in fires]
    assert all(exits[forced] == deepest + 1)


def test_budgets_by_hand():
    entropy = np.array([[2.0, 1.0, 0.5], [1.5, 1.2, 0.1], [3.0, 2.5, 2.0]], np.float32)
    just_above = np.nextafter(entropy, np.float32(np.inf))
    assert threshold_for_budget(entropy, 3.0) == -np.inf
    assert threshold_for_budget(entropy, 2.9) == just_above[0, 1]  # exits 2 3 3
    assert threshold_for_budget(entropy, 7 / 3) == just_above[1, 1]  # exits 2 2 3
    assert threshold_for_budget(entropy, 2.0) == just_above[1, 0]  # exits 2 1 3
    assert threshold_for_budget(entropy, 1.0) == just_above[2, 0]


def test_a_mean_that_equals_the_budget_is_within_it():
    # 435 / 100 is the float nearest to 4.35, whereas 4.35 * 100 is a little below 435.
    entropy = np.full((100, 12), 3.0, np.float32)
    layers = np.array([4] * 65 + [5] * 35)
    entropy[np.arange(100), layers - 1] = 1.0
    assert threshold_for_budget(entropy, 4.35) == np.nextafter(np.float32(1), np.float32(2))


def test_entropies_of_zero_can_be_undercut_by_a_compiled_comparison():
    threshold = threshold_for_budget(np.array([[0.0, 1.0]], np.float16), 1)
    assert jax.jit(jnp.less)(jnp.float32(0), jnp.float32(threshold))


def test_stored_float16_entropies_and_nan_are_taken():
    entropy = np.array([[2.0, np.nan, 0.5], [np.nan, np.nan, np.nan]], np.float16)
    assert threshold_for_budget(entropy, 3) == -np.inf
    assert threshold_for_budget(entropy, 2) == np.nextafter(np.float32(2), np.float32(3))
    with pytest.raises(InputError, match=r"1\.9 cannot be reached"):
        threshold_for_budget(entropy, 1.9)


@pytest.mark.parametrize(
    ("entropy", "budget", "allowed", "message"),
    [
        (np.zeros(3), 2, None, r"entropy has the shape \(3,\); it must be \[utterances, layers\]"),
        (np.zeros((0, 3)), 2, None, r"entropy has the shape \(0, 3\)"),
        (np.zeros((2, 3)), 0.9, None, "the first allowed layer is 1; raise the budget or allow"),
        (np.zeros((2, 3)), 1.5, [False, True, True], "the first allowed layer is 2"),
        (np.zeros((2, 3)), np.nan, None, "nan cannot be reached"),
        (np.zeros((2, 3)), 2, [True], r"allowed must be bool \[3\] with at least one layer"),
        (np.zeros((2, 3)), 2, [False, False, False], "at least one layer; .* 0 layers"),
    ],
)
def test_budget_mistakes_are_named(entropy, budget, allowed, message):
    with pytest.raises(InputError, match=message):
        threshold_for_budget(entropy, budget, allowed)


# ---------------------------------------------------------------- spans


def layers_of(allowed):
    assert allowed.dtype == bool
    return (np.flatnonzero(allowed) + 1).tolist()


def test_spans_by_hand():
    #         layer 1  2  3   4   5  6   of 100, mean 3.68
    counts = np.array([0, 9, 40, 26, 24, 1])
    assert layers_of(span_mean(counts)) == [3, 4]
    assert layers_of(span_threshold(counts)) == [3, 4, 5]
    assert layers_of(span_threshold(counts, 0.25)) == [3, 4]
    assert layers_of(span_min_max(counts)) == [2, 3, 4, 5, 6]


def test_a_whole_mean_allows_one_layer():
    assert layers_of(span_mean([1, 0, 1])) == [2]
    assert layers_of(span_mean([0, 0, 7])) == [3]
    assert layers_of(span_mean(np.array([200, 0, 200], np.uint8))) == [2]


def test_a_share_of_exactly_the_limit_is_not_more():
    assert layers_of(span_threshold([15, 85])) == [2]
    assert layers_of(span_threshold([3, 17])) == [2]
    assert layers_of(span_threshold([16, 84])) == [1, 2]


def test_spans_may_have_gaps_only_by_share():
    counts = np.array([50, 0, 50])
    assert layers_of(span_threshold(counts)) == [1, 3]
    assert layers_of(span_min_max(counts)) == [1, 2, 3]


@example([2**31 - 1] * 48)
@given(st.lists(st.integers(0, 1000), min_size=1, max_size=12).filter(any))
def test_properties_of_spans(counts):
    layers = np.arange(1, len(counts) + 1)
    exits = np.repeat(layers, np.minimum(counts, 1000))
    used = layers_of(span_min_max(counts))
    assert used == list(range(exits.min(), exits.max() + 1))
    mean = layers_of(span_mean(counts))
    assert 1 <= len(mean) <= 2
    assert mean[0] <= exits.mean() <= mean[-1] < exits.mean() + 1
    assert set(mean) <= set(used)
    if max(counts) / sum(counts) > 0.15:
        share = layers_of(span_threshold(counts))
        assert share == [k for k in layers if counts[k - 1] / sum(counts) > 0.15]
    else:
        with pytest.raises(InputError, match=r"no layer has more than 15% .*lower share, or use"):
            span_threshold(counts)


@pytest.mark.parametrize("span", [span_mean, span_threshold, span_min_max])
@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([0, 0], "exit_counts are all zero; count exits over a training run first"),
        ([1, -1], "exit_counts must be whole, non-negative numbers"),
        ([0.5, 0.5], r"it is float64 \(2,\)"),
        ([[1, 2]], r"it is int64 \(1, 2\)"),
        ([], "exit_counts must be whole"),
        ([True, False], "it is bool"),
    ],
)
def test_span_mistakes_are_named(span, counts, message):
    with pytest.raises(InputError, match=message):
        span(counts)


# ---------------------------------------------------------------- what a model carries


def test_calibrations_with_the_same_content_are_equal():
    entropy = np.array([[2.0, 1.0], [1.0, 0.5]], np.float16)
    calibration = Calibration(entropy, "dev-clean")
    assert calibration == Calibration(entropy.copy(), "dev-clean")
    assert hash(calibration) == hash(Calibration(entropy.copy(), "dev-clean"))
    assert calibration != Calibration(entropy, "train")
    assert calibration != Calibration(entropy.astype(np.float32), "dev-clean")
    assert calibration != Calibration(entropy.reshape(1, 4), "dev-clean")
    assert calibration != "dev-clean"
    assert calibration.mean_entropy.dtype == np.float32
    np.testing.assert_array_equal(calibration.mean_entropy, [1.5, 0.75])


def test_the_mean_of_many_float16_entropies_does_not_overflow():
    calibration = Calibration(np.full((100_000, 2), 2.0, np.float16))
    np.testing.assert_array_equal(calibration.mean_entropy, [2.0, 2.0])
