"""Discrete units: finding them, and files and stores of them."""

import collections
import json

import numpy as np
import pytest
import sounds
from made_models import SMALL, made_model
from programs import run_here
from sklearn.cluster import KMeans
from sklearn.metrics import mutual_info_score

import daisy_jax
from daisy_jax import InputError
from daisy_jax.features.codebook import (
    Codebook,
    as_text,
    load_codebook,
    save_codebook,
    trunk_digest,
)
from daisy_jax.features.store import FeatureStore
from daisy_jax.training.units import draw_frames, inertia, purity

LAYER = 2


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    return sounds.speech_folder(tmp_path_factory.mktemp("speech"), 6, (0.5, 1.5))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "model"
    daisy_jax.save(made_model(), folder)
    return folder


@pytest.fixture(scope="module")
def found(speech, folder, tmp_path_factory):
    """What train/units.py says, and its codebook."""
    output = tmp_path_factory.mktemp("units") / "units"
    words = ["--model", folder, "--layer", LAYER, "--clusters", 12, "--output", output]
    done = run_here("train/units.py", speech, *words, "--accelerator=cpu")
    assert done.returncode == 0, done.stderr
    return done.stdout, output


def frames_of(folder, speech):
    allowed = np.arange(1, SMALL.num_layers + 1) == LAYER
    model = daisy_jax.load(folder)
    files = sorted(speech.rglob("*.flac"))
    return {
        result.path: np.asarray(result.last_hidden)
        for result in daisy_jax.encode_files(model, files, allowed=allowed)
    }


def predicted(hidden, centroids):
    """By scikit-learn's own k-means."""
    kmeans = KMeans(len(centroids), n_init=1, max_iter=1).fit(hidden)
    kmeans.cluster_centers_ = np.asarray(centroids, hidden.dtype)
    return kmeans.predict(hidden)


def test_units_are_what_scikit_learn_predicts(speech, folder, found, tmp_path):
    said, units = found
    codebook = load_codebook(units)
    assert (codebook.centroids.shape, codebook.layer) == ((12, SMALL.dim), LAYER)
    hidden = frames_of(folder, speech)
    whole = np.concatenate(list(hidden.values()))
    distances = ((whole[:, None].astype(float) - codebook.centroids) ** 2).sum(axis=2)
    assert f"{len(whole)} frames; mean squared distance {distances.min(axis=1).mean():.4g}" in said
    assert "label purity" in said

    usual = ["--model", folder, "--units", "--centroids", units]
    done = run_here("daisy-jax", "encode", *hidden, *usual)
    assert done.returncode == 0, done.stderr
    lines = dict(line.split("|") for line in done.stdout.splitlines())
    for path, frames in hidden.items():
        name = path.rpartition("/")[2].removesuffix(".flac")
        assert lines[name] == " ".join(map(str, predicted(frames, codebook.centroids)))
    assert "frames" in done.stderr  # the table

    # A list's lines, and a file that cannot be read among them.
    km = tmp_path / "all.km"
    paths = [*hidden]
    paths.insert(2, str(tmp_path / "gone.wav"))
    done = run_here("daisy-jax", "encode", *paths, *usual, "--output", km, "--collapse")
    assert done.returncode == 1
    rows = km.read_text().split("\n")
    assert (len(rows), rows[2], rows[-1]) == (8, "", "")
    first = predicted(hidden[paths[0]], codebook.centroids)
    runs = [value for at, value in enumerate(first) if not at or first[at - 1] != value]
    assert rows[0] == " ".join(map(str, runs))


def test_a_store_of_units_takes_the_layer_from_the_codebook(speech, folder, found, tmp_path):
    _, units = found
    names = [str(path.relative_to(speech)) for path in sorted(speech.rglob("*.flac"))]
    (tmp_path / "all.tsv").write_text("\n".join([str(speech), *names]) + "\n")
    usual = ["--store", "units", "--centroids", units, "--model", folder]
    done = run_here(
        "daisy-jax", "extract", tmp_path / "all.tsv", *usual, "--output", tmp_path / "s"
    )
    assert done.returncode == 0, done.stderr
    store, codebook = FeatureStore(tmp_path / "s"), load_codebook(units)
    hidden = frames_of(folder, speech)
    for number, row in enumerate(store.rows):
        wanted = predicted(hidden[row.path], codebook.centroids)
        np.testing.assert_array_equal(store.read(number)[0], wanted)
    done = run_here("daisy-jax", "extract", tmp_path / "all.tsv", *usual, "--layer=1", "--output=x")
    assert done.returncode == 1
    assert "belongs to layer 2, not to 1" in done.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--ratio=0.7"], "at which everybody has to leave; leave --ratio out"),
        (["--layer=1"], "belongs to layer 2, not to 1"),
        (["--hidden-states"], "--hidden-states needs --output DIR"),
    ],
)
def test_units_leave_at_the_layer_of_their_codebook(speech, folder, found, options, said):
    usual = ["--model", folder, "--units", "--centroids", found[1]]
    done = run_here("daisy-jax", "encode", speech, *usual, *options)
    assert done.returncode == 1
    assert said in done.stderr


def test_a_codebook_of_another_model_is_refused(speech, found, tmp_path):
    daisy_jax.save(made_model(seed=7), tmp_path / "other")
    usual = ["--units", "--centroids", found[1], "--model", tmp_path / "other"]
    done = run_here("daisy-jax", "encode", speech, *usual)
    assert done.returncode == 1
    assert "was made with another model" in done.stderr
    plain = tmp_path / "plain.npy"
    np.save(plain, load_codebook(found[1]).centroids)
    done = run_here("daisy-jax", "encode", speech, *usual[:2], plain, *usual[3:])
    assert "does not say to which layer it belongs; give --layer" in done.stderr
    done = run_here("daisy-jax", "encode", speech, *usual[:2], plain, *usual[3:], "--layer=2")
    assert done.returncode == 0
    np.save(plain, np.zeros((3, 5)))
    done = run_here("daisy-jax", "encode", speech, *usual[:2], plain, *usual[3:], "--layer=2")
    assert "for this model it must be [clusters, 16]" in done.stderr


def test_branches_and_heads_do_not_change_what_a_codebook_belongs_to():
    model = made_model()
    assert trunk_digest(model) == trunk_digest(model.replace(branches=None, head=None))
    assert trunk_digest(model) != trunk_digest(made_model(seed=1))


def test_damaged_codebooks_are_one_line(tmp_path):
    book = Codebook(np.eye(3, dtype=np.float32), 2, "digest")
    save_codebook(tmp_path, book)
    again = load_codebook(tmp_path)
    np.testing.assert_array_equal(again.centroids, book.centroids)
    assert again[1:] == book[1:]
    config = json.loads((tmp_path / "units.json").read_text())
    (tmp_path / "units.json").write_text(json.dumps({**config, "layer": "two"}))
    with pytest.raises(InputError, match=r"units\.json: Expected `int`.*make it again"):
        load_codebook(tmp_path)
    (tmp_path / "units.json").unlink()
    with pytest.raises(InputError, match=r"give a folder of train/units\.py"):
        load_codebook(tmp_path)


def test_every_frame_is_drawn_as_often_as_any_other():
    lengths, count = [5, 40, 1, 0, 14], 12
    utterances = [
        np.arange(start, start + length, dtype=np.float32)[:, None]
        for start, length in zip(np.cumsum([0, *lengths]), lengths, strict=False)
    ]
    drawn = collections.Counter()
    for seed in range(2000):
        frames = draw_frames(utterances, count, seed)[:, 0]
        assert len(set(frames.tolist())) == count
        drawn.update(frames.tolist())
    share = np.array([drawn[frame] for frame in range(60)]) / 2000
    np.testing.assert_allclose(share, 12 / 60, atol=5 * np.sqrt(0.2 * 0.8 / 2000))
    first, again = (draw_frames(utterances, count, 3) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert len(draw_frames(utterances, 100, 0)) == 60


def test_purities_are_those_of_the_paper_and_of_scikit_learn():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 3000)
    units = np.where(rng.random(3000) < 0.7, labels, rng.integers(0, 8, 3000))
    found = purity(units, labels)
    pairs = collections.Counter(zip(units.tolist(), labels.tolist(), strict=True))
    of_label = [max(n for (u, _), n in pairs.items() if u == unit) for unit in set(units.tolist())]
    of_unit = [max(n for (_, k), n in pairs.items() if k == label) for label in range(5)]
    assert found.label == pytest.approx(sum(of_label) / 3000)
    assert found.unit == pytest.approx(sum(of_unit) / 3000)
    whole = mutual_info_score(labels, labels)
    assert found.information == pytest.approx(mutual_info_score(units, labels) / whole)
    assert purity(labels, labels) == pytest.approx((1, 1, 1))
    points = rng.standard_normal((50, 3)).astype(np.float32)
    kmeans = KMeans(4, n_init=1, random_state=0).fit(points)
    ours = inertia(points, kmeans.cluster_centers_.astype(np.float32))
    assert ours == pytest.approx(kmeans.inertia_ / 50, rel=1e-5)


def test_equal_units_in_a_row_become_one():
    assert as_text(np.array([3, 3, 1, 3, 3, 3]), collapse=True) == "3 1 3"
    assert as_text(np.array([3, 3, 1]), collapse=False) == "3 3 1"
    assert as_text(np.array([], int), collapse=True) == ""
