"""Certified thresholds in replay, other criteria beside DAISY's, and eval/guarantee.py."""

import dataclasses
import json

import made_corpora
import numpy as np
import pyarrow.parquet
import pytest
import sounds
from conftest import SMALL, random_model, speech_like
from made_models import made_model
from programs import run_here

import daisy_jax
from daisy_jax import audio, encode
from daisy_jax.cost import multiply_adds
from daisy_jax.data.corpus import open_corpus
from daisy_jax.exits import exit_layers
from daisy_jax.features.criterion_scores import criterion_scores
from daisy_jax.model.criteria import LeastConfidence, Patience
from daisy_jax.model.hubert import embed
from daisy_jax.model.layer_loops import tapped_layers
from daisy_jax.study.conditions import Condition
from daisy_jax.study.guarantees import (
    Promise,
    above,
    certified_on_halves,
    may_be_versions,
    replay_of,
    savings,
    with_other_criteria,
)

CONFIG = dataclasses.replace(SMALL, num_classes=3)  # so that labels are often the same
LAYERS = CONFIG.num_layers


def condition(count, seed, kind="clean", prefix="u"):
    """Entropies that fall with depth on the whole; agreements that rise, the last layer's is 1."""
    rng = np.random.default_rng(seed)
    entropy = rng.uniform(0, 1, (count, LAYERS)) - np.arange(LAYERS) / 4 + 1
    agreement = np.sort(rng.beta(6, 1, (count, LAYERS)), axis=1)
    agreement[:, -1] = 1
    return Condition(
        kind,
        None,
        [f"{prefix}{number}.flac" for number in range(count)],
        rng.integers(8_000, 60_000, count),
        entropy.astype(np.float32),
        agreement.astype(np.float32),
    )


def test_a_replay_counts_what_utterances_lose_and_cost_where_they_leave():
    clean = condition(9, 0)
    replay = replay_of(clean, CONFIG)
    loss, saved = replay.curve()
    thresholds = [-np.inf, *np.unique(np.minimum.accumulate(clean.entropy, axis=1)[:, :-1])]
    assert len(loss) == len(saved) == len(thresholds)
    none = np.zeros(LAYERS, bool)
    full = multiply_adds(CONFIG, clean.samples, LAYERS, none).sum()
    for at, threshold in enumerate(thresholds):
        # Just above the entropy at which somebody's exit moves.
        layers = [
            next((k for k in range(LAYERS) if row[k] <= threshold), LAYERS - 1)
            for row in clean.entropy
        ]
        lost = 1 - np.mean([clean.agreement[n, k] for n, k in enumerate(layers)], dtype=np.float64)
        spent = sum(
            int(multiply_adds(CONFIG, samples, k + 1))
            for samples, k in zip(clean.samples, layers, strict=True)
        )
        np.testing.assert_allclose(loss[at], lost, atol=1e-9)
        np.testing.assert_allclose(saved[at], 1 - spent / full, atol=1e-12)
        above = np.nextafter(np.float32(threshold), np.float32(np.inf))
        expected = (lost, 1 - spent / full, 1 + np.mean(layers))
        np.testing.assert_allclose(replay.at(float(above)), expected, atol=1e-9)
    for level in (0.0, 0.05, 0.2, 1.0):
        (best,) = replay.best_savings([level])
        assert best == max(s for lost, s in zip(loss, saved, strict=True) if lost <= level + 1e-9)


@pytest.mark.parametrize("confidence", [None, 0.8])
def test_each_half_is_tested_on_what_it_was_not_certified_on(confidence):
    clean = condition(60, 1)
    # The same recordings in another version, whose name ends otherwise; and strangers.
    version = clean._replace(kind="again", names=[f"{name[:-5]}.wav" for name in clean.names])
    strangers = condition(25, 2, "strangers", "s")
    promise = Promise(0.15, confidence, None)
    halves = certified_on_halves(clean, [version, strangers], CONFIG, promise, 30, seed=3)
    rng, expected = np.random.default_rng(3), []
    for _ in range(30):
        order = rng.permutation(60)
        ours, theirs = order[:30], order[30:]
        threshold = daisy_jax.threshold_for_risk(
            clean.entropy[ours], 1.0 - clean.agreement[ours].astype(np.float64), 0.15, confidence
        )
        means = []
        for tested in (
            clean.agreement[theirs][exits_of(clean, theirs, threshold)],
            strangers.agreement[exits_of(strangers, np.arange(25), threshold)],
            clean.agreement[exits_of(clean, np.arange(60), threshold)],
        ):
            means.append(1 - np.mean(tested, dtype=np.float64))
        expected.append(means)
    loss, elsewhere, whole = np.asarray(expected).T
    assert halves.drawn == len(halves.loss) == 30
    np.testing.assert_allclose(halves.loss, loss, atol=1e-9)
    np.testing.assert_allclose(halves.elsewhere["again"], loss, atol=1e-9)
    np.testing.assert_allclose(halves.elsewhere["strangers"], elsewhere, atol=1e-9)
    np.testing.assert_allclose(halves.whole, whole, atol=1e-9)
    kept = loss <= 0.15 + 1e-9
    assert kept.any()
    assert np.all(halves.saved[kept] <= halves.best[kept] + 1e-12)
    share, low, high = above(halves.loss, 0.15)
    assert share == np.mean(~kept)
    assert low <= share <= high


def exits_of(condition, rows, threshold):
    layers, _ = exit_layers(condition.entropy[rows], threshold)
    return np.arange(len(rows)), layers - 1


def test_halves_that_certify_nothing_are_counted():
    halves = certified_on_halves(condition(8, 0), [], CONFIG, Promise(0.01, 0.9, None), 5, seed=0)
    assert (halves.drawn, len(halves.loss)) == (5, 0)
    assert np.isnan(above(halves.loss, 0.01)).all()


def test_versions_are_not_tested_where_their_originals_were_certified():
    clean = condition(4, 0)._replace(
        names=["a/1.flac", "b/1.flac", "c/2.flac", "d/3.flac"],
        samples=np.array([10_000, 20_000, 10_000, 10_000]),
    )
    other = condition(5, 1)._replace(
        names=["a/1.flac", "x/1.wav", "x/2.wav", "3.wav", "d/3.wav"],
        samples=np.array([10_000, 20_500, 30_000, 10_500, 10_000]),
    )
    expected = [
        [True, False, False, False],  # by its whole name, whoever else is called so
        [False, True, False, False],
        [False, False, False, False],  # three times as long: something else
        [False, False, False, True],
        [False, False, False, True],
    ]
    np.testing.assert_array_equal(may_be_versions(clean, other), expected)
    # Where each half has the originals of all, nothing is left to test on.
    alone = other._replace(
        **{name: getattr(other, name)[:1] for name in ("names", "samples", "entropy", "agreement")}
    )
    promise = Promise(0.9, None, None)
    halves = certified_on_halves(clean, [alone], CONFIG, promise, 40, seed=0)
    left = np.isfinite(halves.elsewhere["clean"])
    assert 0 < left.sum() < 40
    assert np.isfinite(above(halves.elsewhere["clean"], 0.9)).all()


def test_criteria_are_compared_on_the_same_draws():
    replay = replay_of(condition(20, 5), CONFIG)
    worse = replay._replace(score=np.random.default_rng(0).uniform(size=replay.score.shape))
    values, drawn = savings({"a": replay, "b": replay, "c": worse}, [0.05, 0.2])
    assert values.shape == (3, 2)
    assert drawn.shape[1:] == (3, 2)
    np.testing.assert_array_equal(drawn[:, 0], drawn[:, 1])
    np.testing.assert_array_equal(values[0], replay.best_savings([0.05, 0.2]))
    assert not np.array_equal(drawn[:, 0], drawn[:, 2])


# ---- criteria ----


@pytest.fixture(scope="module")
def model():
    return random_model(CONFIG, seed=1)


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speech")
    for number, waveform in enumerate(speech_like([9_000, 6_000, 8_100, 3_000, 7_000])):
        sounds.write(folder / f"{number}.wav", waveform)
    return open_corpus(folder)


def logits_by_hand(model, corpus):
    """Each utterance's logits at every layer: float64 [layers, frames, classes] each."""
    for index, length in enumerate(corpus.lengths):
        waveform = corpus.read(index, 0, int(length))[None]
        _, tapped = tapped_layers(model, embed(model, waveform, np.asarray([length])))
        frames = audio.frame_count(int(length))
        kernel, bias = (np.asarray(each[...], np.float64) for each in branch_arrays(model))
        tapped = np.asarray(tapped, np.float64)[:, 0, :frames]
        yield np.einsum("ltd,ldc->ltc", tapped, kernel) + bias[:, None]


def branch_arrays(model):
    return model.branches.kernel, model.branches.bias


@pytest.mark.slow("compiles further criteria")
def test_other_criteria_by_hand(model, speech):
    unsure = criterion_scores(model, speech, speech.names, lambda frames: LeastConfidence())
    changes = criterion_scores(model, speech, speech.names, Patience)
    for row, logits in enumerate(logits_by_hand(model, speech)):
        exponents = np.exp(logits - logits.max(axis=-1, keepdims=True))
        probabilities = exponents / exponents.sum(axis=-1, keepdims=True)
        expected = 1 - probabilities.max(axis=-1).mean(axis=-1)
        np.testing.assert_allclose(unsure[row], expected, atol=1e-5)
        labels = logits.argmax(axis=-1)
        changed = [2.0, *(labels[1:] != labels[:-1]).mean(axis=-1)]
        np.testing.assert_allclose(changes[row], changed, atol=1e-6)


@pytest.mark.slow("compiles further criteria")
@pytest.mark.parametrize("layers", [1, 2])
def test_patience_leaves_in_encode_where_the_replay_says(model, speech, layers):
    entropy = replay_of(condition(len(speech.names), 0), CONFIG)  # any will do
    replays = with_other_criteria(model, speech, speech.names, entropy, patience=2)
    names = ["labels unchanged for 1 layer", "labels unchanged for 2 layers"]
    assert list(replays) == ["mean entropy", "largest probability", *names]
    scores = replays[names[layers - 1]].score
    batch = audio.pad_batch(
        [speech.read(index, 0, int(length)) for index, length in enumerate(speech.lengths)]
    )
    criterion = Patience(audio.frame_count(batch[0].shape[1]), layers)
    moves = 0
    for threshold in (0.1, 0.3, 0.5, 0.7):
        out = encode(model, *batch, threshold=threshold, criterion=criterion)
        expected, forced = exit_layers(scores, threshold)
        np.testing.assert_array_equal(out.exit_layer, expected)
        np.testing.assert_array_equal(out.forced, forced)
        moves += len(set(expected.tolist()))
    assert moves > 4  # somebody leaves early, somebody late


# ---- the script ----


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """A corpus, noise, others' speech and a model."""
    folder = tmp_path_factory.mktemp("guarantee")
    made_corpora.librispeech(folder / "LibriSpeech", "dev-clean", 4, 3)
    rng = np.random.default_rng(0)
    for number in range(3):
        path = folder / "MUSAN" / "noise" / f"noise-{number}.wav"
        sounds.write(path, 0.2 * rng.standard_normal(12_000))
    for number, waveform in enumerate(speech_like([9_000, 6_000])):
        sounds.write(folder / "others" / f"other-{number}.wav", waveform)
    daisy_jax.save(made_model(), folder / "model")
    return folder


def guarantee(there, *arguments):
    usual = ["--data", there / "LibriSpeech", "--model", there / "model", "--accelerator=cpu"]
    usual += ["--entropies", there / "entropies", "--halves", 20]
    return run_here("eval/guarantee.py", *usual, *arguments)


@pytest.mark.slow("a whole study from end to end, with its picture")
def test_a_page_with_promises_conditions_and_criteria(there, tmp_path):
    arguments = ["--musan", there / "MUSAN", "--kinds", "noise", "--snrs", 10, 0]
    arguments += ["--conditions", f"others={there / 'others'}", "--agreements", 0.99, 0.7, 0.5]
    done = guarantee(there, *arguments, "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "report.md").read_text()
    assert "| others | 2 |" in text
    assert "| noise 10 dB | 12 |" in text
    page = (tmp_path / "report.html").read_text()
    assert 'src="data:image/png;base64,' in page
    result = json.loads((tmp_path / "results.json").read_text())
    assert [promise["level"] for promise in result["promises"]] == [0.01, 0.01, 0.3, 0.3, 0.5, 0.5]
    # What cannot be certified is said with what would do.
    assert result["promises"][0]["threshold"] is None
    assert "12 utterances cannot certify a loss of at most 0.01" in text
    # What is certified is what a user of the library would certify.
    files = sorted((there / "LibriSpeech").rglob("*.flac"))
    model = daisy_jax.load(there / "model")
    entropy = np.asarray(
        [each.entropy for each in daisy_jax.encode_files(model, files, threshold=-np.inf)]
    )
    rows = pyarrow.parquet.read_table(tmp_path / "utterances.parquet").to_pylist()
    by_name = {row["name"].rsplit("/")[-1]: row for row in rows}
    stored = [by_name[file.name] for file in files]
    np.testing.assert_allclose([row["mean entropy"] for row in stored], entropy, rtol=1e-4)
    loss = np.asarray([row["loss"] for row in stored])
    expected = daisy_jax.threshold_for_risk(entropy, loss, 0.5)
    assert result["promises"][-1]["threshold"] == pytest.approx(expected, rel=1e-4)
    assert result["halves"][-1]["certified"] == 20
    assert sorted(result["halves"][-1]["elsewhere"]) == ["noise 0 dB", "noise 10 dB", "others"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--agreements", "1.5"], "agreements: 1.5 does not lie between 0 and 1"),
        (["--confidence", "0"], "confidence: 0.0 does not lie between 0 and 1"),
        (["--agreements"], "agreements: none is given"),
        (["--seed", "-1"], "seed is -1; it cannot be negative"),
        (["--halves", "0"], "--halves 0, --patience 3: neither can be below 1"),
        (["--conditions", "far"], "'far' is no NAME=FOLDER"),
    ],
)
def test_mistakes_are_one_line(there, arguments, said):
    done = guarantee(there, *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_one_utterance_is_too_few(there, tmp_path):
    sounds.write(tmp_path / "one.wav", speech_like([9_000])[0])
    done = guarantee(there, "--data", tmp_path)
    assert done.returncode == 1
    assert "one utterance cannot be divided" in done.stderr
