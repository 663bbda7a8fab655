"""One utterance's result does not depend on the batch, its order, its padding or its width."""

import jax
import numpy as np
import pytest
from conftest import ALL, random_model, speech_like
from helpers import RELATIVE_TOLERANCE, assert_close_to_scale, numpy_of
from hypothesis import given, settings
from hypothesis import strategies as st

from daisy_jax import HubertConfig, encode, frame_labels
from daisy_jax.audio import frame_count, pad_batch
from daisy_jax.model.hubert import embed, final_norm
from daisy_jax.model.layer_loops import last_block

OPTIONS = {
    "layer_weights": np.array([0.3, -1.0, 0.7, 1.5, -0.2], np.float32),
    "return_hidden_states": True,
}
SHAPES = ((4, 8000), (5, 12_347))
CLEAR = 1e-5  # nats from the threshold, below which an exit may differ


@pytest.fixture(scope="module")
def alone(small_models):
    """Results for one unpadded utterance; each length is compiled once."""
    cache = {}

    def run(name, waveform):
        key = name, waveform.tobytes()
        if key not in cache:
            out = encode(small_models[name], waveform[None], threshold=-np.inf, **OPTIONS)
            cache[key] = jax.tree.map(lambda field: field[0], numpy_of(out))
        return cache[key]

    return run


# Utterances of lengths around the edges of windows and frames.
LENGTHS = (400, 719, 720, 2000, 3333, 5119, 8000)
POOL = speech_like(LENGTHS, seed=4)


def batches(picks):
    """Of indices into POOL; negative ones are rows without a frame."""
    return st.lists(picks, min_size=1, max_size=4)


def make_batch(picks, shape, garbage):
    rows, samples = shape
    short = [np.full((0, 17, 399)[-pick - 1], 0.3, np.float32) for pick in picks if pick < 0]
    waveforms = [POOL[pick] if pick >= 0 else short.pop() for pick in picks]
    batch, lengths = pad_batch(waveforms, samples, rows)
    batch[np.arange(samples) >= lengths[:, None]] = garbage
    return batch, lengths


def first_below(entropy, threshold):
    fired = entropy < threshold
    return int(np.argmax(fired)) + 1 if fired.any() else len(entropy)


THRESHOLDS, GARBAGE = st.floats(0.2, 2.2), st.sampled_from([0.0, 1e3, np.nan])


@settings(max_examples=5)
@given(picks=batches(st.sampled_from([-3, -1, 4])), garbage=GARBAGE, threshold=THRESHOLDS)
def test_results_in_some_batch_are_those_alone(small_models, alone, picks, garbage, threshold):
    """Of one model, one shape and one length, since each is a program of its own."""
    name = "large"
    assert_as_alone(small_models[name], name, alone, picks, SHAPES[0], garbage, threshold)


@pytest.mark.slow("compiles a program for each length and each shape")
@pytest.mark.parametrize("name", ["base", "large"])
@settings(max_examples=40)
@given(
    picks=batches(st.integers(-3, len(POOL) - 1)),
    shape=st.sampled_from(SHAPES),
    garbage=GARBAGE,
    threshold=THRESHOLDS,
)
def test_results_in_any_batch_are_those_alone(
    small_models, alone, name, picks, shape, garbage, threshold
):
    assert_as_alone(small_models[name], name, alone, picks, shape, garbage, threshold)


def assert_as_alone(model, name, alone, picks, shape, garbage, threshold):
    batch, lengths = make_batch(picks, shape, garbage)
    out = numpy_of(encode(model, batch, lengths, threshold=threshold, **OPTIONS))
    labels = np.asarray(frame_labels_of(model, batch, lengths))
    for row, pick in enumerate(picks):
        frames = frame_count(int(lengths[row]))
        assert out.num_frames[row] == frames
        assert np.all(labels[row, frames:] == -1)
        for field in (out.last_hidden[row], out.pooled[row]):
            assert not np.any(field[frames:])
        if pick < 0:
            assert out.exit_layer[row] == 0
            continue
        desired = alone(name, POOL[pick])
        depth = int(out.exit_layer[row])
        if depth != first_below(desired.entropy, threshold):
            assert np.min(np.abs(desired.entropy - threshold)) <= CLEAR
        np.testing.assert_allclose(
            out.entropy[row, :depth], desired.entropy[:depth], rtol=0, atol=CLEAR
        )
        for number in range(depth + 1):
            actual = out.hidden_states[row, number, :frames]
            assert_close_to_scale(actual, desired.hidden_states[number])
        assert_close_to_scale(out.last_hidden[row, :frames], desired.hidden_states[depth])
        assert not np.any(out.hidden_states[row, depth + 1 :])
        assert_labels_agree(model, labels[row, :frames], desired.last_hidden)
    assert not np.any(out.exit_layer[len(picks) :])


frame_labels_of = jax.jit(frame_labels)


@jax.jit
def head_scores(model, hidden):
    return model.head(final_norm(model, hidden))


def assert_labels_agree(model, labels, last_hidden):
    """Labels are the best clusters of an utterance alone, up to ties within rounding."""
    padded = np.pad(last_hidden, [(0, 49 - len(last_hidden)), (0, 0)])
    scores = np.asarray(head_scores(model, padded[None]))[0, : len(labels)]
    chosen = np.take_along_axis(scores, labels[:, None], axis=1)[:, 0]
    assert np.all(scores.max(axis=1) - chosen <= RELATIVE_TOLERANCE * 10)  # scores span +-10


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=4)
@given(order=st.permutations(range(7)))
def test_the_order_of_a_batch_is_the_order_of_its_results(small_models, name, order):
    batch, lengths = pad_batch(POOL)
    options = {"threshold": 1.0, **OPTIONS}
    straight = numpy_of(encode(small_models[name], batch, lengths, **options))
    turned = numpy_of(encode(small_models[name], batch[order], lengths[order], **options))
    np.testing.assert_array_equal(turned.exit_layer, straight.exit_layer[np.array(order)])
    for row, origin in enumerate(order):
        assert_close_to_scale(turned.last_hidden[row], straight.last_hidden[origin])
        assert_close_to_scale(turned.pooled[row], straight.pooled[origin])


OFFSET = speech_like((400, 401, 719, 720, 1039, 2000), seed=4)[5] * np.float32(0.1)
SPECIAL = {
    "quiet": POOL[4] * np.float32(1e-3),
    "silent": np.zeros(3333, np.float32),
    "offset": OFFSET + np.float32(0.2),  # twenty times the signal's RMS
}


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("name", ["base", "large"])
def test_special_recordings_do_not_depend_on_padding_either(small_models, name, kind):
    batch, lengths = pad_batch([SPECIAL[kind], POOL[6]], *SHAPES[0][::-1])
    options = {"threshold": -np.inf, **OPTIONS}
    out = numpy_of(encode(small_models[name], batch, lengths, **options))
    alone = numpy_of(encode(small_models[name], SPECIAL[kind][None], **options))
    frames = int(alone.num_frames[0])
    assert_close_to_scale(out.last_hidden[0, :frames], alone.last_hidden[0])


@pytest.mark.slow("models of full width")
@pytest.mark.parametrize("size", ["base", "large"])
def test_models_of_full_width(size):
    """HuBERT Base at full size, and Large's kind at full width with fewer layers."""
    if size == "base":
        config = HubertConfig.base(num_classes=500)
    else:
        config = HubertConfig.large(num_classes=500, num_layers=2)
    model = random_model(config)
    waveforms = speech_like([16_000, 8123, 11_111], seed=8)
    batch, lengths = pad_batch(waveforms, 17_000, rows=4)
    batch[np.arange(17_000) >= lengths[:, None]] = 7.0
    weights = np.linspace(-1, 1, config.num_layers + 1, dtype=np.float32)
    options = {"layer_weights": weights, "return_hidden_states": True}
    together = encode(model, batch, lengths, threshold=-np.inf, **options)
    assert together.exit_layer[3] == 0
    row = 1  # with the most padding
    alone = encode(model, waveforms[row][None], threshold=-np.inf, **options)
    frames = int(alone.num_frames[0])
    np.testing.assert_allclose(together.entropy[row], alone.entropy[0], rtol=0, atol=CLEAR)
    for number in range(config.num_layers + 1):
        actual = together.hidden_states[row, number, :frames]
        assert_close_to_scale(actual, alone.hidden_states[0, number])
    assert_close_to_scale(together.pooled[row, :frames], alone.pooled[0])


def test_the_front_end_is_the_same_at_every_width(any_model):
    run = jax.jit(lambda model, waveform, lengths: embed(model, waveform, lengths))
    lengths = np.array([5000])
    waveform = np.stack(speech_like(lengths))
    desired = run(any_model, waveform, lengths)
    frames = desired.hidden.shape[1]
    for width in (5001, 5320, 9999):
        padded = np.pad(waveform, [(0, 0), (0, width - 5000)], constant_values=3.0)
        out = numpy_of(run(any_model, padded, lengths))
        assert_close_to_scale(out.projected[:, :frames], desired.projected)
        assert_close_to_scale(out.hidden[:, :frames], desired.hidden)
        assert not np.any(out.hidden[:, frames:])


def test_the_training_path_agrees_with_encode(any_model):
    batch, lengths = pad_batch(POOL)

    @jax.jit
    def trained(model, batch, lengths):
        embedded = embed(model, batch, lengths)
        return embedded.frame_mask, last_block(model, embedded)

    mask, last = trained(any_model, batch, lengths)
    last = np.where(mask[..., None], last, 0)
    out = encode(any_model, batch, lengths, threshold=-np.inf, **OPTIONS)
    assert_close_to_scale(last, out.last_hidden)
