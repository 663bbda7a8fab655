"""Calibration: entropies and agreements of a data set at every layer."""

import jax
import numpy as np
import pytest
from conftest import speech_like
from reference import reference_of

from daisy_jax import (
    Calibration,
    InputError,
    calibrate,
    encode,
    threshold_for_budget,
    threshold_for_risk,
)
from daisy_jax.audio import pad_batch
from daisy_jax.exits import exit_layers, threshold_for_agreement

LENGTHS = (3000, 400, 300, 2500, 1700, 2999)
WAVEFORMS = speech_like(LENGTHS, seed=2)


def batches():
    yield pad_batch(WAVEFORMS[:3], 3000)
    yield pad_batch(WAVEFORMS[3:5], 3000, rows=3)
    yield pad_batch(WAVEFORMS[5:], 3000, rows=3)


@pytest.fixture(scope="module")
def calibration(base_model):
    return calibrate(base_model, batches(), "made up")


def test_entropies_are_those_of_all_layers_in_order_without_empty_rows(base_model, calibration):
    reference = reference_of(base_model)
    desired = [
        reference.encode(waveform, threshold=-np.inf)["entropy"]
        for waveform in WAVEFORMS
        if len(waveform) >= 400
    ]
    assert isinstance(calibration, Calibration)
    assert calibration.dataset == "made up"
    assert calibration.entropy.dtype == np.float32
    np.testing.assert_allclose(calibration.entropy, desired, rtol=0, atol=1e-5)
    np.testing.assert_allclose(
        calibration.mean_entropy, np.mean(desired, axis=0), rtol=0, atol=1e-5
    )


def test_a_budget_met_on_the_calibration_is_met_by_encode(base_model, calibration):
    waveform, lengths = pad_batch(WAVEFORMS, 3000)
    valid = np.array(LENGTHS) >= 400
    for allowed in (np.ones(4, bool), np.array([True, False, True, True])):
        depths = np.flatnonzero(allowed) + 1
        for budget in (depths[0], 2.2, 3.0, 4):
            threshold = threshold_for_budget(calibration.entropy, budget, allowed)
            # Other shapes of batch may move entropies by 1e-5 past a threshold that is one of them.
            out = encode(base_model, waveform, lengths, threshold=threshold + 2e-5, allowed=allowed)
            assert np.asarray(out.exit_layer)[valid].mean() <= budget


def test_lengths_may_be_none(base_model, calibration):
    full = calibrate(base_model, [(WAVEFORMS[0][None], None)])
    assert full.dataset == ""
    np.testing.assert_allclose(full.entropy[0], calibration.entropy[0], rtol=0, atol=1e-5)


def test_a_model_can_carry_its_calibration_as_static_data(base_model, calibration):
    model = base_model.replace(calibration=calibration)
    assert base_model.calibration is None
    assert model.calibration is calibration
    assert len(jax.tree.leaves(model)) == len(jax.tree.leaves(base_model))
    waveform, lengths = next(batches())
    for threshold in (1.0, calibration.mean_entropy[1]):
        out = encode(model, waveform, lengths, threshold=threshold)
        same = encode(base_model, waveform, lengths, threshold=threshold)
        np.testing.assert_array_equal(out.exit_layer, same.exit_layer)


def test_nothing_to_calibrate_on_is_an_error(base_model):
    with pytest.raises(InputError, match="no utterance to calibrate on; give at least one of 400"):
        calibrate(base_model, [])
    with pytest.raises(InputError, match="no utterance to calibrate on"):
        calibrate(base_model, [pad_batch(WAVEFORMS[2:3], 3000, rows=3)])


def test_calibration_needs_branches(base_model):
    with pytest.raises(InputError, match="model has no branches"):
        calibrate(base_model.replace(branches=None), batches())


def test_agreement_is_counted_frame_by_frame(base_model, calibration):
    """From the reference's own logits of every layer."""
    reference = reference_of(base_model)
    wanted = []
    for waveform in WAVEFORMS:
        if len(waveform) >= 400:
            taps = reference.everything(waveform)[2]
            kernel, bias = (reference.weights[f"branches.{name}"] for name in ("kernel", "bias"))
            labels = np.argmax(taps @ kernel + bias[:, None], axis=-1)
            wanted.append(np.mean(labels == labels[-1:], axis=-1))
    assert calibration.agreement.dtype == np.float32
    np.testing.assert_allclose(calibration.agreement, wanted, rtol=0, atol=1e-6)
    assert np.all(calibration.agreement[:, -1] == 1)
    assert np.any(calibration.agreement < 0.9)


def test_calibrations_differ_by_their_agreements(calibration):
    without = Calibration(calibration.entropy, calibration.dataset)
    same = Calibration(calibration.entropy, calibration.dataset, calibration.agreement.copy())
    assert (same, hash(same)) == (calibration, hash(calibration))
    assert without != calibration
    other = Calibration(calibration.entropy, calibration.dataset, 1 - calibration.agreement)
    assert other != calibration


def test_certified_agreement_is_certified_loss(calibration):
    loss = 1 - calibration.agreement.astype(np.float64)
    for agreement, confidence in ((0.6, None), (0.3, 0.8)):
        wanted = threshold_for_risk(calibration.entropy, loss, 1 - agreement, confidence)
        assert threshold_for_agreement(calibration, agreement, confidence) == wanted
    with pytest.raises(InputError, match=r"agreement is 1\.0; it must lie between 0 and 1"):
        threshold_for_agreement(calibration, 1.0)
    with pytest.raises(InputError, match="calibration has no agreements"):
        threshold_for_agreement(Calibration(calibration.entropy), 0.5)


def test_certified_thresholds_leave_in_encode_where_the_calibration_says(base_model, calibration):
    waveform, lengths = pad_batch(WAVEFORMS, 3000)
    valid = np.array(LENGTHS) >= 400
    rng, met = np.random.default_rng(0), set()
    for level in (0.3, 0.5, 0.7, 0.9):
        loss = np.sort(rng.random(calibration.entropy.shape), axis=1)[:, ::-1]
        loss[:, -1] = 0
        threshold = threshold_for_risk(calibration.entropy, loss, level)
        # Other shapes of batch may move entropies by 1e-5 past a threshold that is next to one.
        out = encode(base_model, waveform, lengths, threshold=threshold + 2e-5)
        expected, forced = exit_layers(calibration.entropy, threshold + 2e-5)
        np.testing.assert_array_equal(np.asarray(out.exit_layer)[valid], expected)
        np.testing.assert_array_equal(np.asarray(out.forced)[valid], forced)
        met |= set(expected.tolist())
    assert len(met) > 1
