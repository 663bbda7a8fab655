"""Losses against torch, brute force and properties."""

import itertools

import jax
import numpy as np
import pytest

from daisy_jax.tasks.losses import best_permutation, ctc_loss


@pytest.fixture(scope="module")
def ctc_batch():
    """Five utterances: plain, repeats, no label, too short, too short only for its repeats."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((5, 12, 6)).astype(np.float32)
    frames = np.array([12, 9, 7, 2, 3])
    labels = rng.integers(1, 6, (5, 4)).astype(np.int32)
    labels[1] = [2, 2, 2, 5]
    labels[4] = [3, 3, 1, 1]
    counts = np.array([4, 4, 0, 3, 3])
    frame_mask = np.arange(12) < frames[:, None]
    label_mask = np.arange(4) < counts[:, None]
    return logits, frame_mask, labels, label_mask


def test_ctc_loss_and_gradient_are_those_of_torch(ctc_batch):
    torch = pytest.importorskip("torch")
    logits, frame_mask, labels, label_mask = ctc_batch
    theirs = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    wanted = torch.nn.CTCLoss(blank=0, zero_infinity=True)(
        theirs.log_softmax(-1).transpose(0, 1),
        torch.tensor(labels.astype(np.int64)),
        torch.tensor(frame_mask.sum(axis=1)),
        torch.tensor(label_mask.sum(axis=1)),
    )
    wanted.backward()
    ours, gradient = jax.jit(jax.value_and_grad(ctc_loss))(logits, frame_mask, labels, label_mask)
    assert float(ours) == pytest.approx(wanted.item(), rel=1e-5)
    np.testing.assert_allclose(gradient, theirs.grad.numpy(), atol=2e-5)


def test_ctc_loss_is_the_sum_over_all_paths():
    rng = np.random.default_rng(1)
    logits = rng.standard_normal((1, 4, 3)).astype(np.float32)
    exact = logits[0].astype(np.float64)
    log_probs = exact - np.log(np.exp(exact).sum(axis=-1, keepdims=True))

    def collapsed(path):
        kept = [label for label, _ in itertools.groupby(path) if label]
        return kept == [2, 1]

    paths = [path for path in itertools.product(range(3), repeat=4) if collapsed(path)]
    total = sum(np.exp(log_probs[np.arange(4), list(path)].sum()) for path in paths)
    ones = np.ones((1, 4), bool)
    loss = jax.jit(ctc_loss)(logits, ones, np.array([[2, 1]], np.int32), ones[:, :2])
    assert float(loss) == pytest.approx(-np.log(total) / 2, rel=1e-5)


@pytest.mark.parametrize("sources", [1, 2, 3])
def test_the_best_permutation_is_that_of_brute_force(sources):
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((20, sources, sources)).astype(np.float32)
    best, order = map(np.asarray, jax.jit(best_permutation)(scores))
    for row in range(20):
        means = {
            chosen: np.mean([scores[row, estimate, k] for k, estimate in enumerate(chosen)])
            for chosen in itertools.permutations(range(sources))
        }
        wanted = max(means, key=means.get)
        assert tuple(order[row].tolist()) == wanted
        assert float(best[row]) == pytest.approx(means[wanted], rel=1e-6)
