"""What others may add without touching the package: a criterion, a corpus, a task."""

import dataclasses
import json
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import SMALL, random_model, speech_like
from made_models import SMALL as MADE
from made_models import made_model
from own_task import Loudness, OneFile
from programs import run_here

from daisy_jax import InputError, audio, encode, parallel, save
from daisy_jax.features import contents
from daisy_jax.features.extract import Extractor, extract_corpus
from daisy_jax.model.hubert import embed
from daisy_jax.model.layer_loops import tapped_layers
from daisy_jax.tasks.presets import task_class
from daisy_jax.tasks.trained_heads import load_head
from daisy_jax.training.branches import Validation

# ---- an exit criterion ----

FEW = dataclasses.replace(SMALL, num_classes=3)  # so that labels are often the same


@dataclasses.dataclass(frozen=True)
class SameLabel:
    """0 where an utterance's most frequent label is that of the layer before, else 1."""

    classes: int

    def start(self, batch: int) -> Any:
        return jnp.full(batch, -1, jnp.int32)

    def __call__(self, logits, frame_mask, remembered):
        votes = jax.nn.one_hot(jnp.argmax(logits, axis=-1), self.classes, dtype=jnp.float32)
        votes = jnp.sum(votes * frame_mask[..., None].astype(jnp.float32), axis=1)
        label = jnp.argmax(votes, axis=-1).astype(jnp.int32)
        return (label != remembered).astype(jnp.float32), label


@pytest.fixture(scope="module")
def batch():
    return audio.pad_batch(speech_like([9_000, 6_000, 8_100, 3_000, 399, 7_000]))


@pytest.fixture(scope="module")
def model():
    return random_model(FEW, seed=1)


def labels_by_hand(model, waveform, lengths):
    """Each utterance's most frequent label at each layer: int [layers, batch]."""

    @jax.jit
    def labels(model, waveform, lengths):
        _, tapped = tapped_layers(model, embed(model, waveform, lengths))
        return jnp.argmax(jax.vmap(lambda branch, x: branch(x))(model.branches, tapped), axis=-1)

    found = []
    for chosen in np.asarray(labels(model, waveform, lengths)):
        counted = [
            np.bincount(row[: audio.frame_count(int(n))], minlength=FEW.num_classes).argmax()
            for row, n in zip(chosen, lengths, strict=True)
        ]
        found.append(counted)
    return np.asarray(found)


ONCE_MORE = pytest.mark.slow("compiles the criterion in other programs")


@pytest.mark.parametrize("jitted", [True, pytest.param(False, marks=ONCE_MORE)])
def test_a_criterion_of_ones_own_decides_where_utterances_leave(model, batch, jitted):
    waveform, lengths = batch
    criterion = SameLabel(FEW.num_classes)

    def run(model, waveform, lengths):
        return encode(model, waveform, lengths, threshold=0.5, criterion=criterion)

    out = (jax.jit(run) if jitted else run)(model, waveform, lengths)
    labels = labels_by_hand(model, waveform, lengths)
    same = np.concatenate([np.zeros((1, len(lengths)), bool), labels[1:] == labels[:-1]])
    wanted = np.where(same.any(axis=0), same.argmax(axis=0) + 1, SMALL.num_layers)
    heard = lengths >= 400
    np.testing.assert_array_equal(out.exit_layer, np.where(heard, wanted, 0))
    np.testing.assert_array_equal(out.forced, heard & ~same.any(axis=0))
    assert len(set(wanted[heard].tolist())) > 1
    for row in np.flatnonzero(heard):
        reached = wanted[row]
        np.testing.assert_array_equal(out.entropy[row, :reached], ~same[:reached, row])


@ONCE_MORE
def test_what_is_remembered_follows_its_utterance(model, batch):
    waveform, lengths = batch
    criterion = SameLabel(FEW.num_classes)
    whole = encode(model, waveform, lengths, threshold=0.5, criterion=criterion)
    for row in range(len(lengths)):
        alone = encode(
            model,
            waveform[row : row + 1],
            lengths[row : row + 1],
            threshold=0.5,
            criterion=criterion,
        )
        assert alone.exit_layer[0] == whole.exit_layer[row]
    layers = np.array([True, False, True, True])
    some = encode(model, waveform, lengths, threshold=0.5, allowed=layers, criterion=criterion)
    assert set(np.asarray(some.exit_layer)[lengths >= 400].tolist()) <= {1, 3, 4}
    batches = jax.vmap(
        lambda waveform, lengths: (
            encode(model, waveform, lengths, threshold=0.5, criterion=criterion).exit_layer
        )
    )(np.stack([waveform, waveform[::-1]]), np.stack([lengths, lengths[::-1]]))
    np.testing.assert_array_equal(batches[0], whole.exit_layer)
    np.testing.assert_array_equal(batches[1], whole.exit_layer[::-1])


# ---- a corpus with its own layout ----


@pytest.fixture(scope="module")
def one_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    recordings = speech_like([8_000, 6_000, 7_900, 3_000, 7_000, 5_000, 4_000, 6_500])
    np.save(folder / "samples.npy", np.concatenate(recordings))
    np.save(folder / "ends.npy", np.cumsum([len(each) for each in recordings]))
    return folder


def test_a_corpus_of_ones_own_goes_everywhere(one_file, tmp_path):
    corpus, model = OneFile(one_file), made_model()
    store = extract_corpus(tmp_path, Extractor(model, contents.layers((0, 3))), corpus, one_file)
    assert [row.id for row in store.rows] == corpus.names
    for index, length in enumerate(corpus.lengths):
        # All of one width, which is compiled once.
        alone = audio.pad_batch([corpus.read(index, 0, int(length))], 8_000)
        out = encode(model, *alone, threshold=-np.inf)
        np.testing.assert_allclose(store.entropy[index], out.entropy[0], rtol=1e-4)
    validation = Validation(parallel.replicate(model), corpus, None, 20_000)
    scores = validation.scores(parallel.replicate(model.branches))
    assert sorted(scores.frames.tolist()) == sorted(audio.frame_count(corpus.lengths).tolist())


# ---- a fifth task ----


PRESET = """
[loudness.made]
corpus = ""
train = ["all"]
dev = ["all"]
test = ["all"]
steps = 60
batch_size = 4
learning_rate = 3e-2
weight_decay = 0.0
clip = 1.0
save_every = 30
criterion = "accuracy"
head = {}
"""


@pytest.mark.slow("trains, evaluates and reports, from end to end")
def test_a_fifth_task_is_trained_evaluated_and_reported(one_file, tmp_path):
    save(made_model(), tmp_path / "model")
    (tmp_path / "loudness.toml").write_text(PRESET)

    usual = ["--accelerator=cpu"]

    def run(script, *arguments):
        done = run_here(script, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run(
        "train/downstream.py",
        *["--task", "own_task:Loudness", "--preset", tmp_path / "loudness.toml"],
        *["--model", tmp_path / "model", "--data", one_file, "--output", tmp_path / "run"],
        *["--features", tmp_path / "features", "--layer", 2, *usual],
    )
    head = load_head(tmp_path / "run" / "head")
    assert isinstance(head.task, Loudness)
    assert (head.dim, head.classes) == (MADE.dim, ("quiet", "loud"))
    said = run("eval/downstream.py", tmp_path / "run", "--timed", 0, *usual)
    assert "| rule | accuracy, % | exit layer |" in said
    result = json.loads((tmp_path / "run" / "evaluation" / "results.json").read_text())
    assert result["rows"][0]["measures"]["accuracy"]["value"] > 0.6  # it has learned something
    said = run("eval/report.py", tmp_path / "run")
    assert "## Loud frames" in said
    assert "a task that the paper does not have" in said


def test_a_task_that_is_not_there_is_refused_in_one_line():
    for name, said in (
        ("asrr", "no task 'asrr'; there are asr, sid, se, ss, or MODULE:CLASS"),
        ("no_such_module:X", "No module named 'no_such_module'"),
        ("own_task:OneFile", "no task 'own_task:OneFile'"),
        ("own_task:Nothing", "has no attribute 'Nothing'"),
    ):
        with pytest.raises(InputError, match=re.escape(said)):
            task_class(name)
