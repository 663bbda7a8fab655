import errno
import itertools
import os
import pathlib

import jax
import numpy as np
import pytest
import sounds
from helpers import assert_close_to_scale
from made_models import made_model

import daisy_jax
from daisy_jax.errors import InputError
from daisy_jax.features import files, read_ahead


def padded(waveform: np.ndarray, seconds: int) -> tuple[np.ndarray, np.ndarray]:
    """A batch of one, in a width that is compiled once."""
    return daisy_jax.audio.pad_batch([waveform], seconds * 16_000)


@pytest.fixture(scope="module")
def model():
    return made_model()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Good files of several lengths, of two widths, and rates; bad files between them."""
    folder = tmp_path_factory.mktemp("sounds")
    good = [
        sounds.write(folder / "a.wav", sounds.syllables(1.1, 0)),
        sounds.write(folder / "b.flac", sounds.syllables(0.7, 1)),
        sounds.write(folder / "c.wav", sounds.syllables(0.9, 2, 8_000), 8_000),
        sounds.write(folder / "d.wav", np.tile(sounds.syllables(0.8, 3)[:, None], (1, 2))),
        sounds.write(folder / "e.wav", sounds.syllables(0.6, 4)[:400]),
        sounds.write(folder / "silence.wav", np.zeros(17_000)),
        sounds.write(folder / "clipped.wav", np.clip(40 * sounds.syllables(1.0, 5), -1, 1)),
    ]
    return good, sounds.bad_files(folder / "bad")


@pytest.fixture(scope="module")
def mixed(model, folder):
    """Good and bad files in turn, and their results at a threshold at which some leave early."""
    good, bad = folder
    paths = list(itertools.chain(*itertools.zip_longest(good, bad)))
    paths = [path for path in paths if path is not None]
    options = {"threshold": 0.6, "return_hidden_states": True, "layer_weights": np.arange(4.0)}
    return paths, options, list(daisy_jax.encode_files(model, paths, **options))


def test_results_come_in_the_order_of_the_paths(mixed):
    paths, _, results = mixed
    assert [result.path for result in results] == [str(path) for path in paths]


def test_bad_files_are_one_line_each_and_disturb_nobody(mixed, folder):
    _, _, results = mixed
    good, bad = folder
    for result in results:
        said = bad.get(pathlib.Path(result.path))
        if said is None:
            assert pathlib.Path(result.path) in good
            assert result.error is None
            assert result.exit_layer >= 1
            assert np.isfinite(result.last_hidden).all()
        else:
            assert said in result.error
            assert result.path in result.error
            assert "\n" not in result.error
            assert (result.last_hidden, result.entropy, result.num_frames) == (None, None, 0)


def test_a_file_among_others_gives_what_encode_gives_for_it_alone(model, mixed):
    _, options, results = mixed
    served = [result for result in results if result.error is None]
    assert len({result.exit_layer for result in served}) > 1
    for result in served:
        waveform = daisy_jax.audio.load(result.path)
        alone = daisy_jax.encode(model, *padded(waveform, 4), **options)
        assert result.seconds == len(waveform) / 16_000
        assert result.exit_layer == alone.exit_layer[0]
        assert result.forced == alone.forced[0]
        assert result.num_frames == alone.num_frames[0] == len(result.last_hidden)
        finite = np.isfinite(alone.entropy[0])
        np.testing.assert_array_equal(np.isfinite(result.entropy), finite)
        np.testing.assert_allclose(result.entropy[finite], alone.entropy[0][finite], rtol=1e-5)
        valid = slice(result.num_frames)
        assert_close_to_scale(result.last_hidden, alone.last_hidden[0, valid])
        assert_close_to_scale(result.pooled, alone.pooled[0, valid])
        for item in range(result.exit_layer + 1):
            assert_close_to_scale(result.hidden_states[item], alone.hidden_states[0, item, valid])
        assert not result.hidden_states[result.exit_layer + 1 :].any()


def test_what_was_done_to_the_samples_is_noted(mixed):
    notes = {pathlib.Path(result.path).name: result.notes for result in mixed[2]}
    assert notes["a.wav"] == ()
    assert notes["c.wav"] == ("resampled to 16000 Hz",)
    assert notes["d.wav"] == ("mixed down to one channel",)


def test_what_was_not_asked_for_is_none(model, folder):
    good, _ = folder
    (result,) = daisy_jax.encode_files(model, good[1:2])
    assert result.hidden_states is None
    assert result.pooled is None
    assert result.exit_layer == 3
    assert result.forced
    assert np.isposinf(result.entropy).all()


def test_an_endless_stream_of_paths_is_taken_as_it_goes(model, folder, monkeypatch):
    monkeypatch.setattr(files, "IN_WORK", 4)
    monkeypatch.setattr(read_ahead, "READ_AHEAD", 3)
    good, _ = folder
    taken = itertools.count()
    two = [str(good[1]), str(good[4])]
    paths = (two[next(taken) % 2] for _ in itertools.repeat(None))
    results = daisy_jax.encode_files(model, paths)
    first = list(itertools.islice(results, 9))
    assert [result.path for result in first] == [two[n % 2] for n in range(9)]
    assert next(taken) <= 9 + files.IN_WORK + read_ahead.READ_AHEAD + 1
    results.close()


def test_many_files_of_one_length_are_split_into_batches(model, folder, monkeypatch):
    monkeypatch.setattr(files, "BATCH_SECONDS", {"cpu": 4.8})  # four rows of 1.2 s
    good, _ = folder
    order = [1, 4, 1, 1, 4, 1, 1]
    results = list(daisy_jax.encode_files(model, [good[n] for n in order]))
    assert [result.num_frames for result in results] == [34 if n == 1 else 1 for n in order]
    for result in results:
        if result.num_frames == 34:
            np.testing.assert_array_equal(result.last_hidden, results[0].last_hidden)


HOURS = pytest.mark.slow("fills batches for hours of sound")


def lengths_like_librispeech(rng, count):
    """Seconds: quantiles of the corpus' training sets, linear between them."""
    shares = [0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1]
    seconds = [1.4, 2.3, 3.0, 4.1, 7.0, 13.2, 15.1, 16.2, 16.8, 17.4, 24.5]
    return np.interp(rng.uniform(size=count), shares, seconds)


@pytest.mark.parametrize(
    ("draw", "shapes", "padding"),
    [
        (lengths_like_librispeech, 8, 0.12),
        pytest.param(lambda rng, count: rng.uniform(0.3, 35, count), 16, 0.25, marks=HOURS),
        pytest.param(
            lambda rng, count: rng.exponential(3, count).clip(0.3, 35), 16, 0.35, marks=HOURS
        ),
    ],
)
def test_few_shapes_and_little_padding(model, monkeypatch, draw, shapes, padding):
    """As planned, without computing: batches are what `encode` is called with."""
    seconds = draw(np.random.default_rng(0), 1000)
    silence = np.zeros(40 * 16_000, np.float32)
    clips = {str(n): silence[: int(16_000 * s)] for n, s in enumerate(seconds)}
    batches = []

    def counted(_, batch, lengths):
        batches.append((batch.shape, int(lengths.sum()), int(np.count_nonzero(lengths))))
        frames = np.zeros((len(batch), 1, 1), np.float32)
        numbers = np.zeros(len(batch), np.int32)
        return daisy_jax.Encoded(frames, numbers, numbers, frames[..., 0], numbers, None, None)

    monkeypatch.setattr(files, "encode", counted)

    def whole(path, *_):
        samples = len(clips[path])
        (window,) = daisy_jax.audio.windows_of(samples, daisy_jax.audio.Cut(samples, 0))
        yield read_ahead.FilePart(path, window, clips[path], ())

    monkeypatch.setattr(read_ahead, "_read", whole)
    results = list(daisy_jax.encode_files(model, clips))
    assert [result.path for result in results] == list(clips)
    assert len({shape for shape, _, _ in batches}) <= shapes
    used = sum(rows * shape[1] for shape, _, rows in batches)
    assert 1 - sum(samples for _, samples, _ in batches) / used < padding
    # Rows that were left empty because the window moved on.
    empty = sum((shape[0] - rows) * shape[1] for shape, _, rows in batches)
    assert empty / used < 0.05


def test_no_paths_no_results(model):
    assert list(daisy_jax.encode_files(model, [])) == []


@pytest.mark.usefixtures("unchecked_annotations")
def test_one_path_in_the_place_of_a_list_is_refused(model):
    for path in ("sound.wav", pathlib.Path("sound.wav")):
        with pytest.raises(InputError, match="must be a list of paths"):
            list(daisy_jax.encode_files(model, path))


def test_a_wrong_option_is_raised_and_not_hidden_in_results(model, folder):
    good, _ = folder
    with pytest.raises(InputError, match="allowed"):
        list(daisy_jax.encode_files(model, good, allowed=np.zeros(3, bool)))


def test_more_than_a_minute_is_refused_with_what_to_do(model, tmp_path):
    path = sounds.write(tmp_path / "long.wav", np.zeros(60 * 16_000 + 1))
    (result,) = daisy_jax.encode_files(model, [path])
    assert result.error == (
        f"{path}: 60.0 s long; encode it in windows (window_seconds, --window), or allow more than "
        "60 s with max_seconds "
        "(--max-seconds)"
    )


@pytest.mark.slow("encodes a minute")
def test_the_longest_allowed_length_can_be_chosen(model, tmp_path):
    sound = np.resize(sounds.syllables(3.0), 61 * 16_000)
    path = sounds.write(tmp_path / "long.wav", sound)
    (result,) = daisy_jax.encode_files(model, [path], max_seconds=61)
    assert (result.error, result.num_frames) == (None, daisy_jax.audio.frame_count(len(sound)))
    (result,) = daisy_jax.encode_files(model, [path], max_seconds=60.5)
    assert "61.0 s long; encode it in windows" in result.error


def test_widths_hold_what_goes_into_them():
    for samples in (1, 8_000, 8_001, 960_000, 960_001, 1_920_000, 1_920_001):
        assert daisy_jax.audio.padded_width(samples) >= samples
    assert (
        daisy_jax.audio.padded_width(960_001)
        == daisy_jax.audio.padded_width(1_920_000)
        == 1_920_000
    )


def test_a_file_without_permission_is_named(model, folder, monkeypatch):
    good, _ = folder
    real_open = open

    def guarded(path, *arguments, **options):
        if str(path) == str(good[0]):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real_open(path, *arguments, **options)

    monkeypatch.setattr("builtins.open", guarded)
    refused, served = daisy_jax.encode_files(model, good[:2])
    assert refused.error == f"{good[0]}: Permission denied"
    assert served.error is None


@pytest.mark.parametrize("dtype", [np.int16, np.int32])
def test_encode_refuses_integer_samples(model, dtype):
    with pytest.raises(InputError, match=r"wanted float \[batch, samples\]"):
        daisy_jax.encode(model, np.zeros((1, 16_000), dtype))


def test_encode_takes_float64_samples_as_float32(model):
    waveform, lengths = padded(sounds.syllables(0.5), 2)
    double = daisy_jax.encode(model, waveform.astype(np.float64), lengths)
    single = daisy_jax.encode(model, waveform, lengths)
    assert double.last_hidden.dtype == np.float32
    np.testing.assert_array_equal(double.last_hidden, single.last_hidden)


@pytest.mark.skipif(os.name != "posix", reason="names are bytes on POSIX alone")
def test_paths_come_back_as_they_were_given(model, tmp_path):
    names = ["with space.wav", "line\nfeed.wav", "größe.wav", os.fsdecode(b"\xff.wav")]
    for name in names:
        plain = sounds.write(tmp_path / "plain.wav", sounds.syllables(0.1))
        os.rename(plain, os.path.join(tmp_path, name))
    paths = [os.path.join(tmp_path, name) for name in names]
    results = list(daisy_jax.encode_files(model, paths))
    assert [result.error for result in results] == [None] * len(names)
    assert [result.path for result in results] == paths


def test_thresholds_are_one_number_for_all_files(model):
    with pytest.raises(InputError, match="threshold must be one number for all files"):
        next(daisy_jax.encode_files(model, ["a.wav"], threshold=[0.3, 0.5]))


def test_what_a_caller_sets_for_jax_holds_in_the_threads(model, folder, monkeypatch):
    good, _ = folder
    seen = []

    def recorded(*arguments, **options):
        seen.append((jax.config.jax_default_matmul_precision, jax.config.jax_default_device))
        return daisy_jax.encode(*arguments, **options)

    monkeypatch.setattr(files, "encode", recorded)
    device = jax.devices()[1]
    with jax.default_matmul_precision("tensorfloat32"), jax.default_device(device):
        list(daisy_jax.encode_files(model, [good[0], good[4]]))  # of two widths
    assert seen == [("tensorfloat32", device)] * 2


def test_a_generator_that_is_closed_early_ends(model, folder):
    good, _ = folder
    results = daisy_jax.encode_files(model, itertools.repeat(good[0]))
    next(results)
    results.close()
    assert list(results) == []
