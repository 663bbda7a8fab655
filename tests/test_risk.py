"""Certified thresholds: against brute force, by simulation, and what must not change them."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from daisy_jax import InputError, threshold_for_risk
from daisy_jax.exits import exit_layers
from daisy_jax.exits.risk import p_value


def loss_at(entropy, loss, threshold, allowed=None):
    """Each utterance's loss where it leaves."""
    layers, _ = exit_layers(entropy, threshold, allowed)
    return loss[np.arange(len(loss)), layers - 1]


def thresholds_to_try(entropy):
    """One below, between, and above all entropies."""
    values = np.unique(np.asarray(entropy, np.float32))
    between = (values[1:].astype(np.float64) + values[:-1]) / 2
    return np.concatenate([[-np.inf], [values[0] - 1], between, [values[-1] + 1]])


def hoeffding_bentkus(losses, level):
    """With scipy's binomial distribution, and the divergence of two coins written out."""
    count, mean = len(losses), min(float(np.mean(losses)), level)
    terms = [(mean, level), (1 - mean, 1 - level)]
    divergence = sum(part * math.log(part / whole) for part, whole in terms if part > 0)
    tail = scipy.stats.binom.cdf(math.ceil(round(float(np.sum(losses)), 9)), count, level)
    return min(math.exp(-count * divergence), math.e * tail, 1)


def learn_then_test(entropy, loss, level, confidence, allowed):
    """Mean exit layer at the last threshold before the first that fails; None: none passes."""
    best = None
    for threshold in thresholds_to_try(entropy):
        losses = loss_at(entropy, loss, threshold, allowed)
        if hoeffding_bentkus(losses, level) > 1 - confidence:
            break
        best = exit_layers(entropy, threshold, allowed)[0]
    return best


def conformal(entropy, loss, level, allowed):
    best, worst = None, np.zeros(len(loss))
    for threshold in thresholds_to_try(entropy):
        worst = np.maximum(worst, loss_at(entropy, loss, threshold, allowed))
        if (np.sum(worst) + 1) / (len(loss) + 1) > level + 1e-9:
            break
        best = exit_layers(entropy, threshold, allowed)[0]
    return best


@st.composite
def problems(draw):
    count, layers = draw(st.integers(1, 40)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    # A few values only, so that there are ties; entropies fall with depth, but not always.
    falling = np.linspace(3, 1, layers) + rng.integers(-4, 5, (count, layers)) / 4
    growing = np.linspace(1, 0, layers) ** 2 * draw(st.sampled_from([0.1, 0.5, 1.0]))
    loss = growing * rng.random((count, layers))
    if draw(st.booleans()):
        loss = (rng.random((count, layers)) < loss).astype(float)
    allowed = rng.random(layers) < 0.7
    allowed[rng.integers(layers)] = True
    level = draw(st.sampled_from([0.02, 0.05, 0.1, 0.3, 0.6]))
    return falling.astype(np.float32), loss, level, draw(st.sampled_from([None, allowed]))


@pytest.mark.parametrize("confidence", [None, 0.5, 0.9])
@given(problem=problems())
def test_it_is_what_trying_all_thresholds_finds(confidence, problem):
    entropy, loss, level, allowed = problem
    if confidence is None:
        wanted = conformal(entropy, loss, level, allowed)
    else:
        wanted = learn_then_test(entropy, loss, level, confidence, allowed)
    if wanted is None:
        with pytest.raises(InputError, match=f"{len(loss)} utterances cannot certify"):
            threshold_for_risk(entropy, loss, level, confidence, allowed)
        return
    threshold = threshold_for_risk(entropy, loss, level, confidence, allowed)
    assert np.float32(threshold) == threshold
    np.testing.assert_array_equal(exit_layers(entropy, threshold, allowed)[0], wanted)


@given(problem=problems(), seed=st.integers(0, 100))
def test_order_does_not_matter(problem, seed):
    entropy, loss, _, allowed = problem
    order = np.random.default_rng(seed).permutation(len(loss))
    for confidence in (None, 0.6):
        try:
            wanted = threshold_for_risk(entropy, loss, 0.6, confidence, allowed)
        except InputError:
            continue
        found = threshold_for_risk(entropy[order], loss[order], 0.6, confidence, allowed)
        assert found == wanted


@given(problem=problems())
def test_more_may_be_lost_or_less_be_sure_and_exits_are_no_later(problem):
    entropy, loss, _, allowed = problem

    def found(level, confidence):
        # What certifies nothing is below what certifies that everybody runs to the deepest layer.
        try:
            return 1, threshold_for_risk(entropy, loss, level, confidence, allowed)
        except InputError:
            return 0, -math.inf

    for confidence in (None, 0.9):
        by_level = [found(level, confidence) for level in (0.05, 0.1, 0.3, 0.6, 0.9)]
        assert by_level == sorted(by_level)
    by_confidence = [found(0.4, confidence) for confidence in (0.99, 0.9, 0.5, 0.1)]
    assert by_confidence == sorted(by_confidence)


def drawn(kind, rng, count):
    """Utterances whose expected loss at every threshold is known by a large sample of the same."""
    hardness = rng.random((count, 1))
    depth = np.arange(4)
    entropy = 2 - 0.5 * depth + hardness + 0.2 * rng.standard_normal((count, 4))
    chance = np.clip(0.35 * (0.3 + hardness) * (1 - depth / 3), 0, 1)
    if kind == "binary":
        return entropy, (rng.random((count, 4)) < chance).astype(float)
    if kind == "ties":
        return np.round(entropy * 2) / 2, np.round(chance * 4) / 4
    return entropy, chance * rng.random((count, 4))


@pytest.mark.parametrize("count", [30, 200])
@pytest.mark.parametrize("kind", ["binary", "continuous", "ties"])
def test_the_promise_is_broken_no_more_often_than_it_says(kind, count):
    """In 1 000 draws; their own rounding is allowed for with four standard errors."""
    rng = np.random.default_rng(7)
    many_entropies, many_losses = drawn(kind, rng, 10_000)
    level, confidence, repeats = 0.1, 0.9, 1_000
    broken, on_average, certified = 0, [], 0
    known: dict[float, float] = {}

    def expected(threshold):
        # Upwards, where more is lost; fine enough for the expectation, and few to compute.
        rounded = math.ceil(100 * threshold) / 100 if math.isfinite(threshold) else threshold
        if rounded not in known:
            known[rounded] = float(np.mean(loss_at(many_entropies, many_losses, rounded)))
        return known[rounded]

    for _ in range(repeats):
        entropy, loss = drawn(kind, rng, count)
        try:
            broken += expected(threshold_for_risk(entropy, loss, level, confidence)) > level + 2e-3
            certified += 1
        except InputError:
            pass
        on_average.append(expected(threshold_for_risk(entropy, loss, level)))
    assert certified > repeats / 10  # there is something to break
    most = (1 - confidence) + 4 * math.sqrt(confidence * (1 - confidence) / repeats)
    assert broken / repeats <= most
    error = float(np.std(on_average)) / math.sqrt(repeats)
    assert np.mean(on_average) <= level + 2e-3 + 4 * error
    assert np.mean(on_average) > level / 3  # and not by leaving nobody out early


def test_p_values_are_valid_under_the_hypothesis():
    """Losses whose mean is just the level: a p-value below u comes with probability u at most."""
    rng = np.random.default_rng(3)
    for count, level in ((20, 0.1), (100, 0.05), (400, 0.02)):
        totals = rng.binomial(count, level, 20_000).astype(float)
        values = p_value(totals, count, level)
        for share in (0.01, 0.05, 0.1, 0.3):
            assert np.mean(values <= share) <= share + 4 * math.sqrt(share / 20_000)
        assert np.any(values <= 0.3)
        for total in np.unique(totals)[:5]:
            losses = np.r_[np.ones(int(total)), np.zeros(count - int(total))]
            wanted = hoeffding_bentkus(losses, level)
            np.testing.assert_allclose(p_value(np.array([total]), count, level), wanted, rtol=1e-9)


def test_what_would_do_would_do():
    """The level and the number of utterances that the error names."""
    rng = np.random.default_rng(0)
    entropy = rng.random((45, 3)).astype(np.float32)
    loss = np.zeros((45, 3))
    loss[:, 0] = rng.random(45)
    for confidence in (None, 0.9):
        with pytest.raises(InputError) as raised:
            threshold_for_risk(entropy, loss, 0.01, confidence)
        words = str(raised.value).split()
        level, enough = float(words[words.index("can") - 1]), int(words[words.index("such") - 1])
        assert threshold_for_risk(entropy, loss, level, confidence) >= -math.inf
        many = [np.tile(array, (1 + enough // 45, 1)) for array in (entropy, loss)]
        threshold_for_risk(many[0][:enough], many[1][:enough], 0.01, confidence)
        with pytest.raises(InputError):
            threshold_for_risk(many[0][: enough - 1], many[1][: enough - 1], 0.01, confidence)
        with pytest.raises(InputError):
            threshold_for_risk(entropy, loss, level - 2e-4, confidence)
    # Without confidence 99 utterances are enough for one in a hundred; with it log 0.1 / log 0.99.
    assert enough == math.ceil(math.log(0.1) / math.log(0.99))


def test_a_loss_at_the_deepest_layer_that_no_number_mends():
    entropy, loss = np.ones((50, 2), np.float32), np.full((50, 2), 0.3)
    with pytest.raises(InputError, match=r"lose 0\.3; a loss of at most 0\.\d+ can"):
        threshold_for_risk(entropy, loss, 0.2, 0.9)


@pytest.mark.parametrize(
    ("entropy", "loss", "level", "confidence", "said"),
    [
        (np.ones((3, 2)), np.zeros((3, 3)), 0.1, None, "loss has the shape"),
        (np.ones(3), np.zeros(3), 0.1, None, "entropy has the shape"),
        (np.ones((3, 2)), np.full((3, 2), 1.5), 0.1, None, "between 0 and 1"),
        (np.ones((3, 2)), np.full((3, 2), np.nan), 0.1, None, "between 0 and 1"),
        (np.ones((3, 2)), np.zeros((3, 2)), 0.0, None, "level is 0.0"),
        (np.ones((3, 2)), np.zeros((3, 2)), 1, None, "level is 1"),
        (np.ones((3, 2)), np.zeros((3, 2)), 0.1, 1.0, "confidence is 1.0"),
        (np.ones((3, 2)), np.zeros((3, 2)), 0.1, float("nan"), "confidence is nan"),
    ],
)
def test_arguments_out_of_range_are_one_line(entropy, loss, level, confidence, said):
    with pytest.raises(InputError, match=said):
        threshold_for_risk(entropy, loss, level, confidence)
