"""Frame labels out of a feature store: found by name, read by crop."""

import pickle

import numpy as np
import pytest
import sounds
from made_models import made_model

from daisy_jax import audio
from daisy_jax.data.batches import Crop, read_labels
from daisy_jax.data.corpus import Selection, open_corpus
from daisy_jax.errors import InputError
from daisy_jax.features import contents
from daisy_jax.features.extract import Extractor, extract_corpus
from daisy_jax.features.shard_format import Row, write_shard
from daisy_jax.features.store import FeatureStore, StoredLabels

SOURCE = {"items": '["labels"]', "classes": "504", "dim": "4", "shards": "1"}


@pytest.fixture
def corpus(tmp_path):
    return open_corpus(sounds.speech_folder(tmp_path / "speech", 4, (0.3, 0.8)))


def labels_of(corpus, index):
    count = audio.frame_count(int(corpus.lengths[index]))
    return np.random.default_rng(index).integers(0, 504, count).astype(np.int32)


def row_of(corpus, index, error=None):
    samples = int(corpus.lengths[index])
    frames = 0 if error else int(audio.frame_count(samples))
    name = corpus.names[index]
    return Row(name, name, 0, samples, frames, 12, True, [], [], error)


def stored(folder, corpus, bad=()):
    """A store in which each label is known; utterances of `bad` could not be read."""
    rows = [row_of(corpus, n, "broken" if n in bad else None) for n in range(len(corpus.names))]
    features = {
        row.id: labels_of(corpus, n)[None] for n, row in enumerate(rows) if row.error is None
    }
    write_shard(folder, 0, features, rows, SOURCE)
    return FeatureStore(folder)


@pytest.fixture
def labelled(corpus, tmp_path):
    return stored(tmp_path / "labels", corpus)


def test_labels_are_found_by_name_in_any_order(corpus, labelled):
    order = np.array([2, 0, 3])
    part, places = labelled.of(Selection(corpus, order))
    assert part.names == [corpus.names[index] for index in order]
    labels = StoredLabels(labelled, places)
    assert labels.num_classes == 504
    for place, index in enumerate(order):
        wanted = labels_of(corpus, index)
        np.testing.assert_array_equal(labels.read(place, slice(0, len(wanted))), wanted)
        np.testing.assert_array_equal(labels.read(place, slice(3, 7)), wanted[3:7])
    np.testing.assert_array_equal(
        labels.part(np.array([2])).read(0, slice(0, 5)), labels_of(corpus, 3)[:5]
    )


def test_a_batch_of_labels_is_padded_with_minus_one(corpus, labelled):
    labels = StoredLabels(labelled, labelled.of(corpus)[1])
    crops = [Crop(1, 640, 2_000), Crop(0, 0, 0), Crop(3, 320, 4_000)]
    rows = read_labels(labels, crops, 20)
    assert rows.dtype == np.int32
    for row, crop in zip(rows, crops, strict=True):
        frames, first = audio.frame_count(crop.samples), crop.start // 320
        wanted = labels_of(corpus, crop.index)[first : first + frames]
        np.testing.assert_array_equal(row[:frames], wanted)
        assert np.all(row[frames:] == -1)


def test_missing_and_changed_utterances_are_named(corpus, labelled, tmp_path):
    more = open_corpus(sounds.speech_folder(tmp_path / "speech", 6, (0.3, 0.8)))
    with pytest.raises(InputError, match=r"has nothing of 2 utterances, the first is"):
        labelled.of(more)
    first = tmp_path / "speech" / corpus.names[0]
    sounds.write(first, sounds.syllables(0.55))
    changed = open_corpus(tmp_path / "speech")
    kept = np.array([changed.names.index(name) for name in corpus.names])
    with pytest.raises(InputError, match=f"{corpus.names[0]} has another length"):
        labelled.of(Selection(changed, kept[:1]))


def test_what_could_not_be_labelled_is_left_out_by_name(corpus, tmp_path, left_out):
    store = stored(tmp_path / "some", corpus, bad=(1,))
    rest, places = store.of(corpus)
    assert left_out == ["broken"]
    assert rest.names == [name for place, name in enumerate(corpus.names) if place != 1]
    wanted = labels_of(corpus, 2)
    labels = StoredLabels(store, places)
    np.testing.assert_array_equal(labels.read(1, slice(0, len(wanted))), wanted)


def test_labels_go_to_other_processes_by_name(corpus, labelled):
    labels = StoredLabels(labelled, labelled.of(corpus)[1]).part(np.array([2, 3]))
    other = pickle.dumps(labels)
    assert len(other) < 1_000
    wanted = labels_of(corpus, 3)
    again = pickle.loads(other)
    np.testing.assert_array_equal(again.read(1, slice(0, len(wanted))), wanted)


def test_a_store_without_labels_is_refused(corpus, tmp_path):
    layers = Extractor(made_model(), contents.layers((0, 1)))
    store = extract_corpus(tmp_path / "layers", layers, corpus, tmp_path)
    with pytest.raises(InputError, match="holds 0, 1 and no labels; give a folder of train"):
        StoredLabels(store, np.arange(4))
    with pytest.raises(InputError, match="no feature store there"):
        FeatureStore(tmp_path)


def test_another_models_labels_are_not_mixed_in(corpus, tmp_path):
    extract_corpus(
        tmp_path / "labels", Extractor(made_model(), contents.labels()), corpus, tmp_path
    )
    other = Extractor(made_model(seed=1), contents.labels())
    with pytest.raises(InputError, match=r"holds features of something else .*head"):
        extract_corpus(tmp_path / "labels", other, corpus, tmp_path)
