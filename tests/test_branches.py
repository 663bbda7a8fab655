"""Entropy (eq. 2) and loss (eq. 1) of branches against scipy and torch in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flax import nnx
from scipy.special import softmax

from daisy_jax.model import branches
from daisy_jax.model.branches import Branches

RNG = np.random.default_rng(0)
LOGITS = (3 * RNG.standard_normal((4, 9, 11))).astype(np.float32)
LABELS = RNG.integers(0, 11, (4, 9)).astype(np.int32)
FRAMES = np.array([9, 1, 0, 5])
MASK = np.arange(9) < FRAMES[:, None]


def utterance_entropy(logits, mask):
    return branches.utterance_entropy(jnp.asarray(logits), jnp.asarray(mask))


def branch_loss(logits, labels, mask):
    return branches.branch_loss(*map(jnp.asarray, (logits, labels, mask)))


def test_entropy_equals_scipy_over_valid_frames():
    entropy = utterance_entropy(LOGITS, MASK)
    assert entropy.dtype == jnp.float32
    frames = scipy.stats.entropy(softmax(LOGITS.astype(np.float64), axis=-1), axis=-1)
    desired = [frames[row, :count].mean() if count else 0 for row, count in enumerate(FRAMES)]
    np.testing.assert_allclose(entropy, desired, rtol=0, atol=1e-6)


def test_entropy_lies_between_0_and_the_logarithm_of_the_classes():
    flat = utterance_entropy(np.zeros((1, 3, 500), np.float32), np.ones((1, 3), bool))
    np.testing.assert_allclose(flat, np.log(500), rtol=1e-6)
    sure = np.zeros((1, 3, 500), np.float32)
    sure[..., 7] = 1e4
    assert utterance_entropy(sure, np.ones((1, 3), bool)) == 0
    assert utterance_entropy(sure - 1e30, np.ones((1, 3), bool)) >= 0


def test_classes_of_probability_zero_add_nothing():
    logits = LOGITS[:1].copy()
    logits[..., 3] = -np.inf
    without = np.delete(LOGITS[:1], 3, axis=-1)
    mask = np.ones((1, 9), bool)
    entropy = utterance_entropy(logits, mask)
    np.testing.assert_allclose(entropy, utterance_entropy(without, mask), rtol=1e-6)
    gradient = jax.grad(lambda logits: utterance_entropy(logits, mask)[0])(jnp.asarray(logits))
    assert np.all(np.isfinite(np.delete(gradient, 3, axis=-1)))


@pytest.mark.parametrize("garbage", [1e30, np.nan, np.inf])
def test_padded_frames_do_not_matter(garbage):
    spoilt = np.where(MASK[..., None], LOGITS, np.float32(garbage))
    np.testing.assert_array_equal(utterance_entropy(spoilt, MASK), utterance_entropy(LOGITS, MASK))
    labels = np.where(MASK, LABELS, -1)
    assert branch_loss(spoilt, labels, MASK) == branch_loss(LOGITS, LABELS, MASK)


def test_bfloat16_logits_are_summed_in_float32():
    half = jnp.asarray(LOGITS, jnp.bfloat16)
    entropy = utterance_entropy(half, MASK)
    assert entropy.dtype == jnp.float32
    np.testing.assert_array_equal(entropy, utterance_entropy(half.astype(jnp.float32), MASK))


def test_loss_is_the_mean_over_frames_then_over_utterances():
    torch = pytest.importorskip("torch")
    rows = [
        torch.nn.functional.cross_entropy(
            torch.tensor(LOGITS[row, :count], dtype=torch.float64),
            torch.tensor(LABELS[row, :count], dtype=torch.long),
        )
        for row, count in enumerate(FRAMES)
        if count
    ]
    loss = branch_loss(LOGITS, LABELS, MASK)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, np.mean(rows), rtol=1e-6)


def test_gradient_of_the_loss_equals_torch():
    torch = pytest.importorskip("torch")
    logits = torch.tensor(LOGITS, dtype=torch.float64, requires_grad=True)
    losses = torch.nn.functional.cross_entropy(
        logits.movedim(-1, 1), torch.tensor(LABELS, dtype=torch.long), reduction="none"
    )
    mask = torch.tensor(MASK)
    rows = (losses * mask).sum(1)[mask.any(1)] / mask.sum(1)[mask.any(1)]
    rows.mean().backward()
    gradient = jax.grad(branch_loss)(jnp.asarray(LOGITS), LABELS, MASK)
    np.testing.assert_allclose(gradient, logits.grad, rtol=0, atol=1e-7)


def test_a_batch_without_frames_has_no_loss_and_no_gradient():
    nothing = np.zeros((4, 9), bool)
    value, gradient = jax.value_and_grad(branch_loss)(jnp.asarray(LOGITS), LABELS, nothing)
    assert value == 0
    assert not np.any(gradient)
    np.testing.assert_array_equal(utterance_entropy(LOGITS, nothing), np.zeros(4))


def test_frame_mean_takes_leading_axes():
    values = RNG.standard_normal((3, 4, 9)).astype(np.float32)
    means = branches.frame_mean(jnp.asarray(values), jnp.asarray(MASK[None]))
    for row, count in enumerate(FRAMES):
        desired = values[:, row, :count].mean(axis=1) if count else np.zeros(3)
        np.testing.assert_allclose(means[:, row], desired, rtol=0, atol=1e-6)


def test_each_layer_has_its_own_float32_classifier():
    stacked = Branches(3, 8, 5, rngs=nnx.Rngs(0))
    bias = jnp.asarray(RNG.standard_normal((3, 5)), jnp.float32)
    stacked = jax.tree.map(lambda leaf: leaf if leaf.ndim == 3 else bias, stacked)
    assert stacked.kernel.shape == (3, 8, 5)
    assert 0.2 < float(jnp.std(stacked.kernel[...])) * np.sqrt(8) < 2  # fan-in of one layer
    tapped = RNG.standard_normal((2, 4, 8)).astype(np.float32)
    for number in range(3):
        branch = jax.tree.map(lambda leaf, number=number: leaf[number], stacked)
        logits = branch(jnp.asarray(tapped))
        kernel = np.asarray(stacked.kernel[...], np.float64)[number]
        np.testing.assert_allclose(logits, tapped @ kernel + np.asarray(bias[number]), atol=1e-5)


def test_the_branch_product_is_float32_at_the_highest_precision_whatever_the_default():
    branch = jax.tree.map(lambda leaf: leaf[0], Branches(1, 8, 5, rngs=nnx.Rngs(0)))
    with jax.default_matmul_precision("bfloat16"):
        jaxpr = str(jax.make_jaxpr(branch)(jnp.zeros((2, 4, 8), jnp.bfloat16)))
    assert "Precision.HIGHEST" in jaxpr
    assert branch(jnp.zeros((2, 4, 8), jnp.bfloat16)).dtype == jnp.float32
