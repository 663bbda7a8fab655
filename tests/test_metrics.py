"""Measures against implementations of their own: edit distance, STOI from its paper, SI-SDR."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import sounds

from daisy_jax.tasks import metrics
from daisy_jax.tasks.metrics import (
    bootstrap_interval,
    paired_interval,
    short_time_intelligibility,
    si_sdr,
    si_sdr_improvement,
    wideband_pesq,
    word_errors,
)
from daisy_jax.tasks.presets import task_class


def edit_distance(reference, hypothesis):
    row = list(range(len(hypothesis) + 1))
    for i, left in enumerate(reference, 1):
        before, row[0] = row[0], i
        for j, right in enumerate(hypothesis, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (left != right))
    return row[-1]


WORDS = st.lists(st.sampled_from(["A", "BEE", "SEA", "DEE"]), max_size=8)


@hypothesis.given(WORDS, WORDS)
@hypothesis.settings(max_examples=100)
def test_word_errors_are_the_edit_distance(reference, hypothesis):
    found = word_errors(" ".join(reference), " ".join(hypothesis))
    assert found == (edit_distance(reference, hypothesis), len(reference))


@pytest.fixture(scope="module")
def noisy():
    """Speech-like sound, and the same at 15, 5 and -5 dB."""
    clean = sounds.syllables(3.0)
    noise = np.random.default_rng(0).standard_normal(len(clean)).astype(np.float32)
    noise *= np.sqrt(np.mean(clean**2) / np.mean(noise**2))
    return clean, [clean + noise * np.float32(10 ** (-snr / 20)) for snr in (15, 5, -5)]


def stoi_from_its_paper(clean, estimate):
    """Taal et al. 2011: 10 kHz, frames of 256, 15 third octaves from 150 Hz, segments of 30."""
    from scipy.signal import resample_poly

    clean, estimate = (resample_poly(x, 5, 8) for x in (clean, estimate))
    window = np.hanning(258)[1:-1]
    starts = np.arange(0, len(clean) - 256, 128)

    def framed(x):
        return np.stack([x[s : s + 256] * window for s in starts])

    energy = 20 * np.log10(np.linalg.norm(framed(clean), axis=1) + 1e-15)
    kept = energy > energy.max() - 40

    def joined(x):
        frames = framed(x)[kept]
        out = np.zeros((len(frames) - 1) * 128 + 256)
        for place, frame in enumerate(frames):
            out[place * 128 : place * 128 + 256] += frame
        return out

    clean, estimate = joined(clean), joined(estimate)
    starts = np.arange(0, len(clean) - 256, 128)
    frequencies = np.linspace(0, 10_000, 513)[:257]
    centres = 150 * 2 ** (np.arange(15) / 3)

    def nearest(frequency):
        return int(np.argmin((frequencies - frequency) ** 2))

    def bands(x):
        power = np.abs(np.fft.rfft(framed(x), 512)) ** 2
        edges = [(nearest(c * 2 ** (-1 / 6)), nearest(c * 2 ** (1 / 6))) for c in centres]
        return np.sqrt(np.stack([power[:, low:high].sum(axis=1) for low, high in edges]))

    x, y = bands(clean), bands(estimate)
    scores = []
    for end in range(30, x.shape[1] + 1):
        for band in range(15):
            a, b = x[band, end - 30 : end], y[band, end - 30 : end]
            b = np.minimum(b * np.linalg.norm(a) / np.linalg.norm(b), a * (1 + 10 ** (15 / 20)))
            a, b = a - a.mean(), b - b.mean()
            scores.append(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
    return np.mean(scores)


def test_stoi_is_that_of_its_paper(noisy):
    clean, versions = noisy
    found = [short_time_intelligibility(clean, version) for version in versions]
    wanted = [stoi_from_its_paper(clean, version) for version in versions]
    np.testing.assert_allclose(found, wanted, atol=5e-3)  # resampling filters differ
    assert found == sorted(found, reverse=True)
    assert short_time_intelligibility(clean, clean) == pytest.approx(1, abs=1e-6)


def test_stoi_of_too_little_speech_is_not_a_number(noisy):
    clean, _ = noisy
    assert np.isnan(short_time_intelligibility(clean[:2_000], clean[:2_000]))


def test_pesq_falls_with_noise_and_is_highest_for_the_same(noisy):
    pytest.importorskip("pesq")
    clean, versions = noisy
    found = [wideband_pesq(clean, version) for version in (clean, *versions)]
    assert found[0] == pytest.approx(4.64, abs=0.01)  # the top of P.862.2's scale
    assert found == sorted(found, reverse=True)
    assert wideband_pesq(clean, 0.5 * versions[0]) == pytest.approx(found[1], abs=0.02)


def test_pesq_of_silence_is_not_a_number(noisy):
    pytest.importorskip("pesq")
    clean, _ = noisy
    assert np.isnan(wideband_pesq(np.zeros_like(clean), clean))
    assert np.isnan(wideband_pesq(clean[:1_000], clean[:1_000]))
    assert wideband_pesq(clean, np.zeros_like(clean)) == pytest.approx(1.04, abs=0.005)


def test_without_pesq_the_compiler_is_named_once(noisy, monkeypatch, caplog):
    clean, _ = noisy
    monkeypatch.setitem(__import__("sys").modules, "pesq", None)
    metrics.say_if_no_pesq.cache_clear()
    assert np.isnan(wideband_pesq(clean, clean))
    assert np.isnan(wideband_pesq(clean, clean))
    (said,) = caplog.messages
    assert "pip install pesq, which needs a C compiler" in said


def test_si_sdr_is_the_ratio_of_what_lies_along_the_target_to_the_rest():
    rng = np.random.default_rng(0)
    target = rng.standard_normal(4_000)
    noise = rng.standard_normal(4_000)
    noise -= target * (noise @ target) / (target @ target)  # nothing of the target in it
    for level in (-20, -5, 0, 7.5, 30):
        scale = np.sqrt(target @ target / (noise @ noise) / 10 ** (level / 10))
        estimate = target + scale * noise
        for gain in (0.01, 1, -3):
            assert si_sdr(gain * estimate, target) == pytest.approx(level, abs=1e-4)


def test_si_sdr_has_a_value_for_silence_and_for_equal_signals():
    target, silence = np.sin(np.arange(500.0)), np.zeros(500)
    assert si_sdr(target, target) == pytest.approx(80, abs=1e-3)
    assert np.isfinite(si_sdr(silence, target))
    assert np.isfinite(si_sdr(target, silence))


def test_si_sdr_improvement_by_hand():
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((2, 16_000))
    second -= first * (first @ second) / (first @ first)  # apart, so that ratios are exact
    second *= np.sqrt(first @ first / (second @ second))
    mixture = first + second  # 0 dB for each
    estimates = np.stack([second + 0.1 * first, 3 * (first + 0.01 * second)])
    improvement, reached = si_sdr_improvement(estimates, np.stack([first, second]), mixture)
    assert reached == pytest.approx((20 + 40) / 2, abs=1e-2)
    assert improvement == pytest.approx(30, abs=1e-2)


def test_the_mixture_itself_improves_nothing():
    rng = np.random.default_rng(1)
    sources = rng.standard_normal((2, 8_000)).astype(np.float32)
    mixture = sources.sum(axis=0)
    improvement, _ = si_sdr_improvement(np.stack([mixture, mixture]), sources, mixture)
    assert improvement == pytest.approx(0, abs=1e-5)


@pytest.mark.slow("draws some hundred bootstraps")
def test_bootstrap_intervals_cover_the_truth_about_as_often_as_they_say(monkeypatch):
    monkeypatch.setattr(metrics, "RESAMPLES", 200)
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        values = rng.normal(3.0, 1.0, 60)
        low, high = bootstrap_interval((values, np.ones(60)))
        covered += low <= 3.0 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_a_bootstrap_of_a_rate_weighs_utterances_by_their_words():
    errors, words = np.array([0.0, 100.0]), np.array([1.0, 100.0])
    low, high = bootstrap_interval((errors, words))
    assert low == pytest.approx(0)
    assert high == pytest.approx(1)
    assert np.isnan(bootstrap_interval((np.zeros(0), np.zeros(0)))).all()


def test_a_paired_interval_sees_differences_that_apart_ones_hide():
    rng = np.random.default_rng(0)
    difficulty, ones = rng.normal(0, 5, 100), np.ones(100)
    ours = difficulty + 0.5 + rng.normal(0, 0.1, 100)
    low, high = paired_interval((ours, ones), (difficulty, ones))
    assert 0.4 < low < high < 0.6
    same = paired_interval((difficulty, ones), (difficulty, ones))
    assert same == (0.0, 0.0)


def test_how_bad_a_value_is():
    recognition, enhancement, separation = (
        task_class(name).measures for name in ("asr", "se", "ss")
    )
    # Word errors beyond the number of words are as bad as can be.
    np.testing.assert_allclose(recognition["wer"].badness(np.array([0, 0.2, 1.7])), [0, 0.2, 1])
    # The ends of PESQ are those of P.862.2's map, whatever its reference code makes of a signal.
    ends = [1.0427, 4.6439, (1.0427 + 4.6439) / 2]
    np.testing.assert_allclose(enhancement["pesq"].badness(np.array(ends)), [1, 0, 0.5], atol=1e-3)
    values = np.array([-3.0, 5.0, 31.0, np.nan])
    np.testing.assert_allclose(separation["si_sdri"].badness(values), [1, 0.75, 0, np.nan])
