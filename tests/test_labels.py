"""Stored frame labels: written once, found by name, never half."""

import json
import pickle

import numpy as np
import pytest
import sounds

from daisy_jax import audio
from daisy_jax.data.batches import Crop, read_labels
from daisy_jax.data.corpus import Selection, open_corpus
from daisy_jax.data.labels import LabelFolder, new_label_folder
from daisy_jax.errors import InputError

SOURCE = {"sha256": "0", "dtype": "float32"}


@pytest.fixture
def corpus(tmp_path):
    return open_corpus(sounds.speech_folder(tmp_path / "speech", 4, (0.3, 0.8)))


def labels_of(corpus, index):
    count = audio.frame_count(int(corpus.lengths[index]))
    return np.random.default_rng(index).integers(0, 504, count)


@pytest.fixture
def labelled(corpus, tmp_path):
    folder = new_label_folder(tmp_path / "labels", corpus, 504, SOURCE)
    for index in range(4):
        folder.write(index, labels_of(corpus, index))
    return folder


def test_labels_are_found_by_name_in_any_order(corpus, labelled):
    assert len(labelled.unlabelled()) == 0
    order = np.array([2, 0, 3])
    part = Selection(corpus, order)
    same, labels = LabelFolder(labelled.folder).of(part, pytest.fail)
    assert same is part
    assert labels.num_classes == 504
    for place, index in enumerate(order):
        wanted = labels_of(corpus, index)
        np.testing.assert_array_equal(labels.read(place, slice(0, len(wanted))), wanted)
        np.testing.assert_array_equal(labels.read(place, slice(3, 7)), wanted[3:7])


def test_a_batch_of_labels_is_padded_with_minus_one(corpus, labelled):
    _, labels = labelled.of(corpus, pytest.fail)
    crops = [Crop(1, 640, 2_000), Crop(0, 0, 0), Crop(3, 320, 4_000)]
    rows = read_labels(labels, crops, 20)
    assert rows.dtype == np.int32
    for row, crop in zip(rows, crops, strict=True):
        frames, first = audio.frame_count(crop.samples), crop.start // 320
        wanted = labels_of(corpus, crop.index)[first : first + frames]
        np.testing.assert_array_equal(row[:frames], wanted)
        assert np.all(row[frames:] == -1)


def test_labelling_goes_on_where_it_stopped(corpus, tmp_path):
    folder = new_label_folder(tmp_path / "labels", corpus, 504, SOURCE)
    assert folder.unlabelled().tolist() == [0, 1, 2, 3]
    folder.write(2, labels_of(corpus, 2))
    folder.write(0, labels_of(corpus, 0))
    again = new_label_folder(tmp_path / "labels", corpus, 504, SOURCE)
    assert again.unlabelled().tolist() == [1, 3]
    with pytest.raises(InputError, match=r"2 utterances are not labelled yet; run train/labels.py"):
        again.of(corpus, pytest.fail)
    _, done = again.of(Selection(corpus, np.array([2])), pytest.fail)
    count = audio.frame_count(int(corpus.lengths[2]))
    np.testing.assert_array_equal(done.read(0, slice(0, count)), labels_of(corpus, 2))


@pytest.mark.parametrize("change", ["classes", "source", "corpus"])
def test_other_labels_are_not_mixed_in(corpus, labelled, change):
    other = Selection(corpus, np.array([0, 1])) if change == "corpus" else corpus
    source = SOURCE | {"sha256": "1"} if change == "source" else SOURCE
    with pytest.raises(InputError, match="labels of another corpus or from another model"):
        new_label_folder(labelled.folder, other, 500 if change == "classes" else 504, source)


def test_missing_and_changed_utterances_are_named(corpus, labelled, tmp_path):
    more = open_corpus(sounds.speech_folder(tmp_path / "speech", 6, (0.3, 0.8)))
    with pytest.raises(InputError, match=r"no labels of (sub/)?utterance\d.flac \(and 1 more\)"):
        labelled.of(more, pytest.fail)
    first = tmp_path / "speech" / corpus.names[0]
    sounds.write(first, sounds.syllables(0.55))
    changed = open_corpus(tmp_path / "speech")
    kept = np.array([changed.names.index(name) for name in corpus.names])
    with pytest.raises(InputError, match=f"{corpus.names[0]} has another length"):
        labelled.of(Selection(changed, kept[:1]), pytest.fail)


def test_folders_that_are_none_are_refused(labelled, tmp_path):
    with pytest.raises(InputError, match=r"no index.json there; give a folder written by"):
        LabelFolder(tmp_path)
    path = labelled.folder / "labels.uint16"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(InputError, match=r"bytes, the index promises \d+; make it again"):
        LabelFolder(labelled.folder)
    index = json.loads((labelled.folder / "index.json").read_text())
    (labelled.folder / "index.json").write_text(json.dumps(index | {"format": "other/1"}))
    with pytest.raises(
        InputError, match="format is 'other/1', this version reads 'daisy_jax_labels/1'"
    ):
        LabelFolder(labelled.folder)
    del index["frames"]
    (labelled.folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="has no 'frames'; make it again"):
        LabelFolder(labelled.folder)
    (labelled.folder / "index.json").write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        LabelFolder(labelled.folder)


def test_what_could_not_be_labelled_is_left_out_by_name(corpus, labelled):
    labelled.give_up(1)
    assert labelled.unlabelled().tolist() == []
    assert labelled.given_up().tolist() == [1]
    said = []
    rest, labels = labelled.of(corpus, said.append)
    assert said == [f"{corpus.names[1]}: could not be labelled"]
    assert rest.names == [name for place, name in enumerate(corpus.names) if place != 1]
    wanted = labels_of(corpus, 2)
    np.testing.assert_array_equal(labels.read(1, slice(0, len(wanted))), wanted)
    np.testing.assert_array_equal(rest.read(1, 0, 500), corpus.read(2, 0, 500))


def test_labels_go_to_other_processes_by_name(corpus, labelled):
    _, labels = labelled.of(corpus, pytest.fail)
    part = labels.part(np.array([2, 3]))
    other = pickle.dumps(labels)
    assert b"labels.uint16" in other
    assert (labelled.folder / "labels.uint16").read_bytes()[:64] not in other
    again = pickle.loads(pickle.dumps(part))
    wanted = labels_of(corpus, 3)
    np.testing.assert_array_equal(again.read(1, slice(0, len(wanted))), wanted)


def test_a_label_that_is_no_class_is_refused(corpus, labelled):
    labelled.write(0, np.full(labelled.counts[0], 504))
    with pytest.raises(InputError, match="label 504 of 504 classes, which count from 0"):
        labelled.of(corpus, pytest.fail)
