"""Long recordings in windows: where they are cut, and what becomes of their features."""

import errno
import io
import os
import subprocess
import sys
import tracemalloc

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from conftest import environment, speech_like
from programs import run_here
from safetensors.numpy import load_file
from sounds import write

import daisy_jax
from daisy_jax import InputError, audio
from daisy_jax.audio import Cut
from daisy_jax.data.file_list import read_list
from daisy_jax.exits import ExitRule
from daisy_jax.features import contents, file_results, windowed
from daisy_jax.features.extract import Extractor, encode_shard
from daisy_jax.features.shard_format import shard_file
from daisy_jax.features.store import FeatureStore


@hypothesis.given(
    samples=st.integers(0, 30_000),
    frames=st.integers(1, 40),
    context=st.integers(0, 12),
    seed=st.integers(0, 1000),
)
def test_windows_part_the_frames_among_them(samples, frames, context, seed):
    waveform = np.arange(samples, dtype=np.float32)
    cut, rng = Cut(frames, context), np.random.default_rng(seed)
    blocks = np.split(waveform, np.sort(rng.integers(0, samples + 1, 5)))
    windows = list(audio.cut_stream(blocks, cut))
    total = audio.frame_count(samples)

    assert [window for window, _ in windows] == audio.windows_of(samples, cut)
    assert [frame for window, _ in windows for frame in window.frames] == list(range(total))
    assert [w.is_last for w, _ in windows] == [False] * (len(windows) - 1) + [True]
    assert all(len(window.frames) == frames for window, _ in windows[:-1])
    for window, part in windows:
        np.testing.assert_array_equal(part, waveform[window.start : window.stop])
        seen = range(window.start // 320, window.start // 320 + audio.frame_count(len(part)))
        assert window.start % 320 == 0
        assert list(seen[window.kept]) == list(window.frames)
        if len(windows) > 1:  # as much as the recording has, and the context that was promised
            assert len(seen) == min(total, frames + 2 * context)
            assert seen.start <= max(0, window.frames.start - context)
            assert seen.stop >= min(total, window.frames.stop + context)
            assert audio.padded_width(len(part), cut.widths) <= max(cut.samples, 8_000)
    if len(windows) == 1:
        np.testing.assert_array_equal(windows[0][1], waveform)
    ends = [round((w.start_seconds + w.seconds) * 16_000) for w, _ in windows]
    assert ends == [w.frames.start * 320 for w, _ in windows[1:]] + [samples]


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """4.3 s of changing sound, and its file."""
    parts = speech_like([20_000, 16_000, 20_000, 12_817], seed=3)
    waveform = audio.as_int16(np.concatenate(parts)) / np.float32(32_768)
    return write(tmp_path_factory.mktemp("long") / "long.wav", waveform), waveform


def test_each_window_is_what_encode_makes_of_its_part(base_model, recording):
    path, waveform = recording
    threshold, weights = 1.7, np.linspace(-1, 1, base_model.config.num_layers + 1)
    options = {
        "threshold": threshold,
        "layer_weights": weights.astype(np.float32),
        "return_hidden_states": True,
    }
    (whole,) = daisy_jax.encode_files(
        base_model, [path], window_seconds=1.0, context_seconds=0.3, **options
    )
    assert whole.error is None
    assert whole.seconds == pytest.approx(len(waveform) / 16_000, rel=1e-12)
    assert whole.num_frames == audio.frame_count(len(waveform)) == len(whole.last_hidden)
    starts = [window.start for window in whole.windows]
    assert starts == [0, 1, 2, 3, 4]
    assert sum(window.seconds for window in whole.windows) == pytest.approx(whole.seconds)
    for start, window in zip(starts, whole.windows, strict=True):
        # 1.6 s around the second, pushed inside the recording; frames from hand-made numbers.
        begin = min(max(0, round((start - 0.3) * 50)), 214 - 80)
        part = waveform[begin * 320 : (begin + 79) * 320 + 400]
        alone = daisy_jax.encode(base_model, part[None], **options)
        own = slice(round(start * 50), min(round((start + 1) * 50), whole.num_frames))
        inner = slice(own.start - begin, own.stop - begin)
        assert window.exit_layer == alone.exit_layer[0]
        np.testing.assert_array_equal(whole.frame_exit_layer[own], window.exit_layer)
        np.testing.assert_allclose(window.entropy, alone.entropy[0], rtol=1e-5)
        for field in ("last_hidden", "pooled", "hidden_states"):
            ours = getattr(whole, field)[..., own, :]
            theirs = np.asarray(getattr(alone, field)[0][..., inner, :])
            np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())
    exits = [window.exit_layer for window in whole.windows]
    assert len(set(exits)) > 1
    assert whole.exit_layer == max(exits)
    np.testing.assert_array_equal(
        whole.entropy, whole.windows[exits.index(whole.exit_layer)].entropy
    )


def test_files_of_up_to_a_window_are_not_cut(base_model, recording, tmp_path):
    path, waveform = recording
    short = write(tmp_path / "short.wav", waveform[:15_000])
    missing = str(tmp_path / "missing.wav")
    paths = [short, path, missing, short]
    cut = list(daisy_jax.encode_files(base_model, paths, window_seconds=1.0))
    whole = list(daisy_jax.encode_files(base_model, paths))
    assert [result.path for result in cut] == [str(path) for path in paths]
    assert [len(result.windows) for result in cut] == [1, 5, 0, 1]
    assert "missing.wav" in cut[2].error
    for one, other in zip(cut, whole, strict=True):
        assert one.num_frames == other.num_frames
    np.testing.assert_allclose(cut[0].last_hidden, whole[0].last_hidden, atol=1e-5)


def test_a_recording_that_is_damaged_far_behind_is_one_error(base_model, recording, tmp_path):
    path, waveform = recording
    spoilt = np.concatenate([np.tile(waveform, 8), [np.float32(np.nan)], waveform])
    bad = write(tmp_path / "nan.wav", spoilt, subtype="FLOAT")
    results = list(daisy_jax.encode_files(base_model, [bad, path], window_seconds=1.0))
    assert [len(result.windows) for result in results] == [0, 5]
    assert "1 samples are NaN" in results[0].error
    assert results[0].last_hidden is None


def test_a_window_that_needs_too_much_memory_costs_its_file_alone(
    base_model, recording, monkeypatch
):
    path, _ = recording
    encode = daisy_jax.features.files.encode

    def small(model, batch, lengths, **options):
        if lengths.max() > 30_000:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return encode(model, batch, lengths, **options)

    monkeypatch.setattr(daisy_jax.features.files, "encode", small)
    options = {"window_seconds": 1.0, "context_seconds": 0.5}
    (result,) = daisy_jax.encode_files(base_model, [path], **options)
    assert "not enough memory for 2 s at once; give shorter windows (--window)" in result.error
    (result,) = daisy_jax.encode_files(base_model, [path], window_seconds=0.8)
    assert result.error is not None
    (result,) = daisy_jax.encode_files(base_model, [path], window_seconds=0.8, context_seconds=0.1)
    assert result.error is None


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_memory_does_not_follow_the_recording(tmp_path, rate):
    def peak(seconds):
        noise = np.random.default_rng(0).uniform(-0.5, 0.5, (rate, 2)).astype(np.float32)
        path = write(tmp_path / f"{seconds}.wav", np.tile(noise, (seconds, 1)), rate)
        tracemalloc.start()
        with audio.stream(path) as (blocks, _):
            cut = audio.cut_stream(blocks, audio.cut_of(2, 0.5))
            frames = sum(len(window.frames) for window, _ in cut)
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert frames == audio.frame_count(seconds * 16_000)
        return highest

    assert peak(80) < peak(20) + 1e6  # of 5 MB of samples, or 14


HIGHEST = """
import re, sys
import daisy_jax
model = daisy_jax.load(sys.argv[1])
(result,) = daisy_jax.encode_files(model, sys.argv[2:], window_seconds=5)
assert result.error is None
print(result.num_frames, re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
"""


@pytest.mark.slow("two processes, one of which encodes eight minutes")
@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's own account of memory")
def test_a_process_needs_no_more_memory_for_a_longer_recording(base_model, tmp_path):
    daisy_jax.save(base_model, tmp_path / "model")
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (48_000, 2)).astype(np.float32)

    def megabytes(minutes):
        path = write(tmp_path / "long.flac", np.tile(noise, (60 * minutes, 1)), 48_000)
        words = [sys.executable, "-c", HIGHEST, str(tmp_path / "model"), str(path)]
        done = subprocess.run(words, env=environment(), capture_output=True, text=True, check=True)
        frames, kilobytes = map(int, done.stdout.split())
        assert frames == audio.frame_count(16_000 * 60 * minutes)
        return kilobytes / 1e3

    assert megabytes(8) < megabytes(1) + 40  # of 48 MB as it is, decoded 184, resampled 31


def test_features_of_a_long_recording_lie_on_the_disk(base_model, recording, monkeypatch):
    path, _ = recording
    options = {"window_seconds": 1.0, "return_hidden_states": True}
    (held,) = daisy_jax.encode_files(base_model, [path], **options)
    monkeypatch.setattr(file_results, "HELD", held.last_hidden.nbytes / 2)
    (result,) = daisy_jax.encode_files(base_model, [path], **options)
    for name in ("last_hidden", "hidden_states"):
        assert isinstance(getattr(result, name).base, np.memmap)
        np.testing.assert_array_equal(getattr(result, name), getattr(held, name))
    np.testing.assert_array_equal(result.hidden_states[-1], result.last_hidden)
    result.last_hidden[0] = 1  # as with any array of one's own


@pytest.mark.parametrize("failing", ["open", "write", "map"])
def test_a_full_disk_costs_the_long_recording_alone(base_model, recording, monkeypatch, failing):
    path, waveform = recording
    made = file_results.tempfile.TemporaryFile

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    class Full(io.FileIO):
        """Of which a part is written, as a disk that fills up does."""

        def write(self, content):
            return super().write(content[:100]) if self.tell() < 300 else full()

    monkeypatch.setattr(file_results, "HELD", 0)
    if failing == "open":
        monkeypatch.setattr(file_results.tempfile, "TemporaryFile", full)
    elif failing == "write":

        def opened(**options):
            with made(**options) as file:
                return Full(os.dup(file.fileno()), "r+")

        monkeypatch.setattr(file_results.tempfile, "TemporaryFile", opened)
    else:
        monkeypatch.setattr(np, "memmap", full)
    short = write(path.with_name("short.wav"), waveform[:16_000])
    results = list(daisy_jax.encode_files(base_model, [path, short, path], window_seconds=1.0))
    assert [result.error is None for result in results] == [False, True, False]
    assert "could not be kept in" in results[0].error
    assert "(No space left on device); set TMPDIR" in results[0].error


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"window_seconds": 0.0}, "a window of 0 s"),
        ({"window_seconds": float("nan")}, "a window of nan s"),
        ({"window_seconds": 5.0, "context_seconds": -1.0}, "a context of -1 s"),
        ({"window_seconds": 59.0}, "longer than the 60 s of max_seconds"),
    ],
)
def test_windows_that_cannot_be(base_model, recording, options, said):
    with pytest.raises(InputError, match=said):
        next(iter(daisy_jax.encode_files(base_model, [recording[0]], **options)))


def test_the_command_cuts_and_says_where_windows_left(model, recording, tmp_path):
    daisy_jax.save(model, tmp_path / "model")
    usual = ["--model", tmp_path / "model", "--threshold=1.5"]
    path, waveform = recording
    long = write(tmp_path / "hour.wav", np.tile(waveform, 16))
    run = run_here("daisy-jax", "encode", long, *usual)
    assert run.returncode == 1
    assert "--window" in run.stderr
    run = run_here(
        "daisy-jax", "encode", long, path, *usual, "--window=3", "--output", tmp_path / "out"
    )
    assert run.returncode == 0, run.stderr
    row = run.stdout.splitlines()[1].split()
    assert row[:2] == [f"{16 * len(waveform) / 16_000:.2f}", str((16 * len(waveform) - 80) // 320)]
    with np.load(tmp_path / "out" / "hour.npz") as written:
        assert len(written["last_hidden"]) == int(row[1]) == len(written["frame_exit_layer"])
        exits = written["window_exit_layer"]
        assert row[2].rstrip("*") in (f"{exits.min()}-{exits.max()}", f"{exits.max()}")
        assert len(exits) == len(written["window_entropy"]) == -(-int(row[1]) // 150)
        np.testing.assert_array_equal(written["window_start"], 3.0 * np.arange(len(exits)))
        assert written["window_seconds"].sum() == pytest.approx(16 * len(waveform) / 16_000)


@pytest.fixture(scope="module")
def listed(recording, tmp_path_factory):
    """A list of recordings of all kinds: long, short, at another rate, not to be sought in."""
    folder, (_, waveform) = tmp_path_factory.mktemp("listed"), recording
    write(folder / "long.wav", waveform)
    write(folder / "longer.ogg", np.tile(waveform, 3))
    write(folder / "short.flac", waveform[:9_000])
    stereo = np.stack([np.tile(waveform, 2)] * 2, axis=1)
    write(folder / "other.wav", stereo, 22_050)
    spoilt = np.concatenate([np.tile(waveform, 2), [np.float32(np.nan)], waveform])
    write(folder / "spoilt.wav", spoilt, subtype="FLOAT")
    names = ["long.wav", "longer.ogg", "short.flac", "other.wav", "spoilt.wav"]
    lines = [str(folder), *names[1:], f"{names[0]}\t{len(waveform)}"]
    path = folder / "all.tsv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("content", ["exit", "labels"])
def test_a_store_holds_what_encode_files_gives(model, listed, tmp_path, content):
    cut = audio.cut_of(1.0, 0.3)
    kept = (
        contents.labels()
        if content == "labels"
        else contents.at_exit(ExitRule("", 1.5, np.ones(model.config.num_layers, bool)))
    )
    extractor, files = Extractor(model, kept, batch_seconds=5, cut=cut), read_list(listed)
    rows = encode_shard(extractor, files, 0, 1, tmp_path, max_seconds=2.0)
    store = FeatureStore(tmp_path)
    paths = [row.path for row in rows]
    options = {"window_seconds": 1.0, "context_seconds": 0.3, "threshold": 1.5}
    wanted = list(daisy_jax.encode_files(model, paths, **options))
    assert sum(len(result.windows) for result in wanted) == 5 + 13 + 1 + 7
    for number, (row, result) in enumerate(zip(rows, wanted, strict=True)):
        assert (row.error is None) == (result.error is None)
        if row.error is not None:
            assert "NaN" in row.error
            continue
        assert row.frames == result.num_frames
        values = store.read(number)
        if content == "exit":
            assert (row.exit_layer, row.forced) == (result.exit_layer, result.forced)
            np.testing.assert_allclose(row.entropy, result.entropy, rtol=1e-4)
            scale = np.abs(result.last_hidden).max()
            np.testing.assert_allclose(values[0], result.last_hidden, atol=1e-3 * scale)
        else:
            waveform = audio.load(row.path)
            seen = [waveform[w.start : w.stop] for w in audio.windows_of(len(waveform), cut)]
            of_windows = [daisy_jax.frame_labels(model, part[None])[0] for part in seen]
            windows = audio.windows_of(len(waveform), cut)
            expected = [n[w.kept] for n, w in zip(of_windows, windows, strict=True)]
            same = values[0] == np.concatenate(expected)
            assert same.mean() > 0.99  # a frame between two clusters may fall to either


def test_a_store_of_other_windows_is_another_store(model, listed, tmp_path):
    files, store = read_list(listed), tmp_path / "store"
    encode_shard(Extractor(model, contents.labels(), cut=audio.cut_of(1, 0.3)), files, 0, 1, store)
    other = Extractor(model, contents.labels(), cut=audio.cut_of(1, 0.4))
    with pytest.raises(InputError, match="window 50 frames, 15 beside and not 50 frames, 20"):
        encode_shard(other, files, 0, 1, store)


def test_extract_takes_windows(model, listed, tmp_path):
    daisy_jax.save(model, tmp_path / "model")
    usual = ["--model", tmp_path / "model", "--layer=2", "--max-seconds=5"]
    whole = run_here("daisy-jax", "extract", listed, "--output", tmp_path / "a", *usual)
    assert whole.returncode == 1
    assert "longer.ogg: 12.9 s long; encode it in windows (--window)" in whole.stderr
    options = ["--output", tmp_path / "b", "--window=3"]
    cut = run_here("daisy-jax", "extract", listed, *usual, *options)
    assert cut.returncode == 1
    assert "4 files" in cut.stdout
    assert "spoilt.wav" in cut.stderr


def test_a_recording_of_which_some_windows_fail_leaves_nothing_in_its_shard(
    model, listed, tmp_path, monkeypatch
):
    read = windowed.Parts.read

    def fails_once(parts, number):
        recording, window = parts.parts[number]
        if recording == 0 and window.frames.start == 100:
            raise OSError("the disk has gone")
        return read(parts, number)

    monkeypatch.setattr(windowed.Parts, "read", fails_once)
    extractor = Extractor(model, contents.labels(), batch_seconds=5, cut=audio.cut_of(1.0, 0.3))
    rows = encode_shard(extractor, read_list(listed), 0, 1, tmp_path)
    assert "the disk has gone" in rows[0].error
    assert set(load_file(shard_file(tmp_path, 0))) == {row.id for row in rows if row.frames}
