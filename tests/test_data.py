import errno
import json
import os
import re

import numpy as np
import pytest
import sounds
from conftest import LIBROSA
from hypothesis import given, settings
from hypothesis import strategies as st
from made_corpora import Arrays

from daisy_jax import audio
from daisy_jax.data import durations
from daisy_jax.data.batches import (
    Augmentation,
    Crop,
    EpochBatches,
    LabelsInOrder,
    WholeBatches,
    crop_width,
    draw_by_duration,
    draw_crop,
    read_crops,
)
from daisy_jax.data.corpus import fingerprint, open_corpus
from daisy_jax.data.file_list import sound_files
from daisy_jax.data.librispeech import has_split, training_splits
from daisy_jax.data.mixing import draw_noise, mix
from daisy_jax.data.prepared import prepare
from daisy_jax.errors import InputError
from daisy_jax.reporting import strictly
from daisy_jax.training.cluster_targets import (
    cluster_targets,
    load_targets,
    mfcc,
)


def numbered(*lengths) -> Arrays:
    """Each sample tells its utterance and its place."""
    return Arrays(*[np.arange(n) + 1_000_000 * i for i, n in enumerate(lengths)])


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    folder = sounds.speech_folder(tmp_path_factory.mktemp("data") / "speech", 5, (0.3, 1.4))
    sounds.write(folder / "slow.wav", sounds.syllables(0.9, 8, 8_000), 8_000)
    sounds.write(folder / "odd.wav", sounds.syllables(0.77, 9, 44_100), 44_100)
    (folder / "notes.txt").write_text("not a sound")
    return folder


@pytest.fixture(scope="module")
def prepared(speech, tmp_path_factory):
    output = tmp_path_factory.mktemp("prepared") / "deep" / "out"
    assert prepare([speech], output) == (7, 0)
    return output


# ---- corpora ----


def test_a_prepared_folder_gives_the_samples_of_the_files(speech, prepared):
    files, memory = open_corpus(speech), open_corpus(prepared)
    assert files.names == [str(path.relative_to(speech)) for path in sound_files(speech)]
    assert memory.names == [f"speech/{name}" for name in files.names]
    for index, name in enumerate(files.names):
        length = int(memory.lengths[index])
        ours, theirs = files.read(index, 0, length), memory.read(index, 0, length)
        assert ours.dtype == theirs.dtype == np.float32
        whole = audio.load(speech / name)
        if name.endswith(".flac"):
            assert files.lengths[index] == length == len(whole)
            np.testing.assert_array_equal(ours, whole)
            np.testing.assert_array_equal(theirs, whole)
        else:  # resampled: rounded to 16 bits once
            assert abs(files.lengths[index] - length) <= 1
            np.testing.assert_array_equal(ours, whole)
            assert np.max(np.abs(theirs - whole)) <= 2**-16


@pytest.mark.parametrize("kind", ["speech", "prepared"])
def test_reading_a_part_is_cutting_the_whole(request, kind):
    corpus = open_corpus(request.getfixturevalue(kind))
    for index, length in enumerate(corpus.lengths):
        whole = corpus.read(index, 0, int(length))
        assert len(whole) == length
        np.testing.assert_array_equal(corpus.read(index, 320, 1_000), whole[320:1_320])
        np.testing.assert_array_equal(corpus.read(index, 960, 10**6), whole[960:])


def test_resampled_files_have_the_length_that_is_promised(tmp_path):
    for rate in (8_000, 11_025, 22_050, 44_100, 48_000):
        for samples in (9_999, 10_000, 10_001):
            sounds.write(tmp_path / f"{rate}_{samples}.wav", sounds.syllables(2)[:samples], rate)
    corpus = open_corpus(tmp_path)
    for index, length in enumerate(corpus.lengths):
        assert len(corpus.read(index, 0, int(length))) == length, corpus.names[index]


def test_prepare_names_bad_files_and_leaves_them_out(speech, tmp_path, left_out):
    bad = sounds.bad_files(tmp_path / "mixed")
    sounds.write(tmp_path / "mixed" / "good.wav", sounds.syllables(0.5))
    written = prepare([tmp_path / "mixed", speech], tmp_path / "out")
    searched = [path for path in sound_files(tmp_path / "mixed") if path.name != "good.wav"]
    assert written == (8, len(searched))
    for path, line in zip(searched, left_out, strict=True):
        assert str(path) in line
        assert bad[path] in line
        assert "\n" not in line
    assert open_corpus(tmp_path / "out").names[0] == "mixed/good.wav"


def test_prepare_clips_what_16_bits_cannot_hold(tmp_path):
    loud = np.linspace(-2, 2, 1_000)
    sounds.write(tmp_path / "in" / "loud.wav", loud, subtype="DOUBLE")
    prepare([tmp_path / "in"], tmp_path / "out")
    read = open_corpus(tmp_path / "out").read(0, 0, 1_000)
    assert np.max(np.abs(read - np.clip(loud, -1, 1 - 2**-15))) <= 2**-16


def test_prepare_of_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match="gone: no such folder"):
        prepare([tmp_path / "gone"], tmp_path / "out")


def test_folders_may_be_nested_more_deeply_than_calls(tmp_path):
    where = os.getcwd()
    os.chdir(tmp_path)
    try:
        for _ in range(1_200):
            os.mkdir("d")
            os.chdir("d")
    finally:
        os.chdir(where)
    sounds.write(tmp_path / "d" / "d" / "a.wav", sounds.syllables(0.5))
    sounds.write(tmp_path / "z.WAV", sounds.syllables(0.5))
    names = open_corpus(tmp_path).names
    for depth in range(1_200, 2, -1):  # whoever sweeps up recurses
        os.rmdir(tmp_path.joinpath(*depth * ["d"]))
    assert names == ["d/d/a.wav", "z.WAV"]


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch, left_out):
    sounds.write(tmp_path / "good" / "a.wav", sounds.syllables(0.5))
    sounds.write(tmp_path / "closed" / "b.wav", sounds.syllables(0.5))
    real = os.scandir

    def scandir(path):
        if path.name == "closed":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert [path.name for path in sound_files(tmp_path)] == ["a.wav"]
    assert left_out == [f"{tmp_path / 'closed'}: Permission denied"]


def test_what_is_no_corpus_is_refused_in_one_line(speech, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no such folder"):
        open_corpus(tmp_path / "gone")
    with pytest.raises(InputError, match="no such folder"):
        open_corpus(speech / "notes.txt")
    with pytest.raises(InputError, match="no sound files"):
        open_corpus(tmp_path / "empty")


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ("{", "not JSON"),
        ("[]", "format is None"),
        ('{"format": "other/1"}', "format is 'other/1'"),
        ('{"format": "daisy_jax_audio/1", "names": [], "lengths": []}', "no utterance"),
        ('{"format": "daisy_jax_audio/1", "names": ["a"], "lengths": [900]}', "promises 1800"),
    ],
)
def test_a_broken_prepared_folder_is_refused_in_one_line(tmp_path, index, said):
    (tmp_path / "samples.int16").write_bytes(b"\0\0" * 800)
    (tmp_path / "index.json").write_text(index)
    with pytest.raises(InputError, match=said):
        open_corpus(tmp_path)


@pytest.mark.parametrize(
    "name", ["text.wav", "empty.wav", "short.wav", "header.wav", "cut.wav", "cut.ogg"]
)
def test_a_folder_with_a_bad_file_is_refused_by_its_name(tmp_path, name):
    bad = {path.name: path for path in sounds.bad_files(tmp_path / "all")}
    folder = tmp_path / "corpus"
    sounds.write(folder / "good.wav", sounds.syllables(0.5))
    bad[name].rename(folder / name)
    with pytest.raises(InputError, match=name) as error, strictly():
        open_corpus(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["cut.flac", "nan.wav", "infinite.wav"])
def test_what_is_found_bad_while_training_is_named(tmp_path, name):
    bad = {path.name: path for path in sounds.bad_files(tmp_path / "all")}
    (tmp_path / "corpus").mkdir()
    bad[name].rename(tmp_path / "corpus" / name)
    corpus = open_corpus(tmp_path / "corpus")
    with pytest.raises(InputError, match=name):
        corpus.read(0, 0, int(corpus.lengths[0]))


def test_bad_files_are_left_out_and_named(tmp_path, left_out):
    folder = tmp_path / "corpus"
    sounds.bad_files(folder)
    sounds.write(folder / "good.wav", sounds.syllables(0.5))
    corpus = open_corpus(folder)
    said = list(left_out)
    assert "good.wav" in corpus.names
    assert len(corpus.names) + len(said) == len(sound_files(folder))
    for name in ("text.wav", "empty.wav", "short.wav", "header.wav", "cut.wav", "cut.ogg"):
        assert [line for line in said if line.startswith(f"{folder / name}: ")]
        assert name not in corpus.names
    for name in corpus.names:
        (folder / name).unlink()
    with pytest.raises(InputError, match="sound files can be used"):
        open_corpus(folder)


def test_splits_are_folders_by_name(tmp_path):
    for split in ("train-clean-100", "train-other-500", "dev-clean"):
        sounds.write(tmp_path / split / "1" / "2" / "1-2-0000.flac", sounds.syllables(0.3))
    corpus = open_corpus(tmp_path, ("train-other-500", "train-clean-100"))
    assert corpus.names == [
        "train-other-500/1/2/1-2-0000.flac",
        "train-clean-100/1/2/1-2-0000.flac",
    ]
    with pytest.raises(InputError, match="no split train-clean-360 there; found dev-clean, train"):
        open_corpus(tmp_path, ("train-clean-100", "train-clean-360"))


def test_a_prepared_folder_has_no_splits(prepared):
    with pytest.raises(InputError, match="has no splits"):
        open_corpus(prepared, ("dev-clean",))


# ---- durations that are remembered ----


def test_only_new_and_changed_files_are_opened_again(tmp_path, monkeypatch):
    folder = sounds.speech_folder(tmp_path / "speech", 4, (0.3, 0.9))
    opened = []
    real = durations.open_file
    monkeypatch.setattr(durations, "open_file", lambda file: opened.append(file.name) or real(file))
    first = open_corpus(folder)
    assert len(opened) == 4
    opened.clear()
    again = open_corpus(folder)
    assert opened == []
    assert again.names == first.names
    np.testing.assert_array_equal(again.lengths, first.lengths)
    sounds.write(folder / "new.wav", sounds.syllables(0.4))
    changed = folder / first.names[0]
    sounds.write(changed, sounds.syllables(1.1))
    changed_corpus = open_corpus(folder)
    assert sorted(opened) == sorted(["new.wav", changed.name])
    assert changed_corpus.lengths[changed_corpus.names.index(first.names[0])] == 17_600


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": "daisy_jax_durations/0"}'])
def test_a_memory_that_is_not_understood_is_made_anew(tmp_path, content):
    folder = sounds.speech_folder(tmp_path / "speech", 2, (0.3, 0.9))
    first = open_corpus(folder)
    durations._cache_file(folder).write_text(content)
    np.testing.assert_array_equal(open_corpus(folder).lengths, first.lengths)


def test_without_a_place_to_remember_files_are_opened_each_time(tmp_path, monkeypatch):
    folder = sounds.speech_folder(tmp_path / "speech", 2, (0.3, 0.9))
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(open_corpus(folder).names) == len(open_corpus(folder).names) == 2


# ---- noise ----


@pytest.mark.parametrize("snr", [-10.0, 0.0, 3.7, 20.0, 60.0])
def test_mix_meets_the_signal_to_noise_ratio(snr):
    speech = sounds.syllables(2.0, 1).astype(np.float64)
    noise = 7 * np.random.default_rng(0).standard_normal(len(speech))
    added = mix(speech, noise, snr).astype(np.float64) - speech
    measured = 10 * np.log10(np.mean(speech**2) / np.mean(added**2))
    assert measured == pytest.approx(snr, abs=2e-4)
    cosine = added @ noise / np.linalg.norm(added) / np.linalg.norm(noise)
    assert cosine == pytest.approx(1, abs=1e-6)
    assert mix(speech.astype(np.float32), noise.astype(np.float32), snr).dtype == np.float32


def test_silence_stays_as_it_is():
    sound, silence = sounds.syllables(0.1), np.zeros(1_600, np.float32)
    np.testing.assert_array_equal(mix(sound, silence, 5.0), sound)
    np.testing.assert_array_equal(mix(silence, sound, 5.0), silence)


def test_draw_noise_loops_a_short_recording():
    noises = numbered(700)
    for seed in range(5):
        noise = draw_noise(noises, 2_000, np.random.default_rng(seed))
        np.testing.assert_array_equal(noise, (noise[0] + np.arange(2_000)) % 700)
    starts = {float(draw_noise(noises, 9, np.random.default_rng(s))[0]) for s in range(40)}
    assert len(starts) > 30


def test_augmentation_touches_the_share_that_was_asked_for():
    noises = Arrays(np.random.default_rng(0).standard_normal(5_000))
    rng = np.random.default_rng(0)
    sound = sounds.syllables(0.05)
    touched = sum(
        not np.array_equal(Augmentation(noises, 0.3, (0.0, 5.0))(sound, rng), sound)
        for _ in range(2_000)
    )
    assert abs(touched / 2_000 - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 2_000)
    assert Augmentation()(sound, rng) is sound


# ---- batches ----


@settings(deadline=None)
@given(st.integers(400, 60_000), st.integers(400, 30_000), st.integers(0, 2**32))
def test_a_crop_lies_on_the_frame_grid_inside_the_utterance(length, samples, seed):
    crop = draw_crop(length, 3, samples, np.random.default_rng(seed))
    assert crop.index == 3
    assert crop.start % audio.FRAME_HOP == 0
    assert crop.samples == min(samples, length)
    assert 0 <= crop.start <= length - crop.samples
    assert crop.frames.stop - crop.frames.start == audio.frame_count(crop.samples)
    assert crop.frames.stop <= audio.frame_count(length)


def test_crops_reach_both_ends_of_an_utterance():
    rng = np.random.default_rng(0)
    starts = {draw_crop(5 * 320 + 2_000, 0, 2_000, rng).start for _ in range(200)}
    assert starts == {0, 320, 640, 960, 1_280, 1_600}


def test_every_epoch_visits_every_utterance_once():
    """Pools hold whole numbers of epochs here: 17 utterances, pools of 2 batches of 4 rows."""
    batches = EpochBatches(np.arange(500, 517), 4, 450, seed=5)
    order = [crop.index for step in range(34) for crop in batches(step)]
    assert np.bincount(order, minlength=17).tolist() == [8] * 17
    assert order[:68] != order[68:]
    for first in range(0, 136, 8):  # no utterance twice before 17 - 8 others have come
        assert len(set(order[first : first + 8])) >= 7


def test_batches_of_an_epoch_hold_utterances_of_similar_length():
    rng = np.random.default_rng(0)
    lengths = rng.integers(16_000, 400_000, 5_000)
    batches = EpochBatches(lengths, 32, 250_000, seed=0)
    assert sum(crop.samples for crop in batches(0)) <= 32 * 250_000
    drawn = [batches(step) for step in range(150)]
    padded = sum(len(crops) * crop_width(crops, 250_000) for crops in drawn)
    used = sum(crop.samples for crops in drawn for crop in crops)
    assert 1 - used / padded < 0.1
    assert len({crop_width(crops, 250_000) for crops in drawn}) <= 8
    # Lengths come in random order, or the optimizer would see a sawtooth.
    means = [np.mean([crop.samples for crop in crops]) for crops in drawn]
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.25


def test_crops_of_unequal_seeds_and_epochs_differ():
    lengths = np.full(100, 90_000)
    first, second = EpochBatches(lengths, 10, 50_000, 0), EpochBatches(lengths, 10, 50_000, 1)
    assert first(0) != second(0)
    assert first(0) != first(10)
    assert EpochBatches(lengths, 10, 50_000, 0)(7) == first(7)


def test_what_cannot_be_read_is_an_empty_row_and_is_named(tmp_path, left_out):
    bad = {path.name: path for path in sounds.bad_files(tmp_path / "all")}
    sounds.write(tmp_path / "corpus" / "good.wav", sounds.syllables(0.5))
    bad["nan.wav"].rename(tmp_path / "corpus" / "nan.wav")
    corpus = open_corpus(tmp_path / "corpus")
    noises = Arrays(np.ones(500))
    crops = [Crop(index, 0, int(length)) for index, length in enumerate(corpus.lengths)]
    augmentation, rng = Augmentation(noises, 1.0), np.random.default_rng(0)
    waveform, lengths = read_crops(corpus, crops, 16_000, augmentation, rng)
    assert lengths.tolist() == [8_000, 0]  # by name: good.wav, nan.wav
    assert not waveform[1].any()
    assert len(left_out) == 1
    assert "nan.wav" in left_out[0]


def test_a_batch_is_a_function_of_seed_and_step_alone():
    corpus = numbered(900, 1_500, 4_000)
    noises = Arrays(np.random.default_rng(0).standard_normal(777))

    def batch(seed, step):
        crops = EpochBatches(corpus.lengths, 4, 800, seed)(step)
        rng = np.random.default_rng([seed, step, 1])
        return read_crops(corpus, crops, 800, Augmentation(noises), rng)[0]

    first = {(seed, step): batch(seed, step) for seed in (0, 1) for step in range(4)}
    for key in reversed(list(first)):
        np.testing.assert_array_equal(batch(*key), first[key])
    assert len({value.tobytes() for value in first.values()}) == len(first)


def test_a_part_of_a_batch_is_what_the_whole_holds_there():
    corpus = numbered(900, 1_500, 4_000)
    noises = Arrays(np.random.default_rng(0).standard_normal(777))
    crops = EpochBatches(corpus.lengths, 6, 800, 0)(3)

    def read(rows):
        rng = np.random.default_rng([0, 3, 1])
        return read_crops(corpus, crops, 800, Augmentation(noises), rng, rows=rows)

    whole = read(slice(None))
    for rows in (slice(0, 3), slice(3, 6), slice(2, 4)):
        for part, all_rows in zip(read(rows), whole, strict=True):
            np.testing.assert_array_equal(part, all_rows[rows])


@settings(deadline=None)
@given(
    st.lists(st.integers(400, 300_000), min_size=1, max_size=40),
    st.integers(1, 2_000_000),
    st.integers(1, 4),
)
def test_whole_batches_hold_every_utterance_once(lengths, samples, multiple):
    lengths = np.array(lengths)
    draw = WholeBatches(lengths, samples, multiple)
    seen = []
    for number in range(len(draw)):
        crops = draw(number)
        width = audio.padded_width(crops[0].samples)
        assert len(crops) % multiple == 0
        assert len(crops) == multiple or len(crops) * width <= samples
        assert max(crop.samples for crop in crops) == crops[0].samples
        real = [crop for crop in crops if crop.samples]
        assert len(crops) - len(real) < multiple
        assert all((crop.start, crop.samples) == (0, lengths[crop.index]) for crop in real)
        seen += [crop.index for crop in real]
    assert sorted(seen) == list(range(len(lengths)))


def test_epochs_of_librispeech_have_few_shapes_and_little_padding():
    # Its training sets: a fifth of short utterances, most between 12 and 16.5 s, mean 12.3 s.
    rng = np.random.default_rng(0)
    short, long = rng.uniform(1.5, 12, 9_000), rng.normal(14.6, 1.2, 21_000).clip(10, 24)
    lengths = np.rint(np.concatenate([short, long]) * 16_000).astype(np.int64)
    assert lengths.mean() / 16_000 == pytest.approx(12.3, abs=0.1)
    draw = EpochBatches(lengths, 32, 250_000, 0)
    heard = used = 0
    widths = set()
    for step in range(len(lengths) // 32):
        crops = draw(step)
        width = crop_width(crops, 250_000)
        widths.add(width)
        heard += sum(crop.samples for crop in crops)
        used += 32 * width
    assert len(widths) <= 8
    assert heard / used > 0.9


def test_read_crops_cuts_and_pads():
    corpus = numbered(900, 450)
    rng = np.random.default_rng(0)
    crops = EpochBatches(corpus.lengths, 2, 500, 0)(0)
    waveform, lengths = read_crops(corpus, crops, 500, Augmentation(), rng)
    for row, crop in enumerate(crops):
        assert lengths[row] == crop.samples
        place = crop.start + np.arange(crop.samples) + 1_000_000 * crop.index
        np.testing.assert_array_equal(waveform[row, : crop.samples], place.astype(np.float32))
        assert not waveform[row, crop.samples :].any()


def test_drawing_by_duration_favours_long_utterances():
    lengths = np.array([1_000, 3_000, 6_000])
    crops = draw_by_duration(lengths, 20_000, 500, np.random.default_rng(0))
    counts = np.bincount([crop.index for crop in crops]) / 20_000
    np.testing.assert_allclose(counts, [0.1, 0.3, 0.6], atol=0.015)


# ---- targets ----


def test_labels_of_a_crop_are_those_of_its_frames():
    corpus = numbered(1_999, 720, 5_000)
    counts = audio.frame_count(corpus.lengths)
    by_utterance = [100 * i + np.arange(count) for i, count in enumerate(counts)]
    targets = LabelsInOrder(corpus, np.concatenate(by_utterance))
    rng = np.random.default_rng(0)
    for _ in range(50):
        (crop,) = draw_by_duration(corpus.lengths, 1, 1_100, rng)
        found = targets.read(crop.index, crop.frames)
        first_sample = corpus.read(crop.index, crop.start, 1)[0] % 1_000_000
        wanted = by_utterance[crop.index][int(first_sample) // 320 :][
            : audio.frame_count(crop.samples)
        ]
        np.testing.assert_array_equal(found, wanted)


def test_labels_of_another_corpus_are_refused():
    with pytest.raises(InputError, match="4 labels for 5 frames"):
        LabelsInOrder(numbered(1_999), np.zeros(4, int))


@LIBROSA
@pytest.mark.parametrize("samples", [400, 719, 720, 16_000, 16_161])
def test_mfcc_has_a_row_a_frame(samples):
    features = mfcc(sounds.syllables(2.0)[:samples])
    assert features.shape == (audio.frame_count(samples), 39)
    assert features.dtype == np.float32
    assert np.isfinite(features).all()


@LIBROSA
def test_mfcc_agrees_with_a_direct_computation():
    waveform = sounds.syllables(1.0).astype(np.float64)
    starts = 320 * np.arange(audio.frame_count(len(waveform)))
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    power = np.abs(np.fft.rfft(np.stack([waveform[s : s + 400] for s in starts]) * hann)) ** 2

    def mel(hertz):  # Slaney's scale: linear below 1 kHz, logarithmic above
        low, high = hertz / (200 / 3), 15 + 27 * np.log(np.maximum(hertz, 1) / 1_000) / np.log(6.4)
        return np.where(hertz < 1_000, low, high)

    grid = np.linspace(0, 8_000, 8_001 * 4)
    edges = np.interp(np.linspace(0, mel(np.float64(8_000)), 42), mel(grid), grid)
    bins = np.arange(201) * 40.0
    rise = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    filters = np.maximum(np.minimum(rise, fall), 0) * (2 / (edges[2:] - edges[:-2]))[:, None]
    decibels = 10 * np.log10(np.maximum(power @ filters.T, 1e-10))
    decibels = np.maximum(decibels, decibels.max() - 80)
    k, n = np.arange(13)[:, None], np.arange(40)
    cosines = np.sqrt(2 / 40) * np.cos(np.pi * k * (2 * n + 1) / 80)
    cosines[0] /= np.sqrt(2)
    cepstra = decibels @ cosines.T
    wanted = (cepstra - cepstra.mean(axis=0)) / (cepstra.std(axis=0) + 1e-3)
    assert np.max(np.abs(mfcc(waveform.astype(np.float32))[:, :13] - wanted)) < 2e-3


@pytest.mark.parametrize(
    ("labels", "centroids", "said"),
    [
        ([0, 7], np.zeros((3, 2)), "its labels are 0 to 7 of 3 clusters"),
        ([-7, 1], np.zeros((3, 2)), "its labels are -7 to 1 of 3 clusters"),
        ([[0, 1]], np.zeros((3, 2)), "holds labels int64 (1, 2)"),
        (["a"], np.zeros((3, 2)), "holds labels <U1"),
        ([0.5], np.zeros((3, 2)), "holds labels float64"),
        ([0], np.zeros(3), "centroids (3,)"),
        ([0], np.full((3, 2), np.nan), "NaN"),
    ],
)
def test_targets_that_are_none_are_refused_with_what_makes_them_again(
    tmp_path, labels, centroids, said
):
    np.savez(tmp_path / "targets.npz", labels=np.asarray(labels), centroids=centroids)
    with pytest.raises(InputError, match=re.escape(said)) as error:
        load_targets(tmp_path / "targets.npz")
    assert "remove it, and train/pretrain.py --resume makes it again" in str(error.value)


def test_targets_are_the_nearest_centroids():
    rng = np.random.default_rng(0)
    corpus = Arrays(*[rng.standard_normal(n) for n in (16_000, 900, 9_000)])

    def features(waveform):
        starts = 320 * np.arange(audio.frame_count(len(waveform)))
        return np.stack([waveform[s : s + 3] for s in starts])

    labels, centroids = cluster_targets(corpus, features, 5, seed=3)
    assert labels.dtype == np.int16
    assert centroids.shape == (5, 3)
    rows = np.concatenate([features(recording) for recording in corpus.recordings])
    rows = rows.astype(np.float16).astype(np.float64)
    distances = np.sum((rows[:, None] - centroids) ** 2, axis=-1)
    np.testing.assert_array_equal(labels, np.argmin(distances, axis=1))
    again = cluster_targets(corpus, features, 5, seed=3)
    np.testing.assert_array_equal(again[0], labels)
    np.testing.assert_array_equal(again[1], centroids)
    LabelsInOrder(corpus, labels)
    assert labels.min() >= 0
    assert labels.max() < 5


@LIBROSA
def test_more_clusters_than_frames_are_refused():
    with pytest.raises(InputError, match="2 frames of speech for 100 clusters"):
        cluster_targets(numbered(720), mfcc, 100, seed=0)


def test_the_index_of_a_prepared_folder_is_plain_json(prepared):
    index = json.loads((prepared / "index.json").read_text())
    assert index["format"] == "daisy_jax_audio/1"
    assert sum(index["lengths"]) * 2 == (prepared / index["samples"]).stat().st_size


def test_librispeech_is_trained_on_its_960_hours(tmp_path):
    assert training_splits(tmp_path) == ()
    assert training_splits(tmp_path, "a, b") == ("a", "b")
    (tmp_path / "dev-clean").mkdir()
    assert training_splits(tmp_path) == ()
    (tmp_path / "train-clean-360").mkdir()
    assert training_splits(tmp_path) == ("train-clean-100", "train-clean-360", "train-other-500")
    assert training_splits(tmp_path, "dev-clean") == ("dev-clean",)


def test_a_part_is_something_below_the_folder(tmp_path):
    sounds.speech_folder(tmp_path / "data" / "dev", 2, (0.4, 0.5))
    sounds.speech_folder(tmp_path / "other", 2, (0.4, 0.5))
    data = tmp_path / "data"
    assert has_split(data, "dev")
    for elsewhere in (str(tmp_path / "other"), str(data / "dev"), "../other", "none", ""):
        assert not has_split(data, elsewhere)
        if elsewhere:
            with pytest.raises(InputError, match="no split"):
                open_corpus(data, (elsewhere,))


def test_a_fingerprint_tells_corpora_apart():
    corpora = [numbered(900, 1_500), numbered(900, 1_501), numbered(900), numbered(900, 1_500)]
    corpora[3].names = ["0", "other"]
    prints = [fingerprint(corpus) for corpus in corpora]
    assert len(set(prints)) == 4
    assert prints[0].startswith("2 utterances, ")
    assert fingerprint(numbered(900, 1_500)) == prints[0]
