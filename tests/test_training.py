import dataclasses
import json
import pathlib
import signal
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sounds
from conftest import AS_FOR_USERS
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from made_models import made_model

import daisy_jax
from daisy_jax.errors import InputError, Terminated
from daisy_jax.model.branches import Branches
from daisy_jax.model.branches_loss import branch_scores, branches_loss
from daisy_jax.model.frame_labels import frame_labels
from daisy_jax.model.hubert import embed, final_norm
from daisy_jax.model.layer_loops import last_block, tapped_layers
from daisy_jax.training import loop
from daisy_jax.training.branches import clip_each_branch
from daisy_jax.training.loop import fit, warmup_then_decay
from daisy_jax.training.metrics_log import as_numbers
from daisy_jax.training.pretraining import masked_prediction_loss, span_mask
from daisy_jax.training.run_folder import Run

# ---- losses against numpy in float64 ----


@pytest.fixture(scope="module")
def model():
    return made_model()


@pytest.fixture(scope="module")
def batch():
    """Three utterances, one of them without a frame."""
    waveform = np.stack([sounds.syllables(1.0, seed) for seed in range(3)])
    lengths = np.array([16_000, 9_000, 399], np.int32)
    for row, length in enumerate(lengths):
        waveform[row, length:] = 0
    return {"waveform": waveform, "lengths": lengths}


FRAMES = (49, 27, 0)


def log_softmax(scores: np.ndarray) -> np.ndarray:
    scores = scores - scores.max(axis=-1, keepdims=True)
    return scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True))


@pytest.fixture(scope="module")
def hidden(model, batch):
    """Last block and taps of every layer, float64."""

    @jax.jit
    def run(model, waveform, lengths):
        return tapped_layers(model, embed(model, waveform, lengths))

    last, tapped = run(model, **batch)
    return np.asarray(last, np.float64), np.asarray(tapped, np.float64)


def test_branches_loss_is_the_sum_of_eq_1_over_the_layers(model, batch, hidden):
    _, tapped = hidden
    labels = np.asarray(jax.jit(frame_labels)(model, **batch))
    loss, metrics = jax.jit(branches_loss)(model.branches, model, **batch)
    kernel = np.asarray(model.branches.kernel[...], np.float64)
    bias = np.asarray(model.branches.bias[...], np.float64)
    losses, accuracies = [], []
    for layer in range(3):
        scores = tapped[layer] @ kernel[layer] + bias[layer]
        by_utterance, hits = [], []
        for row, frames in enumerate(FRAMES[:2]):
            picked = labels[row, :frames]
            log_probs = log_softmax(scores[row, :frames])
            by_utterance.append(-log_probs[np.arange(frames), picked].mean())
            hits.extend(log_probs.argmax(axis=-1) == picked)
        losses.append(np.mean(by_utterance))
        accuracies.append(np.mean(hits))
    np.testing.assert_allclose(metrics["layer_loss"], losses, rtol=1e-5)
    np.testing.assert_allclose(metrics["layer_accuracy"], accuracies, rtol=1e-6)
    assert loss == pytest.approx(sum(losses), rel=1e-5)
    assert metrics["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert metrics["accuracy"] == pytest.approx(np.mean(accuracies), rel=1e-6)


def test_scores_of_an_utterance_are_those_that_encode_and_the_loss_give(model, batch, hidden):
    _, tapped = hidden
    scores = jax.tree.map(np.asarray, jax.jit(branch_scores)(model.branches, model, **batch))
    assert scores.frames.tolist() == list(FRAMES)
    entropy = np.asarray(daisy_jax.encode(model, **batch, threshold=-np.inf).entropy)
    np.testing.assert_allclose(scores.entropy[:2], entropy[:2], rtol=1e-5)
    labels = np.asarray(jax.jit(frame_labels)(model, **batch))
    kernel = np.asarray(model.branches.kernel[...], np.float64)
    bias = np.asarray(model.branches.bias[...], np.float64)
    for row, frames in enumerate(FRAMES):
        picked = labels[row, :frames]
        for layer in range(3):
            log_probs = log_softmax(tapped[layer, row, :frames] @ kernel[layer] + bias[layer])
            loss = -log_probs[np.arange(frames), picked].mean() if frames else 0
            hits = np.sum(log_probs.argmax(axis=-1) == picked)
            assert float(scores.loss[row, layer]) == pytest.approx(loss, rel=1e-5)
            assert int(scores.hits[row, layer]) == hits


def test_given_labels_take_the_place_of_the_heads(model, batch):
    labels = np.asarray(jax.jit(frame_labels)(model, **batch))
    headless = model.replace(head=None)
    own, _ = jax.jit(branches_loss)(model.branches, model, **batch)
    given, _ = jax.jit(branches_loss)(model.branches, headless, **batch, labels=labels)
    assert given == pytest.approx(float(own), rel=1e-6)
    others, _ = jax.jit(branches_loss)(model.branches, headless, **batch, labels=labels % 2)
    assert abs(float(others) - float(own)) > 0.1


def test_no_gradient_of_the_branches_loss_reaches_the_trunk(model, batch):
    placed = jax.tree.map(jnp.asarray, batch)
    gradient = jax.jit(jax.grad(lambda *both: branches_loss(*both, **placed)[0], argnums=(0, 1)))
    branches, trunk = gradient(model.branches, model)
    assert not any(np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(trunk))
    for leaf in jax.tree.leaves(branches):
        assert np.all(np.any(np.asarray(leaf).reshape(3, -1), axis=1))  # every layer learns


@pytest.mark.parametrize("unmasked_weight", [0.0, 0.25])
def test_masked_prediction_loss_is_the_cross_entropy_of_masked_frames(
    model, batch, unmasked_weight
):
    rng = np.random.default_rng(0)
    masked = span_mask(np.array(FRAMES), 49, rng)
    labels = rng.integers(0, 6, (3, 49)).astype(np.int32)

    @jax.jit
    def scores_of(model, waveform, lengths, masked):
        return model.head(
            final_norm(model, last_block(model, embed(model, waveform, lengths, masked)))
        )

    scores = np.asarray(scores_of(model, **batch, masked=masked), np.float64)
    weight = np.float32(unmasked_weight)
    loss, metrics = jax.jit(masked_prediction_loss)(
        model, **batch, masked=masked, labels=labels, unmasked_weight=weight
    )
    log_probs = log_softmax(scores)
    losses = -np.take_along_axis(log_probs, labels[..., None], axis=-1)[..., 0]
    hits = scores.argmax(axis=-1) == labels
    valid = np.arange(49) < np.array(FRAMES)[:, None]
    wanted = losses[valid & masked].mean() + unmasked_weight * losses[valid & ~masked].mean()
    assert loss == pytest.approx(wanted, rel=1e-5)
    assert metrics["accuracy"] == pytest.approx(hits[valid & masked].mean(), rel=1e-6)
    assert metrics["unmasked_accuracy"] == pytest.approx(hits[valid & ~masked].mean(), rel=1e-6)


@pytest.mark.slow("compiles a whole step with optimisation, since it is about rounding")
def test_masked_frames_and_padding_hide_what_they_should(model, batch):
    rng = np.random.default_rng(0)
    masked = span_mask(np.array(FRAMES), 49, rng)
    labels = rng.integers(0, 6, (3, 49)).astype(np.int32)
    valid = np.arange(49) < np.array(FRAMES)[:, None]
    loss = jax.jit(masked_prediction_loss, compiler_options=AS_FOR_USERS)
    fixed = {"masked": masked, "unmasked_weight": np.float32(0.5)}
    before, _ = loss(model, **batch, **fixed, labels=labels)
    garbage = batch["waveform"].copy()
    garbage[1, 9_000:] = 3
    other = np.where(valid, labels, 10**6).astype(np.int32)
    after, _ = loss(model, garbage, batch["lengths"], **fixed, labels=other)
    assert before == after


def test_every_branch_is_clipped_by_its_own_norm():
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((4, 5, 3)) * np.array([0.01, 1, 100, 0])[:, None, None]
    bias = rng.standard_normal((4, 3)) * np.array([0.01, 1, 100, 0])[:, None]
    clip = clip_each_branch(2.5)
    branches = Branches(4, 5, 3, rngs=nnx.Rngs(0))
    structure = jax.tree.structure(branches)
    names = [str(path[0]) for path, _ in jax.tree_util.tree_flatten_with_path(branches)[0]]
    order = [bias, kernel] if "bias" in names[0] else [kernel, bias]
    gradients = jax.tree.unflatten(structure, [leaf.astype(np.float32) for leaf in order])
    clipped, _ = jax.jit(clip.update)(gradients, clip.init(branches))
    clipped_kernel, clipped_bias = (np.asarray(p[...]) for p in (clipped.kernel, clipped.bias))
    for layer in range(4):
        norm = np.sqrt(np.sum(kernel[layer] ** 2) + np.sum(bias[layer] ** 2))
        scale = min(1, 2.5 / norm) if norm else 1
        np.testing.assert_allclose(clipped_kernel[layer], scale * kernel[layer], rtol=1e-5)
        np.testing.assert_allclose(clipped_bias[layer], scale * bias[layer], rtol=1e-5)


# ---- masks and schedule ----


@settings(deadline=None)
@given(st.lists(st.integers(0, 120), min_size=1, max_size=5), st.integers(0, 2**32))
def test_span_mask_is_made_of_spans_inside_valid_frames(valid, seed):
    valid = np.array(valid)
    mask = span_mask(valid, 120, np.random.default_rng(seed))
    assert mask.shape == (len(valid), 120)
    for row, frames in zip(mask, valid, strict=True):
        assert not row[frames:].any()
        assert row.any() == (frames > 0)
        edges = np.flatnonzero(np.diff(np.concatenate([[False], row, [False]]).astype(int)))
        runs = edges[1::2] - edges[::2]
        assert all(run >= min(10, frames) for run in runs)
        assert row.sum() <= 10 * max(int(0.08 * frames + 1), 1)


def test_span_mask_draws_about_8_percent_of_the_frames_as_starts():
    rng = np.random.default_rng(0)
    mask = span_mask(np.full(2_000, 500), 500, rng)
    # A frame is seen if none of the (up to) ten places before it is one of 40 starts among 491.
    seen = np.prod([(491 - 10 - i) / (491 - i) for i in range(40)])
    assert mask[:, 50:450].mean() == pytest.approx(1 - seen, abs=0.01)


def test_the_learning_rate_grows_and_falls_linearly():
    rate = warmup_then_decay(0.5, 10, 50)
    assert [float(rate(step)) for step in (0, 5, 10, 30, 50)] == pytest.approx(
        [0, 0.25, 0.5, 0.25, 0]
    )
    assert float(warmup_then_decay(0.5, 4, 4)(3)) == pytest.approx(0.375)


# ---- fit ----


@dataclasses.dataclass(frozen=True)
class Config:
    output: str
    steps: int = 7
    rate: tuple[float, float] = (0.1, 0.2)
    resume: bool = False
    accelerator: str = "cpu"


def made_batch(number: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(number)
    return {"x": rng.standard_normal((4, 3), np.float32), "scale": np.float32(number)}


@jax.jit
def one_step(state, batch):
    moved = state["w"] * 0.9 + batch["x"].mean(axis=0) * batch["scale"]
    metrics = {"loss": jnp.sum(moved**2), "accuracy": moved[0], "by_place": moved}
    return {"w": moved, "count": state["count"] + 1}, metrics


def train(config: Config, step=one_step, batch=made_batch, save_every=3, log_every=2):
    run = Run(pathlib.Path(config.output), config, config.resume)
    state = {"w": np.zeros(3, np.float32), "count": np.int32(0)}
    options = {"steps": config.steps, "save_every": save_every, "log_every": log_every}
    return fit(run, state, step, batch, **options)


def metrics_of(folder) -> list[dict]:
    lines = (pathlib.Path(folder) / "metrics.jsonl").read_text().splitlines()
    lines = [json.loads(line) for line in lines]
    for line in lines:
        assert line.pop("steps_per_second") > 0
    return lines


def test_the_rate_counts_the_wait_for_steps_that_were_only_begun(tmp_path, monkeypatch):
    now = 0.0

    def waited(history):
        nonlocal now
        now += 10
        return as_numbers(history)

    monkeypatch.setattr(loop, "as_numbers", waited)
    monkeypatch.setattr(loop, "time", types.SimpleNamespace(perf_counter=lambda: now))
    train(Config(str(tmp_path / "run"), steps=4), save_every=9)
    lines = (tmp_path / "run/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["steps_per_second"] for line in lines] == [0.2, 0.2]


def test_no_step_is_begun_long_before_earlier_ones_have_ended(tmp_path, monkeypatch):
    begun, ended = [], []

    def step(state, batch):
        state, metrics = one_step(state, batch)
        begun.append(metrics)
        assert len(begun) <= len(ended) + loop.AHEAD + 1
        return state, metrics

    def waits(metrics):
        ended.append(metrics)
        assert begun[len(ended) - 1] is metrics
        return metrics

    monkeypatch.setattr(jax, "block_until_ready", waits)
    train(Config(str(tmp_path / "run"), steps=40), step, save_every=99, log_every=99)
    assert len(ended) == 40 - loop.AHEAD


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return train(Config(str(folder))), metrics_of(folder)


def assert_as_uninterrupted(state, folder, uninterrupted) -> None:
    wanted, metrics = uninterrupted
    assert int(state["count"]) == 7
    np.testing.assert_array_equal(state["w"], wanted["w"])
    assert metrics_of(folder) == metrics


def test_metrics_are_means_over_the_steps_since_the_last_line(uninterrupted):
    state = {"w": np.zeros(3, np.float32), "count": np.int32(0)}
    losses = []
    for number in range(7):
        state, metrics = one_step(state, made_batch(number))
        losses.append(float(metrics["loss"]))
    np.testing.assert_array_equal(uninterrupted[0]["w"], state["w"])
    logged = uninterrupted[1]
    assert [line["step"] for line in logged] == [2, 4, 6, 7]
    wanted = [np.mean(losses[:2]), np.mean(losses[2:4]), np.mean(losses[4:6]), losses[6]]
    np.testing.assert_allclose([line["loss"] for line in logged], wanted, rtol=1e-6)
    assert len(logged[0]["by_place"]) == 3


@pytest.fixture
def handled_sigterm():
    def terminate(number, frame):
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("at", [1, 2, 3, 5])
def test_sigterm_saves_the_step_and_a_resumed_run_gives_the_same(
    tmp_path, uninterrupted, handled_sigterm, caplog, at
):
    caplog.set_level("INFO", logger="daisy_jax")

    def interrupted_step(state, batch):
        if int(state["count"]) == at - 1:
            signal.raise_signal(signal.SIGTERM)
        return one_step(state, batch)

    with pytest.raises(Terminated):
        train(Config(str(tmp_path)), interrupted_step)
    assert f"stopped after step {at}; --resume goes on" in caplog.text
    first = []

    def watched_batch(number):
        first.append(number)
        return made_batch(number)

    state = train(Config(str(tmp_path), resume=True), batch=watched_batch)
    assert first[0] == at
    assert_as_uninterrupted(state, tmp_path, uninterrupted)


def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path, uninterrupted):
    class Killed(BaseException):
        pass

    def interrupted_step(state, batch):
        if int(state["count"]) == 5:
            raise Killed
        return one_step(state, batch)

    with pytest.raises(Killed):
        train(Config(str(tmp_path)), interrupted_step)
    assert [line["step"] for line in metrics_of(tmp_path)] == [2, 4]
    with open(tmp_path / "metrics.jsonl", "a") as stream:
        stream.write('{"step": 6, "lo')  # killed while it wrote
    state = train(Config(str(tmp_path), resume=True))
    assert_as_uninterrupted(state, tmp_path, uninterrupted)


@pytest.mark.parametrize(
    ("validate_every", "validated", "saved"), [(0, {3, 6, 7}, {3, 6, 7}), (5, {5, 7}, {3, 5, 6, 7})]
)
def test_validations_have_an_interval_of_their_own(
    tmp_path, monkeypatch, validate_every, validated, saved
):
    steps = {"validated": set(), "saved": set()}
    run = Run(tmp_path, Config(str(tmp_path)), False)
    save = run.save

    def watched(state, step, recent, scores):
        steps["saved"].add(step)
        if scores is not None:
            steps["validated"].add(step)
        save(state, step, recent, scores)

    monkeypatch.setattr(run, "save", watched)
    state = {"w": np.zeros(3, np.float32), "count": np.int32(0)}
    fit(
        run,
        state,
        one_step,
        made_batch,
        steps=7,
        save_every=3,
        log_every=2,
        validate_every=validate_every,
        validate=lambda state: {"validation_loss": float(state["count"])},
    )
    assert steps == {"validated": validated, "saved": saved}


def test_resuming_a_finished_run_changes_nothing(tmp_path, uninterrupted):
    train(Config(str(tmp_path)))
    state = train(Config(str(tmp_path), resume=True, accelerator="auto"))
    assert_as_uninterrupted(state, tmp_path, uninterrupted)


def test_a_run_is_not_overwritten_without_resume(tmp_path):
    train(Config(str(tmp_path)))
    with pytest.raises(InputError, match="holds a run; pass --resume"):
        Run(tmp_path, Config(str(tmp_path)), resume=False)


def test_another_configuration_is_refused_with_its_differences(tmp_path):
    Run(tmp_path, Config(str(tmp_path)), resume=False)
    changed = Config(str(tmp_path), steps=5, rate=(0.1, 0.3), resume=True, accelerator="gpu")
    with pytest.raises(InputError) as error:
        Run(tmp_path, changed, resume=True)
    assert "rate was [0.1, 0.2] and is [0.1, 0.3]" in str(error.value)
    assert "steps was 7 and is 5" in str(error.value)
    assert "accelerator" not in str(error.value)
    Run(tmp_path, Config(str(tmp_path)), resume=True)


def test_there_must_be_something_to_resume(tmp_path):
    with pytest.raises(InputError, match="holds no run to resume"):
        Run(tmp_path / "typo", Config("typo"), resume=True)
    assert not (tmp_path / "typo").exists()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_ends_the_run(tmp_path, value):
    def broken_step(state, batch):
        state, metrics = one_step(state, batch)
        lost = metrics["loss"] if int(state["count"]) < 3 else jnp.float32(value)
        return state, metrics | {"loss": lost}

    with pytest.raises(FloatingPointError, match=rf"the loss is {value} at step 4"):
        train(Config(str(tmp_path)), broken_step, save_every=7)


def test_a_state_that_is_not_finite_is_not_saved(tmp_path):
    def broken_step(state, batch):
        state, metrics = one_step(state, batch)
        lost = metrics["loss"] if int(state["count"]) < 6 else jnp.float32(np.nan)
        return state, metrics | {"loss": lost}

    with pytest.raises(FloatingPointError, match="the loss is nan at step 6"):
        train(Config(str(tmp_path)), broken_step, save_every=3, log_every=7)
    assert [entry.name for entry in (tmp_path / "checkpoints").iterdir()] == ["3"]


def test_a_batch_that_the_devices_cannot_share_is_refused(tmp_path):
    if jax.device_count() == 1:
        pytest.skip("one device shares everything")
    with pytest.raises(InputError, match="make the batch size a multiple"):
        train(Config(str(tmp_path)), batch=lambda number: {"x": np.zeros((3, 2), np.float32)})


def test_an_error_in_a_batch_is_raised(tmp_path):
    def bad_batch(number):
        if number == 2:
            raise InputError("x.wav: cut off")
        return made_batch(number)

    with pytest.raises(InputError, match=r"x.wav: cut off"):
        train(Config(str(tmp_path)), batch=bad_batch)
