"""Batches that are read ahead: the same ones in the same order, whoever reads them."""

import functools
import os
import pickle
import threading

import numpy as np
import pytest
import sounds
from made_models import made_model

from daisy_jax.data.batches import Augmentation, EpochBatches, crop_width, read_crops
from daisy_jax.data.corpus import open_corpus
from daisy_jax.data.prepared import prepare
from daisy_jax.data.side_work import batches, reader_threads
from daisy_jax.errors import InputError
from daisy_jax.features import files, read_ahead


def read(corpus, draw, number):
    crops = draw(number)
    rng = np.random.default_rng([0, number])
    waveform, lengths = read_crops(corpus, crops, crop_width(crops, 9_000), Augmentation(), rng)
    return {"waveform": waveform, "lengths": lengths, "number": np.int32(number)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return sounds.speech_folder(tmp_path_factory.mktemp("loading") / "speech", 12, (0.3, 1.4))


@pytest.fixture(scope="module", params=["folder", "prepared"])
def reader(request, folder, tmp_path_factory):
    path = folder
    if request.param == "prepared":
        path = tmp_path_factory.mktemp("prepared")
        prepare([folder], path)
    corpus = open_corpus(path)
    return functools.partial(read, corpus, EpochBatches(corpus.lengths, 3, 9_000, 0))


def assert_same(actual, number, reader):
    wanted = reader(number)
    assert actual.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(actual[name], array)
        assert actual[name].dtype == array.dtype


READERS = [0, pytest.param(2, marks=pytest.mark.slow("starts processes that read"))]


@pytest.mark.parametrize("workers", READERS)
def test_batches_come_in_order_from_any_position(reader, workers):
    numbers = []
    for batch in batches(reader, 5, 17, workers):
        numbers.append(int(batch["number"]))
        assert_same(batch, numbers[-1], reader)
    assert numbers == list(range(5, 17))


def test_nothing_is_left_to_read_at_the_end(reader):
    assert list(batches(reader, 7, 7, 0)) == []


def test_what_goes_wrong_while_reading_is_what_comes_out():
    def fails(number):
        raise InputError(f"batch {number} is bad")

    with pytest.raises(InputError, match="batch 0 is bad"):
        next(batches(fails, 0, 3, 0))


def test_a_prepared_corpus_goes_to_a_process_without_its_samples(folder, tmp_path):
    prepare([folder], tmp_path / "out")
    corpus = open_corpus(tmp_path / "out")
    pickled = pickle.dumps(corpus)
    assert len(pickled) < 1_000 < corpus.lengths.sum()
    again = pickle.loads(pickled)
    np.testing.assert_array_equal(again.read(3, 320, 800), corpus.read(3, 320, 800))


# ---- threads ----


def play_cores(monkeypatch, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)), raising=False)


@pytest.mark.parametrize(
    ("cores", "threads"), [(1, 2), (2, 2), (4, 2), (5, 2), (6, 3), (12, 6), (16, 8), (192, 8)]
)
def test_half_of_the_cores_read(monkeypatch, cores, threads):
    play_cores(monkeypatch, cores)
    assert reader_threads() == threads
    assert 2 * threads <= read_ahead.READ_AHEAD


def test_cores_are_counted_where_there_is_no_affinity(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    for count, threads in ((None, 2), (10, 5)):
        monkeypatch.setattr(os, "cpu_count", lambda count=count: count)
        assert reader_threads() == threads


def test_all_threads_read_batches_at_once(monkeypatch):
    play_cores(monkeypatch, 16)
    together = threading.Barrier(8, timeout=60)

    def waits_for_seven_others(number):
        together.wait()
        return {"number": np.int32(number)}

    found = batches(waits_for_seven_others, 0, 16, 0)
    assert [int(batch["number"]) for batch in found] == list(range(16))


def test_all_threads_read_files_at_once(monkeypatch):
    play_cores(monkeypatch, 16)
    together = threading.Barrier(8, timeout=60)

    def waits_for_seven_others(path, max_seconds, cut):
        together.wait()
        yield read_ahead.Unreadable(path, f"{path} is no file")

    monkeypatch.setattr(read_ahead, "_read", waits_for_seven_others)
    paths = [str(number) for number in range(16)]
    results = list(files.encode_files(made_model(), paths))
    assert [result.error for result in results] == [f"{path} is no file" for path in paths]
