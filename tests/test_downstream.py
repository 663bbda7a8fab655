"""Stage 2: features up to each exit, no gradient into the trunk, one executable, whole rows."""

import dataclasses
import json
import pathlib
import runpy

import jax
import jax.numpy as jnp
import made_corpora
import numpy as np
import pytest
from made_models import SMALL, made_model

import daisy_jax
from daisy_jax import audio, parallel
from daisy_jax.data.batches import Crop
from daisy_jax.data.file_list import read_list
from daisy_jax.errors import InputError
from daisy_jax.exits import ExitRule, fixed_layer
from daisy_jax.features import contents
from daisy_jax.features.extract import Extractor, encode_shard
from daisy_jax.model.pooling import pool
from daisy_jax.tasks import training
from daisy_jax.tasks.presets import make_task, read_preset
from daisy_jax.tasks.task import Measured
from daisy_jax.tasks.task_data import open_examples, with_features
from daisy_jax.tasks.trained_heads import TrainedHead, count_exits, load_head, save_head
from daisy_jax.tasks.training import Evaluator, downstream_step, head_optimizer, new_params
from daisy_jax.training.settings import as_begun

ROOT = pathlib.Path(__file__).parents[1]
LAYERS = SMALL.num_layers
EVERYWHERE = np.ones(LAYERS, bool)


TRUNK_INSIDE = pytest.mark.slow("trains or evaluates with the trunk inside, on four devices")


@pytest.fixture(scope="module")
def model():
    return made_model(seed=3)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpora")
    made_corpora.voxceleb(folder / "VoxCeleb1", 4, 5)
    made_corpora.libri2mix(folder / "Libri2Mix", {"train-100": 3})
    return folder


def opened(name, corpora, model, live, part="train"):
    task = make_task(name, read_preset(name, "daisy-tiny"))
    place = corpora / {"sid": "VoxCeleb1", "ss": "Libri2Mix"}[name]
    return with_features(
        task,
        part,
        open_examples(task, part, str(place)),
        str(place),
        model,
        corpora / "features",
        live=live,
    )


@pytest.fixture(scope="module")
def speakers(corpora, model):
    return opened("sid", corpora, model, live=False)


def params_of(data):
    return new_params(data.task, SMALL.dim, LAYERS, data.examples.classes, 0)


@pytest.fixture(scope="module")
def params(speakers):
    """Of a new head that tells these speakers apart."""
    return params_of(speakers)


run_features = jax.jit(training.batch_features)


@pytest.fixture(scope="module")
def middle(speakers):
    """A rule by which utterances leave at several layers."""
    first = np.sort(speakers.entropy[:, 0])
    rule = ExitRule("middle", float(first[5] + first[6]) / 2, EVERYWHERE)
    assert len(set(rule.exits(speakers.entropy)[0].tolist())) > 1
    return rule


def test_a_store_of_a_whole_corpus_serves_a_task(corpora, model, speakers, tmp_path):
    names = speakers.examples.corpus.names
    listed = tmp_path / "list"
    listed.write_text("\n".join([str(corpora / "VoxCeleb1"), *reversed(names)]))
    files = read_list(listed)
    everything = Extractor(model, contents.layers(tuple(range(model.config.num_layers + 1))))
    for number in range(2):
        encode_shard(everything, files, number, 2, tmp_path / "store")

    def opened_with(trunk, folder):
        task = make_task("sid", read_preset("sid", "daisy-tiny"))
        place = str(corpora / "VoxCeleb1")
        examples = open_examples(task, "train", place)
        return with_features(task, "train", examples, place, trunk, folder, live=False)

    data = opened_with(model, tmp_path / "store")
    np.testing.assert_allclose(data.entropy, speakers.entropy, rtol=1e-4)
    exits = np.full(len(names), model.config.num_layers), np.zeros(len(names), bool)
    crops = [Crop(index, 0, int(speakers.lengths[index])) for index in (0, 3)]
    ours, theirs = (each.read(crops, 16_000, exits, slice(None)) for each in (data, speakers))
    np.testing.assert_allclose(ours["items"], theirs["items"], rtol=1e-2, atol=1e-2)
    with pytest.raises(InputError, match="holds model of another model; give a store"):
        opened_with(made_model(seed=4), tmp_path / "store")
    # What is refused is what the stores say of themselves; these have a row without features.
    listed.write_text(f"{corpora / 'VoxCeleb1'}\ngone.wav\n")
    files = read_list(listed)
    encode_shard(Extractor(model, contents.labels()), files, 0, 1, tmp_path / "labels")
    with pytest.raises(InputError, match="holds labels; give a store"):
        opened_with(model, tmp_path / "labels")
    # As many layers as it says, from the first on, but not all that the model has.
    encode_shard(Extractor(model, contents.layers((0, 1, 2))), files, 0, 1, tmp_path / "some")
    with pytest.raises(InputError, match="does not hold the layers 3; store all"):
        opened_with(model, tmp_path / "some")


def batch_of(data, rule, crops, width=16_000):
    return data.read(crops, width, rule.exits(data.entropy), slice(None))


def crops_of(data, count):
    """Rows for any number of devices; the last ones fill the batch."""
    crops = [Crop(index, 0, int(data.lengths[index])) for index in range(count)]
    return crops + [Crop(0, 0, 0)] * (-count % 4 or 4)


# ---- features ----


@TRUNK_INSIDE
@pytest.mark.parametrize("tap", ["block", "ffn"])
def test_stored_and_computed_features_are_the_same(corpora, model, middle, tap):
    if tap == "ffn":
        item0 = {"tap": "ffn", "item0": "projection"}
        model = model.replace(config=dataclasses.replace(model.config, **item0))
    params = {"layer_weights": np.linspace(-1, 1, LAYERS + 1, dtype=np.float32)}
    found = []
    for live in (False, True):
        data = opened("sid", corpora, model, live)
        rule = middle if tap == "block" else fixed_layer(2, LAYERS)
        batch = batch_of(data, rule, crops_of(data, 5))
        arguments = (params, data.trunk, rule.threshold, rule.allowed, batch)
        found.append(jax.tree.map(np.asarray, run_features(*arguments)))
    stored, computed = found
    np.testing.assert_array_equal(stored.num_frames, computed.num_frames)
    np.testing.assert_array_equal(stored.exit_layer, computed.exit_layer)
    assert stored.exit_layer[-1] == stored.num_frames[-1] == 0  # a row that fills the batch
    for row, count in enumerate(stored.num_frames.tolist()):
        assert not count or stored.forced[row] == computed.forced[row]
        ours, theirs = stored.pooled[row, :count], computed.pooled[row, :count]
        np.testing.assert_allclose(ours, theirs, atol=5e-3)


def test_features_stop_at_each_utterances_own_exit(speakers, middle):
    batch = batch_of(speakers, middle, crops_of(speakers, 6))
    weights = np.linspace(-1, 1, LAYERS + 1, dtype=np.float32)
    params = {"layer_weights": weights}
    arguments = (params, None, middle.threshold, middle.allowed, batch)
    found = np.asarray(run_features(*arguments).pooled)
    pool_alone = jax.jit(pool)
    for row, layer in enumerate(batch["exit_layer"].tolist()[:6]):
        kept = batch["items"][row : row + 1, : layer + 1].astype(np.float32)
        alone = pool_alone(kept, weights[: layer + 1], np.array([layer], np.int32))
        np.testing.assert_allclose(found[row], np.asarray(alone)[0], atol=1e-5)


def test_a_crop_of_stored_features_is_that_part_of_the_utterance(speakers, middle):
    start, length = 5 * audio.FRAME_HOP, int(speakers.lengths[2])
    whole = batch_of(speakers, middle, [Crop(2, 0, length)])
    part = batch_of(speakers, middle, [Crop(2, start, length - start)])
    count = int(part["num_frames"][0])
    assert count == int(whole["num_frames"][0]) - 5
    np.testing.assert_array_equal(part["items"][0, :, :count], whole["items"][0, :, 5 : 5 + count])


@TRUNK_INSIDE
def test_each_device_runs_the_trunk_on_its_own_rows_alone(corpora, model, middle):
    data = opened("sid", corpora, model, live=True)
    placed = parallel.place(batch_of(data, middle, crops_of(data, 8)))
    weights = {"layer_weights": np.zeros(LAYERS + 1, np.float32)}
    arguments = parallel.replicate((weights, data.trunk))
    lowered = run_features.lower(*arguments, 0.5, middle.allowed, placed)
    program = lowered.compile().as_text()
    assert "all-gather" not in program
    frames = audio.frame_count(16_000)
    assert f"f32[3,{frames},{SMALL.dim}]" in program  # 12 rows over four devices
    assert f"f32[12,{frames},{SMALL.dim}]" not in program


# ---- gradients ----


def loss_of(params, trunk, data, rule, batch):
    arguments = (params, trunk, rule.threshold, rule.allowed, batch)
    features = training.batch_features(*arguments)
    pooled, frames = features.pooled, features.num_frames
    targets = jax.tree.map(jnp.asarray, batch["targets"])
    return data.task.loss(params["head"], pooled, frames, targets, None)


def test_superbs_sum_has_no_layer_norm(speakers, middle, params):
    batch = batch_of(speakers, middle, crops_of(speakers, 3))
    scores = np.linspace(-1, 1, LAYERS + 1, dtype=np.float32)
    params = {**params, "layer_weights": jnp.asarray(scores)}
    arguments = (params, None, middle.threshold, middle.allowed, batch)
    plain = training.batch_features(*arguments, normalized=False).pooled
    for row, layer in enumerate(batch["exit_layer"]):
        weights = np.exp(scores[: layer + 1].astype(np.float64))
        items = batch["items"][row, : layer + 1].astype(np.float64)
        wanted = np.tensordot(weights / weights.sum(), items, axes=1)
        np.testing.assert_allclose(np.asarray(plain[row]), wanted, atol=1e-5 * np.abs(wanted).max())
    step_of = {}
    for normalize in (True, False):
        settings = dataclasses.replace(speakers.task.settings, normalize=normalize)
        task = type(speakers.task)(settings)
        optimizer = head_optimizer(1e-3, settings)
        state = jax.tree.map(jnp.array, (params, optimizer.init(params)))
        one = {**batch, "number": np.asarray(0, np.int32)}
        arguments = (None, middle.threshold, middle.allowed, jax.tree.map(jnp.asarray, one))
        with jax.numpy_dtype_promotion("standard"):  # which Optax needs
            step_of[normalize] = downstream_step(task, optimizer, 0)(state, *arguments)[1]["loss"]
    targets = jax.tree.map(jnp.asarray, batch["targets"])
    frames = jnp.asarray(batch["num_frames"])
    wanted = speakers.task.loss(params["head"], plain, frames, targets, None)
    assert float(step_of[False]) == pytest.approx(float(wanted), rel=1e-5)
    assert float(step_of[True]) != pytest.approx(float(wanted), rel=1e-3)


def test_the_optimizer_has_the_epsilon_of_its_preset():
    settings = dataclasses.replace(read_preset("se", "superb"), clip=1e9)
    gradient = jnp.asarray([3e-7], jnp.float32)
    for epsilon in (1e-7, 1e-8):
        optimizer = head_optimizer(1.0, dataclasses.replace(settings, epsilon=epsilon))
        with jax.numpy_dtype_promotion("standard"):
            update, _ = optimizer.update(gradient, optimizer.init(gradient), gradient)
        assert float(update[0]) == pytest.approx(-3e-7 / (3e-7 + epsilon), rel=1e-4)


def test_no_gradient_reaches_the_trunk(corpora, model, middle, params):
    data = opened("sid", corpora, model, live=True)
    batch = batch_of(data, middle, crops_of(data, 3))

    def loss(params, trunk, rule):
        return loss_of(params, trunk, data, rule, batch)

    gradient = jax.jit(jax.grad(lambda *both: loss(*both, fixed_layer(2, LAYERS)), argnums=(0, 1)))
    to_params, to_trunk = gradient(params, data.trunk)
    assert not any(np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(to_trunk))
    assert all(np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(to_params["head"]))
    # With exits the trunk has no gradient at all; the head's and the weights' are finite.
    to_params = jax.jit(jax.grad(lambda params: loss(params, data.trunk, middle)))(params)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(to_params))


def test_weights_of_layers_that_nobody_reaches_have_no_gradient(speakers, params):
    def loss(params, batch):
        return loss_of(params, None, speakers, fixed_layer(LAYERS, LAYERS), batch)

    run = jax.jit(jax.grad(loss))
    for layer in range(1, LAYERS + 1):
        rule = fixed_layer(layer, LAYERS)
        batch = batch_of(speakers, rule, crops_of(speakers, 4))
        gradient = np.asarray(run(params, batch)["layer_weights"])
        assert np.all(gradient[: layer + 1] != 0)
        assert not np.any(gradient[layer + 1 :])


# ---- evaluation ----


@TRUNK_INSIDE
def test_one_executable_serves_every_exit(corpora, model, middle, params):
    for live in (False, True):
        data = opened("sid", corpora, model, live)
        evaluator = Evaluator(data, 10.0)
        evaluator(params, middle)
        compiled = evaluator._run._cache_size()
        evaluator(params, middle._replace(threshold=0.1))
        evaluator(params, middle._replace(allowed=np.arange(LAYERS) == 1))
        assert evaluator._run._cache_size() == compiled


def test_an_evaluation_has_every_utterance_once_whatever_the_batches(speakers, middle, params):
    evaluate_one, evaluate_many = (Evaluator(speakers, seconds) for seconds in (1.0, 30.0))
    one, many = (evaluate(params, middle) for evaluate in (evaluate_one, evaluate_many))
    assert one.utterances == many.utterances
    assert one.loss == pytest.approx(many.loss, rel=1e-5)
    assert [each.id for each in one.utterances] == speakers.examples.corpus.names
    exits, forced = middle.exits(speakers.entropy)
    assert [each.exit_layer for each in one.utterances] == exits.tolist()
    assert [each.forced for each in one.utterances] == forced.tolist()
    hits = [each.measured.values["accuracy"][0] for each in one.utterances]
    assert one.value("accuracy") == pytest.approx(np.mean(hits))
    told = np.full(len(exits), 2), np.zeros(len(exits), bool)
    oracle = evaluate_many(params, middle, told)
    assert {each.exit_layer for each in oracle.utterances} == {2}


def test_a_measure_that_is_not_defined_for_an_utterance_is_left_out():
    utterances = [
        training.Utterance(str(value), 16_000, 1, False, Measured({"pesq": (value, 1.0)}))
        for value in (2.0, float("nan"), 3.0)
    ]
    evaluation = training.Evaluation(utterances, 0.5)
    assert evaluation.value("pesq") == 2.5
    assert len(evaluation.measure("pesq")[0]) == 2
    assert evaluation.value("loss") == 0.5


@TRUNK_INSIDE
def test_separation_is_evaluated_on_waveforms_of_true_length(corpora, model):
    data = opened("ss", corpora, model, live=False)
    params = params_of(data)
    found = Evaluator(data, 10.0)(params, fixed_layer(1, LAYERS))
    # New masks are all about one half: half the mixture improves nothing.
    assert found.value("si_sdri") == pytest.approx(0, abs=1.0)
    assert [each.samples for each in found.utterances] == [12_800, 14_400, 16_000]


def test_entropies_alone_are_no_features(corpora, model):
    data = opened("sid", corpora, model, live=True)
    part = data._store.folder
    with pytest.raises(InputError, match="does not hold the layers 0, 1, 2, 3"):
        with_features(data.task, "train", data.examples, "", model, part, live=False)


def test_exits_are_told_to_stored_features_alone(corpora, model, params):
    data = opened("sid", corpora, model, live=True)
    told = np.ones(len(data.lengths), np.int32), np.zeros(len(data.lengths), bool)
    with pytest.raises(InputError, match="exits can be told only where features are stored"):
        Evaluator(data, 10.0)(params, fixed_layer(1, LAYERS), told)


# ---- rules and folders ----


def test_a_rule_on_stored_entropies_decides_as_encode(speakers, model, middle):
    exits, forced = middle.exits(speakers.entropy)
    corpus = speakers.examples.corpus
    waveforms = [corpus.read(index, 0, int(corpus.lengths[index])) for index in range(6)]
    batch = audio.pad_batch(waveforms)
    out = daisy_jax.encode(model, *batch, threshold=middle.threshold, allowed=middle.allowed)
    np.testing.assert_array_equal(out.exit_layer, exits[:6])
    np.testing.assert_array_equal(out.forced, forced[:6])


def test_a_fixed_layer_needs_no_branches():
    rule = fixed_layer(2, 4)
    exits, forced = rule.exits(np.zeros((3, 0), np.float32))
    assert exits.tolist() == [2, 2, 2]
    assert forced.all()
    assert not rule.evaluated.any()
    with pytest.raises(InputError, match="layer 5 of a model with 4 layers"):
        fixed_layer(5, 4)


def test_exits_are_counted_by_hand():
    found = count_exits(np.array([1, 3, 3, 4]), np.array([False, False, False, True]), 5)
    assert found == {
        "format": "daisy_jax_exits/1",
        "exit_counts": [1, 0, 2, 1, 0],
        "forced_counts": [0, 0, 0, 1, 0],
        "mean": 2.75,
        "min": 1,
        "max": 4,
    }


@pytest.mark.parametrize("name", ["asr", "sid", "se", "ss"])
def test_a_head_comes_back_from_its_folder(name, tmp_path):
    task = make_task(name, read_preset(name, "daisy-tiny"))
    classes = ("a", "b", "c") if name == "sid" else ()
    params = new_params(task, 16, 4, classes, 5)
    rule = ExitRule("ratio 0.7", 0.25, np.array([True, False, True, True]))
    exits = count_exits(np.array([1, 3]), np.array([False, True]), 4)
    entropy = np.array([3, 2, 1, 0.5], np.float32)
    saved = TrainedHead(task, params, SMALL.dim, "p", classes, "0f", "here", entropy, rule, exits)
    save_head(tmp_path / "head", saved)
    found = load_head(tmp_path / "head")
    assert found.task.settings == task.settings
    assert found[2:7] == saved[2:7]
    assert found.exits == exits
    np.testing.assert_array_equal(found.mean_entropy, entropy)
    assert found.rule[:2] == rule[:2]
    np.testing.assert_array_equal(found.rule.allowed, rule.allowed)
    for ours, theirs in zip(jax.tree.leaves(found.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_what_is_no_head_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no config\.json there; give the head"):
        load_head(tmp_path)
    task = make_task("sid", read_preset("sid", "daisy-tiny"))
    exits = count_exits(np.array([1]), np.array([False]), 4)
    rule, entropy = fixed_layer(4, 4), np.zeros(4, np.float32)
    params = new_params(task, 16, 4, ("a", "b"), 0)
    save_head(
        tmp_path,
        TrainedHead(task, params, SMALL.dim, "p", ("a", "b"), "", "", entropy, rule, exits),
    )
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"classes": ["a", "b", "c"]}))
    with pytest.raises(InputError, match=r"head\.output\.kernel has the shape"):
        load_head(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"format": "other"}))
    with pytest.raises(InputError, match="format is 'other'"):
        load_head(tmp_path)


@pytest.mark.parametrize("name", ["downstream", "branches"])
def test_a_run_goes_on_as_it_was_begun_on_another_device(name, tmp_path):
    """What the device decides is decided once; a choice that is said is held against it later."""
    script = runpy.run_path(str(ROOT / "train" / f"{name}.py"))
    begun = {"dtype": "bfloat16", "accelerator": "gpu", "seed": 3}
    begun |= {"cache": "entropies"} if name == "downstream" else {}
    (tmp_path / "config.json").write_text(json.dumps(begun))
    values = dict(steps=2, batch_size=1, learning_rate=0.1, save_every=1)
    values |= {"task": "asr"} if name == "downstream" else {"crop_seconds": 1.0}

    def found(folder=tmp_path, **options):
        config = as_begun(script["Config"](**values, **options), str(folder))
        assert (config.accelerator, config.seed) == ("auto", 0)
        return config.dtype, getattr(config, "cache", "entropies")

    as_first = "auto" if name == "downstream" else "entropies"
    assert found() == ("auto", as_first)
    assert found(resume=True) == ("bfloat16", "entropies")
    assert found(resume=True, dtype="float32") == ("float32", "entropies")
    assert found(tmp_path / "new", resume=True) == ("auto", as_first)
