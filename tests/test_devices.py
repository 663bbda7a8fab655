"""One computation ahead of the results; where calls run, and how large batches are there."""

import itertools
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sounds
from helpers import assert_close_to_scale
from made_models import made_model

import daisy_jax
from daisy_jax import parallel
from daisy_jax.features import files
from daisy_jax.parallel import fetched_behind, platform_of


class Computing:
    """What is being computed on a device; fetching it waits for the result, or for the error."""

    def __init__(self, number, events, error=None):
        self.number, self.events, self.error = number, events, error
        events.append(f"start {number}")

    def __array__(self):
        self.events.append(f"fetch {self.number}")
        if self.error is not None:
            raise self.error
        return np.full(2, self.number)


# ---- one ahead ----


def test_results_come_in_order_as_numpy_arrays_with_what_belongs_to_them():
    double = jax.jit(lambda x: 2 * x)
    started = ({"name": f"n{n}", "y": double(jnp.float32(n)), "of": (n, None)} for n in range(4))
    results = list(fetched_behind(started))
    assert [(found["name"], found["of"]) for found in results] == [
        (f"n{n}", (n, None)) for n in range(4)
    ]
    for n, found in enumerate(results):
        assert isinstance(found["y"], np.ndarray)
        assert found["y"] == 2 * n


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_and_one_thing(count):
    assert [int(x) for x in fetched_behind([jnp.int32(7)] * count)] == [7] * count


def test_the_next_is_started_before_the_last_is_fetched():
    events = []
    for found in fetched_behind(Computing(number, events) for number in range(3)):
        events.append(f"use {found[0]}")
    assert events == [
        *["start 0", "start 1", "fetch 0", "use 0"],
        *["start 2", "fetch 1", "use 1"],
        *["fetch 2", "use 2"],
    ]


def test_at_most_two_are_on_the_device_and_one_while_results_are_used():
    alive, most = weakref.WeakSet(), []

    def started():
        for number in range(5):
            computing = Computing(number, [])
            alive.add(computing)
            most.append(len(alive))
            yield computing
            del computing

    used = [len(alive) for _ in fetched_behind(started())]
    assert most == [1, 2, 2, 2, 2]
    assert used == [1, 1, 1, 1, 0]


def test_an_error_of_a_computation_comes_in_its_place():
    failing = (Computing(n, [], ValueError(f"at {n}") if n == 1 else None) for n in range(4))
    results = fetched_behind(failing)
    assert next(results)[0] == 0
    with pytest.raises(ValueError, match="at 1"):
        next(results)
    assert list(results) == []


def test_an_error_while_one_is_started_comes_behind_the_results_before_it():
    def started():
        yield from (Computing(number, []) for number in range(2))
        raise OSError("no more")

    results = fetched_behind(started())
    assert [next(results)[0], next(results)[0]] == [0, 1]
    with pytest.raises(OSError, match="no more"):
        next(results)


def test_an_interrupt_does_not_wait():
    def started():
        yield Computing(0, [])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        next(fetched_behind(started()))


def test_closed_early_it_closes_its_source():
    events = []

    def started():
        try:
            yield from (Computing(number, events) for number in itertools.count())
        finally:
            events.append("closed")

    source = started()
    results = fetched_behind(source)
    next(results)
    results.close()
    assert events == ["start 0", "start 1", "fetch 0", "closed"]
    assert list(results) == list(source) == []


# ---- where calls run ----

OPTIONS = {"threshold": 0.353, "return_hidden_states": True}
"""Some of the sounds below leave at the first layer, some later."""


@pytest.fixture(scope="module")
def model():
    return made_model(seed=3)


def test_arrays_that_were_put_somewhere_decide(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    free = {"a": np.ones(2), "b": jnp.ones(2), "c": None}
    placed = free | {"b": jax.device_put(free["b"], jax.devices("cpu")[0])}
    assert (platform_of(free), platform_of(placed), platform_of(None)) == ("gpu", "cpu", "gpu")
    with jax.default_device("tpu"):
        assert (platform_of(free), platform_of(placed)) == ("tpu", "cpu")
    with jax.default_device(jax.devices("cpu")[0]):
        assert platform_of(free) == "cpu"
    assert platform_of(parallel.replicate(free["b"])) == "cpu"


@pytest.mark.parametrize(("placed", "rows"), [(True, 8), (False, 16)])
def test_a_model_on_the_cpu_gets_the_cpus_batches(model, monkeypatch, tmp_path, placed, rows):
    """In a process whose default is an accelerator."""
    monkeypatch.setattr(parallel.jax, "default_backend", lambda: "gpu")
    shapes = []

    def counted(model, batch, lengths, **options):
        shapes.append(batch.shape)
        return daisy_jax.encode(model, batch, lengths, **options)

    monkeypatch.setattr(files, "encode", counted)
    path = sounds.write(tmp_path / "a.wav", sounds.syllables(0.9))
    placed_model = jax.device_put(model, jax.devices("cpu")[0]) if placed else model
    list(daisy_jax.encode_files(placed_model, [path], **OPTIONS))
    assert shapes == [(rows, 19_200)]


def test_large_batches_give_what_small_ones_give(model, monkeypatch, tmp_path):
    """Those of an accelerator, on the CPU; several in one batch, and several exits."""
    paths = [
        sounds.write(tmp_path / f"{number}.wav", sounds.syllables(seconds, number))
        for number, seconds in enumerate(np.linspace(0.81, 1.19, 10))
    ]
    small = list(daisy_jax.encode_files(model, paths, **OPTIONS))
    monkeypatch.setattr(files, "BATCH_SECONDS", {})
    large = list(daisy_jax.encode_files(model, paths, **OPTIONS))
    assert len({result.exit_layer for result in small}) > 1
    for ours, theirs in zip(large, small, strict=True):
        assert ours.path == theirs.path
        assert (ours.exit_layer, ours.forced) == (theirs.exit_layer, theirs.forced)
        assert ours.num_frames == theirs.num_frames
        assert_close_to_scale(ours.last_hidden, theirs.last_hidden)
        assert_close_to_scale(ours.hidden_states, theirs.hidden_states)
        seen = np.isfinite(theirs.entropy)
        assert_close_to_scale(ours.entropy[seen], theirs.entropy[seen])
