"""One bad input costs itself: whatever its reader raises, and whatever it does not fit into."""

import contextlib
import pathlib

import jax
import numpy as np
import pytest
import sounds
from made_corpora import libri2mix, voicebank
from made_models import SMALL, made_model
from programs import COMMAND, run_here

import daisy_jax
from daisy_jax import audio
from daisy_jax.audio import loading
from daisy_jax.data.batches import Crop, read_crops
from daisy_jax.data.corpus import open_corpus, sound_fingerprint
from daisy_jax.data.file_list import read_list
from daisy_jax.data.prepared import prepare
from daisy_jax.errors import said_of
from daisy_jax.features import contents, files
from daisy_jax.features.extract import Extractor, encode_shard
from daisy_jax.features.store import FeatureStore
from daisy_jax.model.frame_labels import nearest_centroid
from daisy_jax.tasks.presets import make_task, read_preset
from daisy_jax.training.cluster_targets import cluster_targets

SHORTER = "give shorter windows (--window)"


@pytest.fixture(scope="module")
def model():
    return made_model(SMALL)


@pytest.fixture
def folder(tmp_path):
    """Three files, the second of which has an odd reader."""
    for number, name in enumerate(("a", "odd", "z")):
        sounds.write(tmp_path / "in" / f"{name}.wav", sounds.syllables(0.5, number))
    return tmp_path / "in"


@pytest.fixture(params=[RuntimeError, MemoryError, KeyError, OSError, ValueError])
def odd(request, monkeypatch):
    """A reader that raises what nobody expects of it."""
    original = loading.opened

    @contextlib.contextmanager
    def opened(path, **options):
        if path.stem == "odd":
            raise request.param("of a kind\nthat nobody has seen")
        with original(path, **options) as sound:
            yield sound

    return lambda: monkeypatch.setattr(loading, "opened", opened)


def test_files_beside_it_are_encoded(model, folder, odd):
    odd()
    paths = sorted(folder.iterdir())
    results = list(daisy_jax.encode_files(model, paths))
    assert [result.error is None for result in results] == [True, False, True]
    assert results[1].error.startswith(f"{paths[1]}: ")
    assert "\n" not in results[1].error


def test_a_corpus_is_measured_without_it(folder, odd):
    odd()
    assert open_corpus(folder).names == ["a.wav", "z.wav"]


def test_a_prepared_folder_is_made_without_it(folder, tmp_path, odd):
    odd()
    assert prepare([folder], tmp_path / "prepared") == (2, 1)


def test_a_training_batch_has_an_empty_row_in_its_place(folder, odd):
    corpus = open_corpus(folder)  # measured while all was well
    odd()
    crops = [Crop(index, 0, 8000) for index in range(3)]
    _, lengths = read_crops(corpus, crops, 8000)
    assert lengths.tolist() == [8000, 0, 8000]
    assert len(sound_fingerprint(corpus)) == 16


def test_a_shard_is_finished_with_its_error(model, folder, tmp_path, odd):
    odd()
    manifest = tmp_path / "list.tsv"
    manifest.write_text("\n".join([str(folder), "a.wav", "odd.wav", "z.wav"]) + "\n")
    extractor = Extractor(model, contents.layers((1,)))
    rows = encode_shard(extractor, read_list(manifest), 0, 1, tmp_path / "store")
    assert {row.id: row.error is None for row in rows} == {
        "a.wav": True,
        "odd.wav": False,
        "z.wav": True,
    }


def test_what_is_said_is_one_line_with_the_name():
    for error in (RuntimeError("a\nb"), MemoryError(), OSError(28, "No space left on device")):
        said = said_of("some/file.wav", error)
        assert said.startswith("some/file.wav: ")
        assert "\n" not in said


# ---------------------------------------------------------------- memory


@pytest.mark.parametrize("fits", [0, 1, 3])
def test_what_does_not_fit_into_memory_is_tried_in_smaller_batches(
    model, folder, monkeypatch, fits
):
    """A device that holds so many rows; with 0, only those of less than a second."""
    sounds.write(folder / "long.wav", sounds.syllables(3.0))
    paths = sorted(folder.iterdir())
    wanted = {result.path: result for result in daisy_jax.encode_files(model, paths)}
    original, tried = files.encode, []

    def encode(model, batch, lengths, **options):
        rows, width = batch.shape
        tried.append(rows)
        if (fits and rows > fits) or (not fits and width > audio.SAMPLE_RATE):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating bytes")
        return original(model, batch, lengths, **options)

    monkeypatch.setattr(files, "encode", encode)
    results = list(daisy_jax.encode_files(model, paths))
    assert max(tried) > 1
    for result in results:
        if not fits and result.path.endswith("long.wav"):
            assert result.error == f"{result.path}: not enough memory for 3 s at once; {SHORTER}"
        else:
            assert result.error is None
            np.testing.assert_allclose(
                result.last_hidden, wanted[result.path].last_hidden, rtol=0, atol=1e-5
            )


@pytest.mark.parametrize("fits", [0, 1])
def test_a_shard_is_finished_without_what_does_not_fit_into_memory(
    model, folder, tmp_path, monkeypatch, fits
):
    """A device that holds one utterance at a time; with 0, only those of less than a second."""
    sounds.write(folder / "long.wav", sounds.syllables(3.0))
    manifest = tmp_path / "list.tsv"
    names = sorted(path.name for path in folder.iterdir())
    manifest.write_text("\n".join([str(folder), *names]) + "\n")
    extractor = Extractor(model, contents.layers((1,)))
    wanted = encode_shard(extractor, read_list(manifest), 0, 1, tmp_path / "wanted")
    original = extractor._run

    def run(model, waveform, lengths):
        rows, width = np.count_nonzero(lengths), waveform.shape[1]
        if rows > 1 or (not fits and width > audio.SAMPLE_RATE):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating bytes")
        return original(model, waveform, lengths)

    monkeypatch.setattr(extractor, "_run", run)
    rows = encode_shard(extractor, read_list(manifest), 0, 1, tmp_path / "store")
    for row, before in zip(rows, wanted, strict=True):
        if fits or row.id != "long.wav":
            np.testing.assert_allclose(row.entropy, before.entropy, rtol=0, atol=1e-5)
            assert row._replace(entropy=[], path="") == before._replace(entropy=[], path="")
        else:
            assert row.error == f"long.wav: not enough memory for 3 s at once; {SHORTER}"
            assert row.frames == 0
    store, before = FeatureStore(tmp_path / "store"), FeatureStore(tmp_path / "wanted")
    for index, row in enumerate(store.rows):
        if row.frames:
            # Batches of other heights may be summed in another order: as float16, in the last bit.
            np.testing.assert_array_max_ulp(store.read(index), before.read(index), maxulp=1)
    # With memory enough, the same command with --retry makes it whole.
    monkeypatch.setattr(extractor, "_run", original)
    again = encode_shard(extractor, read_list(manifest), 0, 1, tmp_path / "store", retry=True)
    assert not any(row.error for row in again)


def test_other_faults_of_the_device_are_not_hidden(model, folder, monkeypatch):
    def encode(*arguments, **options):
        raise jax.errors.JaxRuntimeError("INTERNAL: a fault of ours")

    monkeypatch.setattr(files, "encode", encode)
    with pytest.raises(jax.errors.JaxRuntimeError, match="a fault of ours"):
        list(daisy_jax.encode_files(model, sorted(folder.iterdir())))


# ---------------------------------------------------------------- names


def test_a_name_that_the_console_cannot_print_is_escaped(model, folder, tmp_path, monkeypatch):
    sounds.write(folder / "b-日本語.wav", sounds.syllables(0.5))
    daisy_jax.save(model, tmp_path / "model")
    words = (folder, "--model", tmp_path / "model", "--full", "--output", tmp_path / "out")
    done = run_here(COMMAND, "encode", *words, encoding="cp1252")
    assert done.returncode == 0, done.stderr
    assert "b-\\u65e5\\u672c\\u8a9e.wav" in done.stdout
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_a_name_that_a_file_system_cannot_take_costs_that_file(model, folder, tmp_path):
    name = "n" * 251  # fits with .wav, and not with what stands before a file that is not whole
    sounds.write(folder / f"{name}.wav", sounds.syllables(0.5))
    daisy_jax.save(model, tmp_path / "model")
    words = (folder, "--model", tmp_path / "model", "--full", "--output", tmp_path / "out")
    done = run_here(COMMAND, "encode", *words)
    written = {path.stem for path in (tmp_path / "out").iterdir()}
    assert {"a", "odd", "z"} <= written
    if name not in written:
        assert done.returncode == 1
        assert f"{name}.npz: File name too long; rename the sound file" in done.stderr


def test_a_name_that_takes_no_ending_costs_that_file_in_a_shard(model, folder, tmp_path):
    name = 250 * "n" + ".wav"
    sounds.write(folder / name, sounds.syllables(0.5))
    (tmp_path / "list.tsv").write_text("\n".join([str(folder), "a.wav", name]) + "\n")
    extractor = Extractor(model, contents.layers((1,)))
    files = read_list(tmp_path / "list.tsv")
    rows = encode_shard(extractor, files, 0, 1, tmp_path / "npy", npy=True)
    assert [row.error is None for row in rows] == [True, False]
    assert "a name of 258 bytes; rename it, or leave --npy out" in rows[1].error
    rows = encode_shard(extractor, files, 0, 1, tmp_path / "together")
    assert [row.error for row in rows] == [None, None]


# ---------------------------------------------------------------- downstream tasks and targets


@pytest.fixture
def unreadable(monkeypatch):
    """Takes a name: the corpora's reader then fails for it in a way that nobody expects."""

    def after(name):
        original = loading.opened

        @contextlib.contextmanager
        def opened(path, **options):
            if path.stem == name:
                raise RuntimeError("of a kind\nthat nobody has seen")
            with original(path, **options) as sound:
                yield sound

        monkeypatch.setattr(loading, "opened", opened)

    return after


MASKS = {
    "se": voicebank,
    "ss": lambda path: libri2mix(path, {"train-100": 2, "dev": 2, "test": 3}),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_are_learned_and_measured_without_it(name, tmp_path, unreadable, left_out):
    MASKS[name](tmp_path)
    task = make_task(name, read_preset(name, "daisy-tiny"))
    examples = task.open(str(tmp_path), "test")
    victim, other = examples.corpus.names[:2]
    lengths = examples.corpus.lengths
    crops = [Crop(index, 0, int(lengths[index])) for index in (0, 1)]
    whole = task.targets(examples, crops, slice(None), int(lengths[:2].max()))
    unreadable(pathlib.Path(victim).stem)
    targets = task.targets(examples, crops, slice(None), int(lengths[:2].max()))
    assert targets["samples"].tolist() == [0, lengths[1]]
    assert not targets["mixture"][0].any()
    np.testing.assert_array_equal(targets["mixture"][1], whole["mixture"][1])
    np.testing.assert_array_equal(targets["sources"][1], whole["sources"][1])
    for index, defined in ((0, False), (1, True)):
        output = whole["sources"][index, :, : lengths[index]]
        for value, _ in task.measure(examples, index, output).values.values():
            assert np.isnan(value) != defined
        plain = task.unprocessed(examples, index)
        if plain is not None:
            np.testing.assert_array_equal(plain, whole["mixture"][index, None, : lengths[index]])
        assert (plain is not None) == (defined and name == "se")
    assert all(victim in line and other not in line for line in left_out)


def test_clusters_are_made_without_it(folder, odd, left_out):
    corpus = open_corpus(folder)

    def features(waveform):
        return np.resize(waveform, (audio.frame_count(len(waveform)), 3))

    odd()
    labels, centroids = cluster_targets(corpus, features, 4, seed=0)
    counts = audio.frame_count(corpus.lengths)
    parts = np.split(labels, np.cumsum(counts)[:-1])
    assert not parts[1].any()
    for part, name in ((parts[0], "a.wav"), (parts[2], "z.wav")):
        wanted = nearest_centroid(features(audio.load(folder / name)).astype(np.float16), centroids)
        np.testing.assert_array_equal(part, wanted)
    assert len(left_out) == 1
    assert "odd.wav" in left_out[0]
