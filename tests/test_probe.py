"""Probes: what a linear classifier finds in each layer, and eval/probe.py."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import sounds
from flax import nnx
from made_models import SMALL, made_model
from programs import run_here
from test_label_sources import aligned

import daisy_jax
from daisy_jax import audio
from daisy_jax.data.batches import LabelsInOrder
from daisy_jax.data.corpus import open_corpus
from daisy_jax.features.label_sources import Labelled, labelled_batches
from daisy_jax.study import probes
from daisy_jax.study.probed_exits import compare_exits
from daisy_jax.study.probes import Hits, fit_probes, probe_hits, probe_labels

LAYER = 2


def hidden_of(model, corpus, index):
    """One layer's output for one utterance, by `encode`."""
    length = int(corpus.lengths[index])
    whole = audio.batch_of_one(corpus.read(index, 0, length))
    allowed = np.arange(1, SMALL.num_layers + 1) == LAYER
    hidden = np.asarray(daisy_jax.encode(model, *whole, allowed=allowed).last_hidden)[0]
    return hidden[: audio.frame_count(length)]


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    return sounds.speech_folder(tmp_path_factory.mktemp("speech"), 8, (0.8, 2.5))


def test_a_probe_finds_what_is_linear_in_its_layer(speech, monkeypatch):
    monkeypatch.setattr(probes, "RATE", 0.1)  # nothing to be careful about: it is separable
    monkeypatch.setattr(probes, "STEPS", 500)
    model, corpus = made_model(), open_corpus(speech)
    direction = np.random.default_rng(1).standard_normal((SMALL.dim, 3))
    hidden = [hidden_of(model, corpus, index) for index in range(len(corpus.names))]
    mean, deviation = np.concatenate(hidden).mean(axis=0), np.concatenate(hidden).std(axis=0)
    labels = [np.argmax((each - mean) / deviation @ direction, axis=1) for each in hidden]
    labels[0][::2] = -1  # do not count
    labelled = Labelled(corpus, LabelsInOrder(corpus, np.concatenate(labels)), ("a", "b", "c"))
    with jax.numpy_dtype_promotion("standard"):  # which Optax needs
        fitted = fit_probes(model, labelled, 10**6, seed=0)
    found = probe_hits(model, fitted, labelled)
    assert found.frames.tolist() == [int(np.sum(each >= 0)) for each in labels]
    accuracy = found.right.sum(axis=0) / found.frames.sum()
    assert len(accuracy) == SMALL.num_layers + 1
    assert accuracy[LAYER] > 0.97
    # Counted again, by NumPy, from what `encode` says of the layer.
    for right, each, wanted in zip(found.right, hidden, labels, strict=True):
        kernel, bias = np.asarray(fitted.kernel[LAYER]), np.asarray(fitted.bias[LAYER])
        scaled = (each - np.asarray(fitted.mean[LAYER])) / np.asarray(fitted.deviation[LAYER])
        again = np.argmax(scaled @ kernel + bias, axis=1)
        assert abs(int(right[LAYER]) - int(np.sum(again == wanted))) <= 1  # a tie


def test_labels_of_an_utterance_that_cannot_be_read_do_not_count(speech, tmp_path):
    folder = shutil.copytree(speech, tmp_path / "speech")
    corpus = open_corpus(folder)
    counts = audio.frame_count(corpus.lengths)
    labels = LabelsInOrder(corpus, np.zeros(counts.sum(), np.int32))
    broken = sorted(folder.rglob("*.flac"))[3]
    broken.write_bytes(b"broken")
    found = np.zeros(len(counts), int)
    for numbers, batch in labelled_batches(Labelled(corpus, labels, ("a",))):
        found[numbers] = np.sum(batch["labels"] >= 0, axis=1)[: len(numbers)]
    assert found.tolist() == [0 if n == 3 else count for n, count in enumerate(counts)]


def test_classes_that_do_not_count_and_others_numbers(speech, tmp_path):
    corpus = open_corpus(speech)
    truth = aligned(tmp_path, corpus)
    kept = probe_labels(str(tmp_path), corpus, "phones", ignored=("p1", "p4"))
    assert kept.classes == ("p0", "p2", "p3")
    few = kept._replace(classes=("p3", "p0"))
    other = probe_labels(str(tmp_path), corpus, "phones", of=few)
    for index, name in enumerate(corpus.names):
        count = int(audio.frame_count(int(corpus.lengths[index])))
        ours, theirs = (each.labels.read(index, slice(0, count)) for each in (kept, other))
        for frame in range(count):
            middle = (320 * frame + 200) / 16_000
            (said,) = [each.label for each in truth[name] if each.start <= middle < each.end]
            assert ours[frame] == {"p0": 0, "p2": 1, "p3": 2}.get(said, -1)
            assert theirs[frame] == {"p3": 0, "p0": 1}.get(said, -1)


def test_exits_are_compared_with_a_static_exit_that_costs_as_much():
    # Three layers; the first utterance is sure at layer 1 when clean and at layer 3 in noise, the
    # second at layer 2 in both.
    sure, unsure = 0.1, 0.9
    clean = np.array([[sure, sure, sure], [unsure, sure, sure]], np.float32)
    noisy = np.array([[unsure, unsure, sure], [unsure, sure, sure]], np.float32)
    right = (
        np.array([[10, 50, 60, 70], [0, 20, 40, 50]]),
        np.array([[10, 20, 30, 45], [0, 5, 9, 9]]),
    )
    frames, samples = np.array([100, 50]), np.array([40_000, 20_000])
    conditions = {
        "clean": Hits(["a", "b"], right[0], frames, clean),
        "0 dB": Hits(["a", "b"], right[1], frames, noisy),
    }
    free = daisy_jax.HubertConfig(**{**vars(SMALL), "num_classes": 0})  # branches cost nothing
    first, second, whole = compare_exits(free, conditions, samples, 3)
    assert [row.mean_exit_layer for row in (first, second, whole)] == [3.0, 3.0, 3.0]
    assert first.early == first.static == 120 / 150

    first, second, whole = compare_exits(free, conditions, samples, 2)
    assert (first.condition, second.condition, whole.condition) == ("clean", "0 dB", "all")
    assert (first.mean_exit_layer, second.mean_exit_layer) == (1.5, 2.5)
    assert whole.mean_exit_layer == 2.0
    assert (first.early, first.static) == (90 / 150, 100 / 150)
    assert (second.early, second.static) == (54 / 150, 39 / 150)
    assert (whole.early, whole.static) == (144 / 300, 139 / 300)
    assert whole.interval[0] <= whole.early - whole.static <= whole.interval[1]


@pytest.mark.slow("runs a script from end to end")
def test_every_layer_and_condition_is_probed_and_written(speech, tmp_path):
    daisy_jax.save(made_model(), tmp_path / "model")
    aligned(tmp_path / "aligned", open_corpus(speech))
    words = ["--data", speech, "--labels", tmp_path / "aligned", "--model", tmp_path / "model"]
    words += ["--noise", speech, "--snrs", 5, "--compute-of-layer", 2]
    words += ["--output", tmp_path / "probe"]
    done = run_here("eval/probe.py", *map(str, words))
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "probe/probe.json").read_text(encoding="utf-8"))
    assert [row["condition"] for row in written["conditions"]] == ["clean", "5 dB"]
    for row in written["conditions"]:
        assert row["utterances"] == 8
        assert len(row["accuracy"]) == SMALL.num_layers + 1
        for value, (low, high) in zip(row["accuracy"], row["intervals"], strict=True):
            assert 0 <= low <= value <= high <= 1
            assert f" {value:.3f} |" in done.stdout
    assert (tmp_path / "probe/probe.png").stat().st_size > 1_000
    compared = written["compute_of_layer"]["2"]
    assert [row["condition"] for row in compared] == ["clean", "5 dB", "all"]
    assert all(
        row["static"] == each["accuracy"][2]
        for row, each in zip(compared[:2], written["conditions"], strict=True)
    )
    assert all(f"| {row['early']:.3f} | {row['static']:.3f} |" in done.stdout for row in compared)
    trunk = dataclasses.replace(SMALL, num_classes=0)
    bare = jax.jit(lambda: daisy_jax.Hubert(trunk, rngs=nnx.Rngs(0)))()
    daisy_jax.save(bare, tmp_path / "bare")
    words[words.index("--model") + 1] = tmp_path / "bare"
    done = run_here("eval/probe.py", *map(str, words))
    assert done.returncode == 1
    assert "--compute-of-layer: this model has no branches" in done.stderr
