"""The feature store: what is read is what was encoded, whole shards only, every utterance once."""

import pickle
import shutil
import subprocess
import sys

import grain
import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
import sounds
from made_models import SMALL, made_model

import daisy_jax
from daisy_jax import audio
from daisy_jax.data.corpus import Selection, open_corpus
from daisy_jax.encode import encode_taps
from daisy_jax.errors import InputError
from daisy_jax.features import contents, extract
from daisy_jax.features import extractor as extractor_room
from daisy_jax.features.extract import Extractor, extract_corpus, plan_shards
from daisy_jax.features.extractor import model_digest
from daisy_jax.features.shard_format import part_file, shard_file
from daisy_jax.features.store import FeatureStore
from daisy_jax.reporting import strictly

ITEMS = range(SMALL.num_layers + 1)


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    return sounds.speech_folder(tmp_path_factory.mktemp("speech"), 6, (0.3, 0.9))


@pytest.fixture
def corpus(speech):
    return open_corpus(speech)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    """Three utterances a shard."""
    monkeypatch.setattr(extract, "SHARD_UTTERANCES", 3)


def extractor_of(model, items=ITEMS):
    return Extractor(model, contents.layers(tuple(items)))


@pytest.fixture(scope="module")
def extractor(model):
    """Of all items; one for all tests, so that its programs are compiled once."""
    return extractor_of(model)


def made(folder, extractor, corpus):
    return extract_corpus(folder, extractor, corpus, "speech")


@pytest.fixture(scope="module")
def finished(extractor, speech, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extract, "SHARD_UTTERANCES", 3)
        return made(tmp_path_factory.mktemp("store"), extractor, open_corpus(speech)).folder


# ---- plans ----


@hypothesis.given(st.lists(st.integers(0, 3_000_000), min_size=1, max_size=40), st.integers(1, 500))
def test_a_plan_has_every_utterance_once_and_no_shard_too_large(frames, per_frame):
    sizes = np.asarray(frames, np.int64) * per_frame
    shards = plan_shards(sizes)
    np.testing.assert_array_equal(np.concatenate(shards), np.arange(len(sizes)))
    for shard in shards:
        assert sizes[shard].sum() <= extract.SHARD_BYTES + sizes.max() + len(sizes)


# ---- contents ----


def test_extraction_is_what_encode_sums_and_decides_by(any_model):
    config = any_model.config
    lengths = np.array([9_000, 4_000, 300], np.int32)
    waveform, _ = audio.pad_batch(
        [np.random.default_rng(n).standard_normal(n).astype(np.float32) for n in lengths]
    )
    items = range(config.num_layers + 1)
    everywhere = np.ones(config.num_layers, bool)
    found = jax.jit(contents.layers(tuple(items)).compute)(any_model, waveform, lengths)
    out = encode_taps(any_model, waveform, lengths, -np.inf, everywhere)
    found, out = jax.tree.map(np.asarray, (found, out))
    for row, length in enumerate(lengths):
        frames = audio.frame_count(length)
        ours = found.values[row, :, :frames].astype(np.float32)
        wanted = out.hidden_states[row, :, :frames]
        np.testing.assert_allclose(ours, wanted, rtol=1e-3, atol=1e-3)  # half precision
        if frames:
            np.testing.assert_allclose(found.entropy[row], out.entropy[row], rtol=1e-5)
    agreement = found.agreement
    np.testing.assert_array_equal(agreement[:2, -1], 1)
    np.testing.assert_array_equal(found.num_frames, out.num_frames)
    assert np.all((agreement >= 0) & (agreement <= 1))


def test_some_items_or_none(model):
    waveform = np.random.default_rng(0).standard_normal((2, 4_000)).astype(np.float32)
    lengths = np.array([4_000, 2_000], np.int32)

    def run(model, items):
        compute = jax.jit(contents.layers(tuple(items)).compute)
        return jax.tree.map(np.asarray, compute(model, waveform, lengths))

    whole, some = run(model, ITEMS), run(model, (3, 1))
    np.testing.assert_array_equal(some.values, whole.values[:, [3, 1]])
    none = run(model, ())
    assert none.values.shape[:2] == (2, 0)
    np.testing.assert_allclose(none.entropy, whole.entropy, rtol=1e-6)
    bare = run(model.replace(branches=None), (0,))
    assert bare.entropy.shape == bare.agreement.shape == (2, 0)


def test_a_store_holds_every_utterance_as_encoded_alone(model, corpus, finished):
    store = FeatureStore(finished)
    assert [row.id for row in store.rows] == corpus.names
    width = int(corpus.lengths.max())
    for index, length in enumerate(corpus.lengths):
        batch = audio.pad_batch([corpus.read(index, 0, int(length))], width)
        out = daisy_jax.encode(model, *batch, threshold=-np.inf, return_hidden_states=True)
        features = store.read(index)
        assert features.dtype == np.float16
        wanted = np.asarray(out.hidden_states)[0, :, : audio.frame_count(int(length))]
        np.testing.assert_allclose(features.astype(np.float32), wanted, rtol=2e-3, atol=2e-3)
        np.testing.assert_allclose(store.entropy[index], np.asarray(out.entropy)[0], rtol=1e-4)
        np.testing.assert_array_equal(store.read(index, slice(3, 9)), features[:, 3:9])
        some = store.read(index, slice(3, 9), slice(0, 2))
        np.testing.assert_array_equal(some, features[:2, 3:9])
        row = store.rows[index]
        assert row.path == f"speech/{corpus.names[index]}"
        assert (row.samples, row.frames, row.error) == (length, features.shape[1], None)


def test_grain_iterates_over_a_store_in_threads_and_pickles_it(finished):
    store = pickle.loads(pickle.dumps(FeatureStore(finished)))
    shuffled = grain.MapDataset.source(store).shuffle(seed=1)
    elements = list(shuffled.to_iter_dataset(grain.ReadOptions(num_threads=3)))
    assert sorted(element["id"] for element in elements) == [row.id for row in store.rows]
    for element in elements:
        assert element["features"].shape == (4, element["frames"], SMALL.dim)


def test_utterances_are_found_by_name(corpus, finished):
    store = FeatureStore(finished)
    part = Selection(corpus, np.array([4, 1]))
    same, places = store.of(part)
    assert same.names == part.names
    assert places.tolist() == [4, 1]
    part.lengths = part.lengths + 1
    with pytest.raises(InputError, match="has another length now"):
        store.of(part)
    part.names = ["a.flac", "b.flac"]
    with pytest.raises(InputError, match=r"has nothing of 2 utterances, the first is a\.flac"):
        store.of(part)


# ---- writing ----


def test_the_size_is_announced_and_a_finished_store_says_nothing(
    extractor, corpus, tmp_path, caplog
):
    caplog.set_level("INFO", logger="daisy_jax")
    made(tmp_path, extractor, corpus)
    frames = int(audio.frame_count(corpus.lengths).sum())
    size = frames * len(ITEMS) * SMALL.dim * 2
    assert f"{size / 1e9:.3g} GB of features" in caplog.messages[0]
    caplog.clear()
    made(tmp_path, extractor, corpus)
    assert not caplog.messages


def test_it_goes_on_behind_the_last_whole_shard(extractor, corpus, finished, tmp_path, monkeypatch):
    write = extractor_room.write_shard

    def stop_at_the_second(folder, number, *rest):
        if number:
            raise KeyboardInterrupt
        write(folder, number, *rest)

    monkeypatch.setattr(extractor_room, "write_shard", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        made(tmp_path, extractor, corpus)
    with pytest.raises(InputError, match="1 of 2 shards are there"):
        FeatureStore(tmp_path)
    before = shard_file(tmp_path, 0).stat().st_mtime_ns
    monkeypatch.setattr(extractor_room, "write_shard", write)
    store = made(tmp_path, extractor, corpus)
    assert shard_file(tmp_path, 0).stat().st_mtime_ns == before
    assert store.verify() == []
    whole = FeatureStore(finished)
    assert [row.id for row in store.rows] == [row.id for row in whole.rows]
    for index in range(len(store)):
        np.testing.assert_array_equal(store.read(index), whole.read(index))


def test_a_disk_without_room_is_refused_before_anything_is_computed(
    extractor, corpus, tmp_path, monkeypatch
):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000))
    with pytest.raises(InputError, match=r"are free; make room, or give another folder"):
        made(tmp_path / "new", extractor, corpus)
    assert not (tmp_path / "new").exists()


FULL_DISK = """
import resource, sys
import numpy as np
from daisy_jax.errors import said_of_system
from daisy_jax.features.shard_format import Row, write_shard
import pathlib
folder = pathlib.Path(sys.argv[1])
row = Row("a", "a", 0, 400, 1, 1, True, [1.0], [1.0], None)
write_shard(folder, 0, {"a": np.zeros((1, 10, 4), np.float16)}, [row], {"shards": "2"})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try:
    write_shard(folder, 1, {"b": np.zeros((1, 100_000, 4), np.float16)}, [row], {"shards": "2"})
except OSError as error:
    print(said_of_system(error))
"""


@pytest.mark.slow("limits the files of a process")
def test_a_disk_that_fills_up_leaves_whole_shards_alone(tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert "features-00001.safetensors: File too large" in result.stdout
    assert "make room and start again" in result.stdout
    left = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    assert left == ["00000.parquet", "features-00000.safetensors"]


@pytest.mark.parametrize("change", ["model", "items", "corpus"])
def test_another_stores_features_are_not_mixed_in(model, corpus, finished, change):
    other = made_model(seed=1) if change == "model" else model
    items = (0, 1) if change == "items" else ITEMS
    some = Selection(corpus, np.array([0, 1])) if change == "corpus" else corpus
    with pytest.raises(InputError, match=f"holds features of something else .*{change}"):
        made(finished, extractor_of(other, items), some)


def test_a_spoilt_store_is_named(extractor, corpus, speech, finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "store")
    shard = shard_file(folder, 1)
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    (problem,) = FeatureStore(folder).verify()
    assert "features-00001.safetensors: its bytes have changed" in problem
    opened = FeatureStore(folder)
    shard.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"cannot be read .* the shard is made again"):
        opened.read(4)
    with pytest.raises(
        InputError, match=r"features-00001\.safetensors: is cut off; remove .*00001"
    ):
        FeatureStore(folder)
    assert made(folder, extractor, corpus).verify() == []  # which costs nothing to see
    content[-1] ^= 3
    shard.write_bytes(content)
    assert made(folder, extractor, corpus).verify()  # and this all bytes
    assert extract_corpus(folder, extractor, corpus, speech, verify=True).verify() == []
    shard.unlink()
    with pytest.raises(InputError, match=r"features-00001\.safetensors: is missing"):
        FeatureStore(folder)
    part = part_file(folder, 1)
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(InputError, match=r"not a whole part of an index .* remove it"):
        made(folder, extractor, corpus)
    part.unlink()
    store = made(folder, extractor, corpus)
    assert store.verify() == []
    with pytest.raises(InputError, match="no feature store there"):
        FeatureStore(tmp_path)


def test_an_unreadable_utterance_is_noted_and_left_out_once(extractor, speech, tmp_path, left_out):
    folder = shutil.copytree(speech, tmp_path / "speech")
    corpus = open_corpus(folder)
    bad = folder / corpus.names[1]
    content = bytearray(bad.read_bytes())
    content[len(content) // 3 :] = bytes(len(content) - len(content) // 3)
    bad.write_bytes(content)
    with strictly(), pytest.raises(InputError, match=corpus.names[1]):
        extract_corpus(tmp_path / "strict", extractor, corpus, folder)
    store = extract_corpus(tmp_path / "store", extractor, corpus, folder)
    assert corpus.names[1] in store.rows[1].error
    assert store.errors == {str(bad): store.rows[1].error}
    part, places = store.of(corpus)
    assert left_out == [store.rows[1].error]  # by who uses the store, and not when it is made, too
    assert part.names == [corpus.names[place] for place in (0, 2, 3, 4, 5)]
    assert places.tolist() == [0, 2, 3, 4, 5]
    assert len(store.entropy) == 5


def test_the_digest_knows_the_weights_and_not_the_calibration(model):
    calibration = daisy_jax.Calibration(np.zeros((1, 3), np.float32), "x")
    assert model_digest(model.replace(calibration=calibration)) == model_digest(model)
    assert model_digest(made_model(seed=1)) != model_digest(model)
