"""Folders of tensorflow-datasets, made here without TensorFlow and read by our reader."""

import json
import shutil
import sys

import numpy as np
import pytest

from daisy_jax.data import tfds as reader
from daisy_jax.data.corpus import corpus_name, open_corpus
from daisy_jax.data.librispeech import training_splits
from daisy_jax.errors import InputError

tfds = pytest.importorskip("tensorflow_datasets")

SAMPLES = np.random.default_rng(0).integers(-32_768, 32_767, 3_000).astype(np.int16)
COUNTS = {"train_clean100": 3, "dev_clean": 2}


class Librispeech(tfds.core.GeneratorBasedBuilder):
    """The layout of tfds' own data set, with drawn samples: utterance i has 900 (i + 1) of them."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        text, number = tfds.features.Text(), tfds.features.Scalar(np.int64)
        features = {
            "speech": tfds.features.Tensor(shape=(None,), dtype=np.int16),
            "text": text,
            "speaker_id": number,
            "chapter_id": number,
            "id": text,
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split, n) for split, n in COUNTS.items()}

    def _generate_examples(self, split, count):
        for i in range(count):
            name = f"{split}-{i}"
            ids = {"text": "WORDS", "speaker_id": 1, "chapter_id": 2, "id": name}
            yield name, {"speech": SAMPLES[: 900 * (i + 1)], **ids}
        yield (
            "short",
            {"speech": SAMPLES[:399], "text": "", "speaker_id": 1, "chapter_id": 2, "id": "short"},
        )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    builder = Librispeech(data_dir=tmp_path_factory.mktemp("tfds"), file_format="array_record")
    builder.download_and_prepare()
    return builder.data_path


def test_utterances_are_the_samples_that_were_stored(folder):
    corpus = open_corpus(str(folder), ("train-clean-100",))
    assert sorted(corpus.names) == [f"train_clean100-{i}" for i in range(3)]
    for index, name in enumerate(corpus.names):
        length = 900 * (int(name[-1]) + 1)
        assert corpus.lengths[index] == length
        whole = corpus.read(index, 0, length)
        assert whole.dtype == np.float32
        np.testing.assert_array_equal(whole * 32_768, SAMPLES[:length])
        np.testing.assert_array_equal(corpus.read(index, 320, 10_000), whole[320:])
    assert "tensorflow" not in sys.modules


def test_it_is_called_as_the_data_set_and_a_folder_as_itself(folder, tmp_path):
    assert corpus_name(str(folder)) == "librispeech"
    assert corpus_name(tmp_path / "LibriSpeech") == "LibriSpeech"


def test_all_splits_and_both_spellings(folder):
    assert len(open_corpus(str(folder)).names) == 5
    both = open_corpus(str(folder), ("dev_clean", "train_clean100"))
    assert [name.partition("-")[0] for name in both.names] == ["dev_clean"] * 2 + [
        "train_clean100"
    ] * 3
    with pytest.raises(InputError, match="no split test-clean; found dev_clean, train_clean100"):
        open_corpus(str(folder), ("test-clean",))


def test_lengths_are_measured_once(folder, tmp_path, monkeypatch):
    copy = tmp_path / "1.0.0"
    shutil.copytree(folder, copy)
    first = open_corpus(copy, ("dev-clean", "train-clean-100"))
    open_corpus(copy, ("dev-clean",))
    monkeypatch.setattr(reader.TfdsCorpus, "_example", lambda self, position: pytest.fail("read"))
    again = open_corpus(copy, ("dev-clean", "train-clean-100"))
    assert again.names == first.names
    np.testing.assert_array_equal(again.lengths, first.lengths)


def test_other_formats_and_missing_files_are_refused(folder, tmp_path):
    copy = tmp_path / "1.0.0"
    shutil.copytree(folder, copy)
    next(copy.glob("*dev_clean*")).unlink()
    with pytest.raises(InputError, match="0 of 1 files of split dev_clean are there"):
        open_corpus(copy)
    info = json.loads((copy / "dataset_info.json").read_text())
    (copy / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    with pytest.raises(InputError, match="file_format='array_record'"):
        open_corpus(copy)


def test_librispeech_of_tfds_is_known_by_its_splits(folder):
    assert training_splits(str(folder)) == ("train-clean-100", "train-clean-360", "train-other-500")
