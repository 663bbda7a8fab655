"""`encode` against a plain loop over utterances and layers (`reference.py`), and its errors."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ALL, SMALL, random_model, speech_like
from helpers import assert_close_to_scale, numpy_of
from reference import reference_of

from daisy_jax import InputError, encode
from daisy_jax.audio import frame_count, pad_batch
from daisy_jax.model import slices
from daisy_jax.model.branches import Branches
from daisy_jax.model.forms import one_form
from daisy_jax.model.pooling import pool
from daisy_jax.model.transformer import TransformerLayer

encode_module = sys.modules["daisy_jax.encode"]  # in the package, the function hides its module

LENGTHS = (9000, 400, 5000, 0, 7321, 719, 399)
WAVEFORMS = speech_like(LENGTHS)
BATCH, BATCH_LENGTHS = pad_batch(WAVEFORMS)
LAYER_WEIGHTS = {
    "spread": np.array([0.3, -1.0, 0.7, 1.5, -0.2], np.float32),
    "left out": np.array([-np.inf, 0.4, -np.inf, -np.inf, 1.0], np.float32),
    "only item 0": np.array([0.0] + 4 * [-np.inf], np.float32),
    "only the last": np.array(4 * [-np.inf] + [2.0], np.float32),
    "far from zero": np.array([3000.0, 3001.0, 2999.5, 3002.0, 3000.7], np.float32),
    "far apart": np.array([-9000.0, -8999.0, 50.0, 49.0, 8000.0], np.float32),
    "float32 extremes": np.array([-3.4e38, 1.0, 2.0, -3.4e38, 3.4e38], np.float32),
}
ALLOWED = {
    "everywhere": [True, True, True, True],
    "gap": [True, False, False, True],
    "only 3": [False, False, True, False],
    "2 and 3": [False, True, True, False],
}
FORMS = pytest.mark.slow("compiles more forms of the loop over layers")
EVERYTHING = {"layer_weights": LAYER_WEIGHTS["spread"], "return_hidden_states": True}
"""Most tests ask for every output at the same shapes: one executable a model serves them."""


@pytest.fixture(scope="module")
def references(small_models):
    return {name: reference_of(model) for name, model in small_models.items()}


@pytest.fixture(params=ALL, scope="module")
def pair(request, small_models, references):
    """A model and its reference."""
    return small_models[request.param], references[request.param]


def encoded(*arguments, **options):
    return numpy_of(encode(*arguments, **options))


def threshold_amid(entropy: np.ndarray, share: float) -> float:
    """A threshold at the given quantile that lies in a wide gap between two entropies."""
    values = np.sort(entropy[np.isfinite(entropy)])
    place = int(share * (len(values) - 2))
    near = slice(max(place - 2, 0), place + 4)
    gaps = np.diff(values[near])
    widest = int(np.argmax(gaps))
    assert gaps[widest] > 1e-4
    return float(values[near][widest] + gaps[widest] / 2)


def assert_equals_reference(out, reference, thresholds, allowed=None, layer_weights=None) -> None:
    """Every field of `out` for the module's batch."""
    layers = reference.config.num_layers
    for row, waveform in enumerate(WAVEFORMS):
        frames = int(frame_count(LENGTHS[row]))
        assert out.num_frames[row] == frames
        assert not np.any(out.last_hidden[row, frames:])
        if out.pooled is not None:
            assert not np.any(out.pooled[row, frames:])
        if out.hidden_states is not None:
            assert not np.any(out.hidden_states[row, :, frames:])
        if not frames:
            assert out.exit_layer[row] == 0
            assert not out.forced[row]
            assert np.all(np.isposinf(out.entropy[row]))
            continue
        threshold = None if thresholds is None else thresholds[row]
        desired = reference.encode(waveform, threshold, allowed, layer_weights)
        assert out.exit_layer[row] == desired["exit_layer"]
        assert out.forced[row] == desired["forced"]
        finite = np.isfinite(desired["entropy"])
        np.testing.assert_array_equal(np.isfinite(out.entropy[row]), finite)
        np.testing.assert_allclose(
            out.entropy[row][finite], desired["entropy"][finite], rtol=0, atol=1e-5
        )
        assert_close_to_scale(out.last_hidden[row, :frames], desired["last_hidden"])
        if out.pooled is not None:
            assert_close_to_scale(out.pooled[row, :frames], desired["pooled"])
        if out.hidden_states is not None:
            states = desired["hidden_states"]
            for number in range(layers + 1):
                state = np.asarray(out.hidden_states[row, number, :frames])
                if number < len(states):
                    assert_close_to_scale(state, states[number])
                else:
                    assert not np.any(state)


def test_every_layers_output_entropy_and_pooling_equal_the_reference(pair):
    model, reference = pair
    out = encoded(model, BATCH, BATCH_LENGTHS, threshold=-np.inf, **EVERYTHING)
    assert out.hidden_states.shape == (7, 5, frame_count(9000), 32)
    assert_equals_reference(out, reference, [-np.inf] * 7, None, LAYER_WEIGHTS["spread"])


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_exits_at_a_scalar_threshold_equal_the_reference(pair, share):
    model, reference = pair
    entropy = encoded(model, BATCH, BATCH_LENGTHS, threshold=-np.inf, **EVERYTHING).entropy
    threshold = threshold_amid(np.asarray(entropy), share)
    out = encoded(model, BATCH, BATCH_LENGTHS, threshold=threshold, **EVERYTHING)
    assert_equals_reference(out, reference, [threshold] * 7, None, LAYER_WEIGHTS["spread"])


def test_the_small_models_leave_at_many_layers(any_model):
    out = encoded(any_model, BATCH, BATCH_LENGTHS, threshold=-np.inf, **EVERYTHING)
    exits, entropy = set(), np.asarray(out.entropy)
    for threshold in np.quantile(entropy[np.isfinite(entropy)], np.linspace(0.1, 0.9, 9)):
        out = encoded(any_model, BATCH, BATCH_LENGTHS, threshold=threshold, **EVERYTHING)
        exits |= set(np.asarray(out.exit_layer).tolist())
    assert len(exits - {0}) >= 3


@pytest.mark.parametrize("allowed", ALLOWED.values(), ids=ALLOWED)
def test_spans_and_thresholds_of_each_utterance_equal_the_reference(pair, allowed):
    model, reference = pair
    out = encoded(model, BATCH, BATCH_LENGTHS, threshold=-np.inf, **EVERYTHING)
    full = np.asarray(out.entropy)
    middle = threshold_amid(full, 0.5)
    thresholds = np.array(
        [middle, np.inf, -np.inf, 1.0, threshold_amid(full, 0.3), middle, np.inf], np.float32
    )
    weights = LAYER_WEIGHTS["left out"]
    out = encoded(
        model,
        BATCH,
        BATCH_LENGTHS,
        threshold=thresholds,
        allowed=np.array(allowed),
        layer_weights=weights,
        return_hidden_states=True,
    )
    assert_equals_reference(out, reference, thresholds, allowed, weights)


@pytest.mark.parametrize("allowed", ALLOWED.values(), ids=ALLOWED)
def test_no_threshold_is_full_depth_without_entropies(pair, allowed):
    model, reference = pair
    options = {"allowed": np.array(allowed), **EVERYTHING}
    out = encoded(model.replace(branches=None), BATCH, BATCH_LENGTHS, **options)
    assert_equals_reference(out, reference, None, allowed, LAYER_WEIGHTS["spread"])
    assert np.all(np.isposinf(out.entropy))

    never = encoded(model, BATCH, BATCH_LENGTHS, threshold=-np.inf, **options)
    np.testing.assert_array_equal(out.exit_layer, never.exit_layer)
    np.testing.assert_array_equal(out.forced, never.forced)
    np.testing.assert_array_equal(np.isfinite(never.entropy[0]), allowed)
    assert_close_to_scale(out.last_hidden, never.last_hidden)
    assert_close_to_scale(out.hidden_states, never.hidden_states)
    assert_close_to_scale(out.pooled, never.pooled)


def test_infinite_thresholds_leave_at_once_or_never(base_model):
    at_once = encoded(base_model, BATCH, BATCH_LENGTHS, threshold=np.inf)
    np.testing.assert_array_equal(at_once.exit_layer, [1, 1, 1, 0, 1, 1, 0])
    assert not np.any(at_once.forced)
    assert np.all(np.isposinf(at_once.entropy[:, 1:]))
    never = encoded(base_model, BATCH, BATCH_LENGTHS, threshold=-np.inf)
    np.testing.assert_array_equal(never.exit_layer, [4, 4, 4, 0, 4, 4, 0])
    np.testing.assert_array_equal(never.forced, [1, 1, 1, 0, 1, 1, 0])


def test_an_utterance_leaves_below_its_threshold_and_not_at_it(base_model):
    waveform = WAVEFORMS[0][None]
    entropy = np.asarray(encoded(base_model, waveform, threshold=-np.inf).entropy)[0, :1]
    at = encoded(base_model, waveform, threshold=entropy)
    above = encoded(base_model, waveform, threshold=np.nextafter(entropy, np.float32(np.inf)))
    assert at.exit_layer[0] > 1
    assert above.exit_layer[0] == 1


def test_firing_at_the_deepest_allowed_layer_is_not_forced(base_model):
    span = np.array([False, True, False, False])
    fired = encoded(base_model, BATCH, BATCH_LENGTHS, threshold=np.inf, allowed=span)
    forced = encoded(base_model, BATCH, BATCH_LENGTHS, threshold=0.0, allowed=span)
    np.testing.assert_array_equal(fired.exit_layer, forced.exit_layer)
    assert not np.any(fired.forced)
    np.testing.assert_array_equal(forced.forced, forced.num_frames > 0)


def test_a_threshold_of_nan_never_fires(base_model):
    out = encoded(base_model, BATCH, BATCH_LENGTHS, threshold=np.nan)
    np.testing.assert_array_equal(out.exit_layer, [4, 4, 4, 0, 4, 4, 0])
    np.testing.assert_array_equal(out.forced, out.num_frames > 0)


def pooled_again(out, weights):
    """By `pool`, of what was stored."""
    return np.asarray(pool(*map(jnp.asarray, (out.hidden_states, weights, out.exit_layer))))


@pytest.mark.parametrize("weights", LAYER_WEIGHTS.values(), ids=LAYER_WEIGHTS)
def test_pooled_equals_eq_4_on_stored_hidden_states(base_model, references, weights):
    reference = references["base"]
    thresholds = np.array([1.0, np.inf, 1.6, 0, -np.inf, 1.5, 0], np.float32)
    out = encoded(
        base_model,
        BATCH,
        BATCH_LENGTHS,
        threshold=thresholds,
        layer_weights=weights,
        return_hidden_states=True,
    )
    assert out.pooled.dtype == jnp.float32
    pooled = pooled_again(out, weights)
    for row in np.flatnonzero(out.exit_layer):
        frames, depth = out.num_frames[row], out.exit_layer[row]
        states = np.asarray(out.hidden_states[row, :, :frames], np.float64)
        desired = reference.pooled(states[0], states[1 : depth + 1], weights)
        assert_close_to_scale(out.pooled[row, :frames], desired)
        assert_close_to_scale(pooled[row, :frames], desired)
    assert np.all(np.isfinite(pooled))
    full = encoded(
        base_model, BATCH, BATCH_LENGTHS, layer_weights=weights, return_hidden_states=True
    )
    assert_close_to_scale(full.pooled, pooled_again(full, weights))


def test_results_without_optional_outputs_are_the_same(any_model):
    full = encoded(any_model, BATCH, BATCH_LENGTHS, threshold=1.2, **EVERYTHING)
    short = encoded(any_model, BATCH, BATCH_LENGTHS, threshold=1.2)
    assert short.hidden_states is None
    assert short.pooled is None
    np.testing.assert_array_equal(short.exit_layer, full.exit_layer)
    np.testing.assert_allclose(short.entropy, full.entropy, rtol=0, atol=1e-5)
    assert_close_to_scale(short.last_hidden, full.last_hidden)


def test_rows_below_one_window_are_empty(any_model):
    lengths = np.array([0, 399, 10, 0, 1, 300, 399])
    out = encoded(any_model, np.ones_like(BATCH), lengths, threshold=5.0, **EVERYTHING)
    for field in (out.exit_layer, out.forced, out.num_frames):
        assert not np.any(field)
    for field in (out.last_hidden, out.hidden_states, out.pooled):
        assert not np.any(field)
    assert np.all(np.isposinf(out.entropy))


def test_lengths_default_to_the_whole_width(base_model):
    waveform = np.stack(speech_like([2000, 2000]))
    out = encoded(base_model, waveform, threshold=1.2)
    same = encoded(base_model, waveform, np.array([2000, 2000]), threshold=1.2)
    np.testing.assert_array_equal(out.last_hidden, same.last_hidden)
    np.testing.assert_array_equal(out.num_frames, [6, 6])


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.uint32, np.int64])
def test_lengths_of_any_whole_number_type(base_model, dtype):
    waveform = np.stack(speech_like([40_000]))  # wider than int16 can count
    out = encoded(base_model, waveform, np.array([300], dtype))
    assert out.num_frames[0] == 0
    out = encoded(base_model, waveform, np.array([32_000], dtype))
    assert out.num_frames[0] == 99


def test_lists_and_torch_tensors_are_taken(base_model):
    torch = pytest.importorskip("torch")
    waveform = np.stack(speech_like([2000, 2000]))
    lengths = np.array([2000, 1000])
    desired = encoded(base_model, waveform, lengths, threshold=1.2)
    for convert in (np.ndarray.tolist, torch.tensor, jnp.asarray):
        out = encoded(base_model, convert(waveform), convert(lengths), threshold=1.2)
        np.testing.assert_array_equal(out.last_hidden, desired.last_hidden)


@pytest.mark.parametrize("threshold", [None, 1.0])
def test_a_batch_without_rows_gives_a_batch_without_rows(base_model, threshold):
    options = {"threshold": threshold, "layer_weights": LAYER_WEIGHTS["spread"]}
    out = encoded(base_model, np.zeros((0, 2000), np.float32), **options, return_hidden_states=True)
    one = encoded(base_model, np.zeros((1, 2000), np.float32), **options, return_hidden_states=True)
    for empty, full in zip(out, one, strict=True):
        assert (empty.shape, empty.dtype) == ((0, *full.shape[1:]), full.dtype)


def test_nan_in_one_row_leaves_the_others_untouched(any_model):
    spoilt = BATCH.copy()
    spoilt[0, 100] = np.nan
    spoilt[4, 7000] = np.inf
    for threshold in (1.2, None):
        clean = encoded(any_model, BATCH, BATCH_LENGTHS, threshold=threshold, **EVERYTHING)
        out = encoded(any_model, spoilt, BATCH_LENGTHS, threshold=threshold, **EVERYTHING)
        for row in (1, 2, 3, 5, 6):
            for actual, desired in zip(out, clean, strict=True):
                np.testing.assert_array_equal(actual[row], desired[row])
        assert np.isnan(out.last_hidden[0, 0]).all()
        assert out.exit_layer[0] == 4
        assert out.forced[0]


@pytest.mark.parametrize("garbage", [1e3, np.nan, np.inf])
def test_what_lies_behind_the_lengths_is_ignored(any_model, garbage):
    spoilt = BATCH.copy()
    spoilt[np.arange(9000) >= BATCH_LENGTHS[:, None]] = garbage
    for threshold in (1.2, None):
        clean = encoded(any_model, BATCH, BATCH_LENGTHS, threshold=threshold, **EVERYTHING)
        out = encoded(any_model, spoilt, BATCH_LENGTHS, threshold=threshold, **EVERYTHING)
        np.testing.assert_array_equal(out.exit_layer, clean.exit_layer)
        np.testing.assert_array_equal(out.last_hidden, clean.last_hidden)


def test_silence_and_clipped_audio_are_served(any_model):
    waveform = np.zeros_like(BATCH)
    waveform[1] = np.sign(np.sin(np.arange(9000)))
    out = encoded(any_model, waveform, np.full(7, 9000), threshold=0.5, **EVERYTHING)
    assert np.all(np.isfinite(out.last_hidden))
    assert np.all(np.isfinite(out.pooled))


# ---------------------------------------------------------------- what is computed, not how fast


@pytest.fixture
def counted(monkeypatch):
    """Counts rows that layers and branches compute, as the compiled program runs."""
    counts = {"rows": [], "branches": 0}
    layer_call, branch_call = TransformerLayer.__call__, Branches.__call__

    def counting_layer(self, x, frame_mask):
        jax.debug.callback(lambda rows: counts["rows"].append(int(rows)), jnp.int32(len(x)))
        return layer_call(self, x, frame_mask)

    def counting_branch(self, tapped):
        def count(rows):
            counts["branches"] += int(rows)

        jax.debug.callback(count, jnp.int32(len(tapped)))
        return branch_call(self, tapped)

    monkeypatch.setattr(TransformerLayer, "__call__", counting_layer)
    monkeypatch.setattr(Branches, "__call__", counting_branch)
    encode_module._compiled.clear_cache()

    def run(*arguments, **options):
        counts.update(rows=[], branches=0)
        out = jax.block_until_ready(encode(*arguments, **options))
        jax.effects_barrier()
        return out, list(counts["rows"]), counts["branches"]

    yield run
    encode_module._compiled.clear_cache()


def test_utterances_that_left_cost_nothing(base_model, counted):
    seen = set()
    for threshold in (np.inf, 1.95, 1.6, 1.1, 0.9, -np.inf):
        out, rows, branches = counted(base_model, BATCH, BATCH_LENGTHS, threshold=threshold)
        exits = np.asarray(out.exit_layer)
        assert sum(rows) == exits.sum()
        assert branches == exits.sum()
        seen |= set(exits.tolist())
    assert len(seen) >= 4


@FORMS
def test_single_rows_take_what_does_not_fill_a_slice(base_model, counted, monkeypatch):
    monkeypatch.setattr(slices, "loop_sizes", lambda batch, frames: (3, 1))
    for threshold in (np.inf, 1.6, 1.1, -np.inf):
        out, rows, branches = counted(base_model, BATCH, BATCH_LENGTHS, threshold=threshold)
        inside = (np.asarray(out.exit_layer)[:, None] >= np.arange(1, 5)).sum(axis=0)
        assert rows.count(3) == np.sum(inside // 3)
        assert sum(rows) == branches == np.sum(inside)


def test_slices_hold_short_utterances_together_and_long_ones_alone():
    assert slices.loop_sizes(16, 99) == (5, 1)
    assert slices.loop_sizes(3, 99) == (3, 1)
    assert slices.loop_sizes(16, 499) == (1,)
    assert slices.loop_sizes(16, 2999) == (1,)


@pytest.fixture
def switch(monkeypatch):
    """One slice a layer, as on GPUs and TPUs, with sizes down to one row."""
    monkeypatch.setattr(slices, "LEAST_FRAMES", 1)
    encode_module._compiled.clear_cache()
    with one_form("layer", "switch"):
        yield
    encode_module._compiled.clear_cache()


@FORMS
def test_one_slice_a_layer_is_the_smallest_that_holds_the_utterances_inside(
    base_model, switch, counted
):
    assert slices.switch_sizes(7, 28) == (1, 2, 4, 7)
    for threshold in (np.inf, 1.95, 1.6, 1.1, -np.inf):
        out, rows, branches = counted(base_model, BATCH, BATCH_LENGTHS, threshold=threshold)
        inside = (np.asarray(out.exit_layer)[:, None] >= np.arange(1, 5)).sum(axis=0)
        sizes = [next(size for size in (0, 1, 2, 4, 7) if size >= count) for count in inside]
        assert sorted(rows) == sorted(size for size in sizes if size)
        assert branches == sum(sizes)


def test_slices_are_halves_of_the_batch_while_they_fill_a_device():
    assert slices.switch_sizes(16, 499) == (4, 8, 16)
    assert slices.switch_sizes(16, 99) == (16,)
    assert slices.switch_sizes(25, 600) == (2, 4, 7, 13, 25)
    assert slices.switch_sizes(1, 10**6) == (1,)


@FORMS
@pytest.mark.parametrize("name", ["base", "large_ffn"])
def test_results_do_not_depend_on_the_form_of_the_loop(small_models, switch, name):
    def at_thresholds(allowed):
        options = {"allowed": np.asarray(ALLOWED[allowed]), **EVERYTHING}
        return [
            encode(small_models[name], BATCH, BATCH_LENGTHS, threshold=threshold, **options)
            for threshold in (np.inf, 1.95, 1.6, 1.1, -np.inf)
        ]

    switched = [*at_thresholds("everywhere"), *at_thresholds("gap")]
    encode_module._compiled.clear_cache()
    with one_form("layer", "loops"):
        looped = [*at_thresholds("everywhere"), *at_thresholds("gap")]
    assert len({tuple(out.exit_layer.tolist()) for out in looped}) > 4
    for out, wanted in zip(switched, looped, strict=True):
        assert_same(out, wanted)


@FORMS
@pytest.mark.parametrize("sizes", [(3, 1), (7, 1)])
def test_results_do_not_depend_on_the_slices(base_model, monkeypatch, sizes):
    monkeypatch.setattr(slices, "loop_sizes", lambda batch, frames: (1,))
    encode_module._compiled.clear_cache()
    one_each = encoded(base_model, BATCH, BATCH_LENGTHS, threshold=1.2, **EVERYTHING)
    monkeypatch.setattr(slices, "loop_sizes", lambda batch, frames: sizes)
    encode_module._compiled.clear_cache()
    out = encoded(base_model, BATCH, BATCH_LENGTHS, threshold=1.2, **EVERYTHING)
    encode_module._compiled.clear_cache()
    assert_same(out, one_each)


def assert_same(out, wanted):
    """Two `Encoded` of the same batch that may differ by rounding."""
    np.testing.assert_array_equal(out.exit_layer, wanted.exit_layer)
    np.testing.assert_array_equal(out.forced, wanted.forced)
    np.testing.assert_allclose(out.entropy, wanted.entropy, rtol=0, atol=1e-5)
    assert_close_to_scale(out.last_hidden, wanted.last_hidden)
    assert_close_to_scale(out.hidden_states, wanted.hidden_states)
    assert_close_to_scale(out.pooled, wanted.pooled)


@FORMS
def test_one_slice_serves_all_of_a_vmap(base_model, switch):
    """Thresholds with which different numbers of utterances are inside, at the same time."""
    thresholds = jnp.array([np.inf, 1.95, 1.1, -np.inf], jnp.float32)
    run = lambda one: encode(base_model, BATCH, BATCH_LENGTHS, threshold=one, **EVERYTHING)  # noqa: E731
    together = jax.jit(jax.vmap(run))(thresholds)
    for number, threshold in enumerate(thresholds):
        out = jax.tree.map(lambda field, number=number: field[number], together)
        assert_same(out, run(threshold))


def test_branches_of_layers_that_are_not_allowed_are_not_evaluated(base_model, counted):
    allowed = np.array([False, True, False, True])
    out, rows, branches = counted(
        base_model, BATCH, BATCH_LENGTHS, threshold=-np.inf, allowed=allowed
    )
    assert sum(rows) == np.asarray(out.exit_layer).sum() == 5 * 4
    assert branches == 5 * 2


def test_layers_behind_the_deepest_allowed_one_are_not_computed(base_model, counted):
    allowed = np.array([False, True, False, False])
    _, rows, branches = counted(base_model, BATCH, BATCH_LENGTHS, threshold=0.0, allowed=allowed)
    assert (sum(rows), branches) == (5 * 2, 5)
    _, rows, branches = counted(base_model, BATCH, BATCH_LENGTHS, allowed=allowed)
    assert (sum(rows), branches) == (7 * 2, 0)


def test_empty_rows_cost_nothing(base_model, counted):
    lengths = np.array([300, 0, 5000, 0, 0, 0, 0])
    out, rows, branches = counted(base_model, BATCH, lengths, threshold=-np.inf)
    np.testing.assert_array_equal(out.exit_layer, [0, 0, 4, 0, 0, 0, 0])
    assert (sum(rows), branches) == (4, 4)
    _, rows, branches = counted(base_model, BATCH, 0 * lengths, threshold=-np.inf)
    assert (sum(rows), branches) == (0, 0)


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("waveform", "options", "message"),
    [
        ([np.zeros(900), np.zeros(800)], {}, r"lists of different length .*audio\.pad_batch"),
        (np.zeros(2000, np.float32), {}, r"waveform is float32 \(2000,\); wanted float"),
        (np.zeros((1, 2000, 1), np.float32), {}, r"waveform is float32 \(1, 2000, 1\)"),
        (np.zeros((2, 2000), np.int16), {}, r"waveform is int16 \(2, 2000\); wanted float"),
        (np.zeros((2, 2000), np.complex64), {}, r"waveform is complex64"),
        (
            np.zeros((2, 399), np.float32),
            {},
            r"waveform has 399 samples; HuBERT needs at least 400",
        ),
        (BATCH, {"lengths": np.zeros(6, int)}, r"lengths is int64 \(6,\); it must be an int array"),
        (BATCH, {"lengths": np.zeros((7, 1), int)}, r"lengths is int64 \(7, 1\)"),
        (BATCH, {"lengths": np.zeros(7)}, r"lengths is float64 \(7,\); it must be an int array"),
        (BATCH, {"lengths": np.zeros(7, bool)}, r"lengths is bool \(7,\)"),
        (BATCH, {"lengths": np.full(7, 9001)}, r"lengths go from 9001 to 9001; .* the 9000"),
        (BATCH, {"lengths": np.array([5, -1, 0, 0, 0, 0, 0])}, r"lengths go from -1 to 5"),
        (BATCH, {"threshold": np.zeros(6)}, r"threshold is float64 \(6,\); .* number or \[7\]"),
        (BATCH, {"threshold": np.zeros((7, 1))}, r"threshold is float64 \(7, 1\)"),
        (BATCH, {"threshold": True}, r"threshold is bool \(\); it must be a number"),
        (BATCH, {"threshold": "low"}, r"threshold is <U3 \(\); it must be a number"),
        (BATCH, {"allowed": np.ones(3, bool)}, r"allowed is bool \(3,\); .* bool array \[4\]"),
        (BATCH, {"allowed": np.ones(4, int)}, r"allowed is int64 \(4,\); it must be a bool array"),
        (BATCH, {"allowed": np.zeros(4, bool)}, r"allowed is False everywhere; allow at least"),
        (BATCH, {"layer_weights": np.zeros(4)}, r"layer_weights is float64 \(4,\); .* array \[5\]"),
        (BATCH, {"layer_weights": np.zeros(5, int)}, r"layer_weights is int64 \(5,\)"),
    ],
)
def test_mistakes_are_named(base_model, waveform, options, message):
    with pytest.raises(InputError, match=message) as caught:
        encode(base_model, waveform, **options)
    assert "\n" not in str(caught.value)


def test_a_threshold_needs_branches(base_model):
    with pytest.raises(InputError, match=r"this model has no branches.*train/branches\.py"):
        encode(base_model.replace(branches=None), BATCH, threshold=1.0)
    without = random_model(dataclasses.replace(SMALL, num_classes=0))
    with pytest.raises(InputError, match="this model has no branches"):
        encode(without, BATCH, threshold=1.0)
    assert encode(without, BATCH, BATCH_LENGTHS).exit_layer[0] == 4


def test_mistakes_are_named_under_jit_too(base_model):
    closed_over = jnp.zeros(4, bool)  # concrete, though every operation on it would be traced
    with pytest.raises(InputError, match="allowed is False everywhere"):
        jax.jit(lambda waveform: encode(base_model, waveform, allowed=closed_over))(BATCH)
    with pytest.raises(InputError, match="waveform has 399 samples"):
        jax.eval_shape(encode, base_model, jax.ShapeDtypeStruct((2, 399), jnp.float32))
    too_long = jnp.full(7, 9001)
    with pytest.raises(InputError, match="lengths go from 9001 to 9001"):
        jax.jit(lambda waveform: encode(base_model, waveform, too_long))(BATCH)
