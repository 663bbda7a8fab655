"""Every loop over batches starts the next one before it fetches the last; nothing else changes."""

import concurrent.futures
import pathlib
import runpy
import sys

import jax
import made_corpora
import numpy as np
import pytest
import sounds
from made_models import SMALL, made_model

import daisy_jax
from daisy_jax import audio, calibration, parallel
from daisy_jax.checkpoints import save
from daisy_jax.data.batches import EpochBatches
from daisy_jax.data.corpus import open_corpus
from daisy_jax.data.prepared import PreparedCorpus, prepare
from daisy_jax.exits import fixed_layer
from daisy_jax.features import contents
from daisy_jax.features.extract import Extractor, extract_corpus
from daisy_jax.features.store import FeatureStore, StoredLabels
from daisy_jax.features.windowed import Parts
from daisy_jax.model import frame_labels as labelling
from daisy_jax.tasks.presets import make_task, read_preset
from daisy_jax.tasks.task_data import open_examples, with_features
from daisy_jax.tasks.training import Evaluator, new_params
from daisy_jax.training.branches import Validation
from daisy_jax.training.speeds import AtSpeeds

LABELS = pathlib.Path(__file__).parents[1] / "train" / "labels.py"
IN_TURN = ["start", "start", "fetch", "start", "fetch", "fetch"]
"""Three batches, each started before the one before it is fetched."""


@pytest.fixture
def events(monkeypatch):
    """What a loop does in turn, "start" (by `recorded`) and "fetch"."""
    events, get = [], jax.device_get

    def fetch(tree):
        events.append("fetch")
        return get(tree)

    monkeypatch.setattr(jax, "device_get", fetch)
    return events


def recorded(function, events):
    def start(*arguments, **options):
        events.append("start")
        return function(*arguments, **options)

    return start


@pytest.fixture(scope="module")
def model():
    return made_model(seed=3)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """Twelve utterances to train on: three batches of a row a device."""
    return made_corpora.voxceleb(tmp_path_factory.mktemp("corpora") / "VoxCeleb1", 4, 5)


@pytest.fixture(scope="module")
def speakers(corpora, model):
    task = make_task("sid", read_preset("sid", "daisy-tiny"))
    examples = open_examples(task, "train", str(corpora))
    features = corpora.parent / "features"
    return with_features(task, "train", examples, str(corpora), model, features, live=False)


def test_extraction_starts_the_next_batch_first(speakers, model, tmp_path, events):
    extractor, corpus = Extractor(model, contents.layers((0,)), 1.0), speakers.examples.corpus
    extractor._run = recorded(extractor._run, events)
    source = extractor.source("", 1)
    paths = [tmp_path / name for name in corpus.names]
    assert len(extractor.write_shard(tmp_path, 0, corpus, paths, source)) == 12
    assert events == IN_TURN


def test_an_evaluation_starts_the_next_batch_first(speakers, events):
    evaluator = Evaluator(speakers, 1.0)
    evaluator._run = recorded(evaluator._run, events)
    params = new_params(speakers.task, SMALL.dim, 3, speakers.examples.classes, 0)
    assert len(evaluator(params, fixed_layer(2, 3)).utterances) == 12
    assert events == IN_TURN


def test_a_validation_starts_the_next_batch_first(speakers, model, events):
    corpus = speakers.examples.corpus
    validation = Validation(parallel.replicate(model), corpus, None, 16_000)
    validation._scores = recorded(validation._scores, events)
    assert len(validation.scores(parallel.replicate(model.branches)).frames) == 12
    assert events == IN_TURN


def one_after_the_other(count):
    """Batches that are all the same array, filled again for each."""
    rows = np.empty((2, 8_000), np.float32)
    lengths = np.empty(2, np.int32)
    for number in range(count):
        rows[0], rows[1] = sounds.syllables(0.5, number), sounds.syllables(0.5, 100 + number)
        lengths[:] = 4_000 + 200 * number
        yield rows, lengths
        rows[:], lengths[:] = 0, 0


def test_calibration_starts_the_next_batch_first(model, monkeypatch, events):
    monkeypatch.setattr(calibration, "_scores", recorded(calibration._scores, events))
    daisy_jax.calibrate(model, one_after_the_other(3))
    assert events == IN_TURN


class Late:
    """A result of a device that reads its input at the last moment."""

    def __init__(self, array):
        self.array = array

    def __array__(self):
        return self.array.copy()


@pytest.mark.usefixtures("unchecked_annotations")  # a result of a device that is none
def test_calibration_takes_batches_that_the_caller_fills_again(model, monkeypatch):
    def slow(model, waveform, lengths):
        return Late(waveform[:, :3]), Late(waveform[:, 3:6]), Late(lengths)

    monkeypatch.setattr(calibration, "_scores", slow)
    wanted = np.concatenate([rows[:, :3].copy() for rows, _ in one_after_the_other(3)])
    found = daisy_jax.calibrate(model, one_after_the_other(3)).entropy
    np.testing.assert_array_equal(found, wanted)


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    return sounds.speech_folder(tmp_path_factory.mktemp("speech"), 6, (0.6, 1.1))


def test_labels_are_those_of_the_model(model, speech, monkeypatch, tmp_path):
    save(model, tmp_path / "model")
    paths = ["--model", tmp_path / "model", "--data", speech, "--output", tmp_path / "labels"]
    options = ["--batch-seconds", "2.4", "--accelerator=cpu"]
    monkeypatch.setattr(sys, "argv", [str(LABELS), *map(str, paths), *options])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(LABELS), run_name="__main__")
    assert end.value.code == 0
    corpus, places = FeatureStore(tmp_path / "labels").of(open_corpus(speech))
    labels = StoredLabels(FeatureStore(tmp_path / "labels"), places)
    waveforms = [corpus.read(index, 0, int(length)) for index, length in enumerate(corpus.lengths)]
    whole = jax.jit(lambda *batch: labelling.frame_labels(model, *batch))(
        *audio.pad_batch(waveforms)
    )
    for index, (row, waveform) in enumerate(zip(whole, waveforms, strict=True)):
        count = audio.frame_count(len(waveform))
        np.testing.assert_array_equal(labels.read(index, slice(0, count)), row[:count])


def pools_of_crops(folder):
    read = EpochBatches(np.arange(1_000, 1_024), rows=2, samples=1_100, seed=3)
    return lambda number: [(crop.index, crop.start) for crop in read(number)]


def windows_of_recordings(folder):
    corpus = open_corpus(folder)
    paths = [folder / name for name in corpus.names]
    return Parts(corpus, paths, audio.cut_of(0.1, 0.02)).read


def utterances_of(opened):
    def of_folder(folder):
        corpus = opened(folder)
        return lambda number: corpus.read(number % len(corpus.names), 100 * number, 2_000)

    return of_folder


def of_prepared(folder):
    prepare([folder], folder.parent / "prepared")
    return PreparedCorpus(folder.parent / "prepared")


def labels_of(folder):
    corpus, places = FeatureStore(folder.parent / "labels").of(open_corpus(folder))
    labels = StoredLabels(FeatureStore(folder.parent / "labels"), places)
    return lambda number: labels.read(number % len(corpus.names), slice(number % 7, 20))


READERS = {
    "pools of crops": pools_of_crops,
    "windows of recordings": windows_of_recordings,
    "files": utterances_of(open_corpus),
    "prepared": utterances_of(of_prepared),
    "at other speeds": utterances_of(lambda folder: AtSpeeds(open_corpus(folder), (0.9, 1.1))),
    "labels": labels_of,
}


@pytest.mark.parametrize("kind", READERS)
def test_threads_read_side_by_side_what_one_reads_alone(kind, model, tmp_path):
    folder = sounds.speech_folder(tmp_path / "speech", 6, (0.6, 1.1))
    if kind == "labels":
        extractor = Extractor(model, contents.labels(), 5.0)
        extract_corpus(tmp_path / "labels", extractor, open_corpus(folder), folder)
    numbers = [int(number) for number in np.random.default_rng(0).permutation(40)]
    read = READERS[kind](folder)
    alone = {number: np.array(read(number)) for number in sorted(numbers)}
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with concurrent.futures.ThreadPoolExecutor(8) as threads:
            read = READERS[kind](folder)
            for number, together in zip(8 * numbers, threads.map(read, 8 * numbers), strict=True):
                np.testing.assert_array_equal(together, alone[number])
    finally:
        sys.setswitchinterval(interval)
