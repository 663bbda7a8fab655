"""Corpora at several speeds, their labels, and the random equalizer."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_corpora import Arrays

from daisy_jax import InputError, audio
from daisy_jax.data.batches import Augmentation, LabelsInOrder, equalize
from daisy_jax.training.speeds import AtSpeeds, LabelsAtSpeeds


def tone(hertz, samples):
    return np.sin(2 * np.pi * hertz * np.arange(samples) / 16_000)


# ---- speeds ----


@pytest.mark.parametrize("speed", [0.8, 0.95, 1.0, 1.1, 1.37])
def test_a_faster_voice_is_higher_and_done_earlier(speed):
    corpus = AtSpeeds(Arrays(tone(440, 16_000), tone(900, 24_000)), [1.0, speed])
    assert corpus.lengths.tolist() == [16_000, 24_000, int(16_000 / speed), int(24_000 / speed)]
    for index, hertz in enumerate([440, 900, 440 * speed, 900 * speed]):
        length = int(corpus.lengths[index])
        heard = corpus.read(index, 0, length)
        assert heard.dtype == np.float32
        # Where the recording begins and ends, a resampler hears silence beside it.
        inside = slice(1_000, length - 1_000)
        np.testing.assert_allclose(heard[inside], tone(hertz, length)[inside], atol=2e-5)
    assert len(set(corpus.names)) == (4 if speed != 1 else 2)


@given(st.integers(400, 9_000), st.floats(0.5, 2.0), st.randoms(use_true_random=False))
def test_parts_are_parts_of_the_whole(samples, speed, random):
    waveform = np.random.default_rng(samples).standard_normal(samples)
    corpus = AtSpeeds(Arrays(waveform), [speed])
    length = int(corpus.lengths[0])
    whole = corpus.read(0, 0, length)
    assert len(whole) == length
    start = random.randrange(length)
    part = corpus.read(0, start, 500)
    np.testing.assert_array_equal(part, whole[start : start + 500])


@given(st.integers(400, 40_000), st.floats(0.5, 2.0), st.randoms(use_true_random=False))
def test_labels_go_with_what_is_heard(samples, speed, random):
    """Each frame's label is the number of the original frame that it is heard in."""
    originals = Arrays(np.zeros(800), np.zeros(samples))
    count = audio.frame_count(samples)
    labels = LabelsInOrder(originals, np.concatenate([[-1, -1], np.arange(count)]))
    corpus = AtSpeeds(originals, [1.0, speed])
    frames = int(audio.frame_count(int(corpus.lengths[3])))
    found = LabelsAtSpeeds(corpus, labels).read(3, slice(0, frames))
    assert (found.dtype, len(found)) == (np.int32, frames)
    heard = (np.arange(frames) * 320 + 200) * speed  # samples of the original
    apart = np.abs(found * 320 + 200 - heard)
    assert np.all((apart <= 160 + 1e-6) | (found == count - 1) & (heard > found * 320 + 200))
    first = random.randrange(frames) if frames else 0
    np.testing.assert_array_equal(
        LabelsAtSpeeds(corpus, labels).read(3, slice(first, frames)), found[first:]
    )


@pytest.mark.parametrize(
    ("speeds", "said"),
    [((), "speeds is empty"), ((1.0, 0.0), "speeds is 1.0 0.0"), ((np.nan,), "speeds is nan")],
)
def test_speeds_that_make_no_sense_are_refused(speeds, said):
    with pytest.raises(InputError, match=said):
        AtSpeeds(Arrays(np.zeros(800)), speeds)


# ---- equalizer ----


@pytest.mark.parametrize(
    ("hertz", "decibels"),
    [(8_000 / 2, 2.0), (8_000 / 4, -4.0), (8_000 / 2**1.5, -1.0), (62.5, 3.0), (30, 3.0)],
)
def test_a_tone_gets_the_gain_of_its_frequency(hertz, decibels):
    gains = np.array([3.0, 0.0, 1.0, 5.0, 5.0, -4.0, 2.0, -6.0])
    heard = equalize(tone(hertz, 64_000).astype(np.float32), gains)
    inside = slice(16_000, 48_000)
    wanted = 10 ** (decibels / 20) * tone(hertz, 64_000)
    np.testing.assert_allclose(heard[inside], wanted[inside], atol=5e-3)


def test_equal_gains_are_a_factor():
    sound = np.random.default_rng(0).standard_normal(5_000).astype(np.float32)
    heard = equalize(sound, np.full(8, -6.0))
    np.testing.assert_allclose(heard, sound * 10 ** (-6 / 20), atol=1e-6)


def test_each_crop_gets_a_tone_of_its_own_within_the_limit():
    rng = np.random.default_rng(0)
    augmentation = Augmentation(equalizer=6.0)
    click = np.zeros(4_000, np.float32)
    click[2_000] = 1
    spectra = [np.abs(np.fft.rfft(augmentation(click, rng), 4_400)) for _ in range(20)]
    gains = 20 * np.log10(np.stack(spectra)[:, 20:])
    assert np.all(np.abs(gains) < 6.1)
    assert np.all(np.ptp(gains, axis=0) > 3)
    assert Augmentation(equalizer=6.0)(click[:0], rng).size == 0
