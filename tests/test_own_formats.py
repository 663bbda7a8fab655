"""What we wrote and somebody changed: other types, cut files, flipped bits, kills half way."""

import copy
import json
import os
import pathlib
import runpy
import shutil

import jax
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import sounds
from flax import nnx
from made_models import SMALL, made_model
from safetensors.numpy import load_file, save_file

import daisy_jax
from daisy_jax import InputError
from daisy_jax.checkpoints import save_calibration
from daisy_jax.commands.calibrate import Calibrate
from daisy_jax.conversions.convert import convert
from daisy_jax.conversions.sources import saved_features
from daisy_jax.data import durations, noisy_folder
from daisy_jax.data.corpus import open_corpus
from daisy_jax.data.file_list import read_list
from daisy_jax.data.noisy_corpus import read_speakers
from daisy_jax.data.prepared import PreparedCorpus, prepare
from daisy_jax.exits import Calibration, ExitRule
from daisy_jax.features import contents
from daisy_jax.features.codebook import load_codebook
from daisy_jax.features.extract import Extractor, encode_shard, extract_corpus
from daisy_jax.features.store import FeatureStore
from daisy_jax.study.evaluated_runs import read_evaluation
from daisy_jax.tasks.lexicon_decoding import read_lexicon
from daisy_jax.tasks.presets import make_task, read_preset
from daisy_jax.tasks.trained_heads import TrainedHead, count_exits, load_head, save_head
from daisy_jax.tasks.training import new_params
from daisy_jax.training.cluster_targets import load_targets
from daisy_jax.training.metrics_log import read_metrics


@pytest.fixture(scope="module")
def model():
    return made_model(SMALL)


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    return sounds.speech_folder(tmp_path_factory.mktemp("own") / "speech", 3, (0.3, 0.6))


# ---------------------------------------------------------------- other types in our JSON


def a_model(folder, model, speech):
    daisy_jax.save(model, folder)
    return folder / "config.json", lambda: daisy_jax.load(folder)


def a_prepared_folder(folder, model, speech):
    prepare([speech], folder)
    return folder / "index.json", lambda: PreparedCorpus(folder)


def a_head(folder, name):
    task = make_task("sid", read_preset("sid", "daisy-tiny"))
    params = new_params(task, 16, 4, ("a", "b", "c"), 5)
    rule = ExitRule("ratio 0.7", 0.25, np.array([True, False, True, True]))
    exits = count_exits(np.array([1, 3]), np.array([False, True]), 4)
    entropy = np.array([3, 2, 1, 0.5], np.float32)
    head = TrainedHead(task, params, 16, "p", ("a", "b", "c"), "0f", "here", entropy, rule, exits)
    save_head(folder, head)
    return folder / name, lambda: load_head(folder)


def remembered_durations(folder, model, speech):
    durations.keep(speech, {"entries": {"a": durations.Entry(1, 2, 3, 4, None)}})
    return durations._cache_file(speech), lambda: open_corpus(speech).lengths.sum()


def settings_of_mixtures(folder, model, speech):
    folder.mkdir()
    path = folder / noisy_folder.SETTINGS
    path.write_text(json.dumps({"format": noisy_folder.FORMAT, "seed": 1}))
    return path, lambda: noisy_folder.write_noisy(folder, [], speech, {"seed": 1})


def metrics(folder, model, speech):
    folder.mkdir()
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": [0.5, 0.25]}\n')
    return folder / "metrics.jsonl", lambda: read_metrics(folder)


TRAINED = {"steps": 9, "batch_size": 2, "learning_rate": 0.1}
EVALUATION = {
    **{"run": "r", "task": "sid", "title": "Speakers", "whole": [9, 3], "trained": "ratio 1"},
    **{"trained_on": "a", "training_utterances": 9, "data": "d", "tested_on": "b"},
    **{"utterances": 3, "hours": 0.1, "mean_entropy": [0.5], "decoder": None, "device": "cpu"},
    "upstream": {"path": "m", "digest": "x", "layers": 3, "dim": 8},
    "settings": {
        **TRAINED,
        **{"preset": "superb", "ratio": 1.0, "threshold": None, "compute_of_layer": None},
        **{"normalize": True, "layer": None, "full": False, "settings": TRAINED},
    },
    "exits": {
        **{"format": "daisy_jax_exits/1", "exit_counts": [1, 2, 0], "forced_counts": [0, 0, 0]},
        **{"mean": 1.7, "min": 1, "max": 2},
    },
    "measures": {
        "accuracy": {"title": "accuracy", "unit": "%", "higher_is_better": True, "scale": 100.0}
    },
    "unprocessed": {"accuracy": 0.1},
    "rows": [
        {
            **{
                "rule": "ratio 1",
                "kind": "own",
                "value": None,
                "threshold": 0.5,
                "allowed": [1, 2],
            },
            "measures": {"accuracy": {"value": 0.5, "interval": [0.4, 0.6], "undefined": 0}},
            **{"mean_exit_layer": 2.0, "forced": 0.0, "layers_saved": 0.3},
            "multiply_adds_saved": 0.2,
            "time_saved": {
                **{"value": 0.2, "interval": [0.1, 0.3], "utterances": 2},
                "multiply_adds_saved": 0.2,
            },
        }
    ],
}


def an_evaluation(folder, model, speech):
    """As earlier versions wrote it: today's results.json is not what counts."""
    rows = [{"rule": "ratio 1", "id": "a", "accuracy_total": 1.0, "accuracy_weight": 1.0}]
    place = folder / "evaluation"
    place.mkdir(parents=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), place / "utterances.parquet")
    (place / "results.json").write_text(json.dumps(EVALUATION))
    report = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "eval" / "report.py"))

    def opened():
        evaluated = read_evaluation(folder)
        by_task = {evaluated.result["task"]: [evaluated]}
        report["table1"](by_task)
        report["task_tables"]([evaluated])

    return place / "results.json", opened


OWN = {
    "evaluation": an_evaluation,
    "model": a_model,
    "prepared": a_prepared_folder,
    "head": lambda folder, *_: a_head(folder, "config.json"),
    "exits": lambda folder, *_: a_head(folder, "exits.json"),
    "durations": remembered_durations,
    "mixtures": settings_of_mixtures,
    "metrics": metrics,
}
OTHERS = (None, True, -1, 2**70, 1.5, "", "../../secret", [], [None], {}, {"a": 1}, float("nan"))


def changed(content):
    """The content with each of its values in turn replaced by each of OTHERS, or left out."""
    places = []

    def visit(value, place):
        if isinstance(value, dict):
            for key in value:
                places.append((*place, key))
                visit(value[key], (*place, key))
        elif isinstance(value, list) and value:
            places.append((*place, 0))
            visit(value[0], (*place, 0))

    visit(content, ())
    for place in places:
        for other in (*OTHERS, KeyError):
            new = copy.deepcopy(content)
            holder = new
            for step in place[:-1]:
                holder = holder[step]
            if other is KeyError:
                del holder[place[-1]]
            else:
                holder[place[-1]] = other
            yield new


@pytest.mark.parametrize("name", OWN)
@pytest.mark.usefixtures("unchecked_annotations")
def test_other_types_are_one_line_or_do_not_matter(name, tmp_path, model, speech):
    path, opened = OWN[name](tmp_path / "it", model, speech)
    opened()
    whole = path.read_text()
    texts = [json.dumps(new) + "\n" for new in changed(json.loads(whole))]
    texts += ["", "{", "[]", "null", "[" * 100_000, '{"a":' * 100_000, whole[: len(whole) // 2]]
    refused = []
    for text in texts:
        path.write_text(text)
        try:
            opened()
        except (InputError, OSError) as error:
            refused.append(str(error))
    assert len(refused) > 3 or name == "durations"  # which are measured again
    for said in refused:
        assert "\n" not in said
        assert str(path.parent) in said


# ---------------------------------------------------------------- one commit point


def stop_at(monkeypatch, name):
    """The process dies when the file of this name would be replaced."""
    real = pathlib.Path.replace

    def replace(partial, target):
        if pathlib.Path(target).name == name:
            raise KeyboardInterrupt
        return real(partial, target)

    monkeypatch.setattr(pathlib.Path, "replace", replace)


def test_a_model_is_the_old_or_the_new_one_wherever_saving_stops(model, tmp_path, monkeypatch):
    other = daisy_jax.load()
    for name, wanted in (("model.safetensors", model), ("config.json", other)):
        folder = tmp_path / name
        daisy_jax.save(model, folder)
        with monkeypatch.context() as context:
            stop_at(context, name)
            with pytest.raises(KeyboardInterrupt):
                daisy_jax.save(other, folder)
        found = daisy_jax.load(folder)
        assert found.config == wanted.config
        np.testing.assert_array_equal(found.layers.ffn.up.kernel, wanted.layers.ffn.up.kernel)


def test_a_calibration_keeps_its_own_name_wherever_it_stops(model, tmp_path, monkeypatch):
    layers = model.config.num_layers
    calibrations = {
        "old": Calibration(np.full((2, layers), 0.5, np.float16), "old"),
        "new": Calibration(np.full((3, layers), 0.25, np.float16), "new"),
    }
    for name, wanted in (("model.safetensors", "old"), ("config.json", "new")):
        folder = tmp_path / name
        daisy_jax.save(model.replace(calibration=calibrations["old"]), folder)
        with monkeypatch.context() as context:
            stop_at(context, name)
            with pytest.raises(KeyboardInterrupt):
                save_calibration(folder, calibrations["new"])
        found = daisy_jax.load(folder).calibration
        assert found.dataset == wanted
        np.testing.assert_array_equal(found.entropy, calibrations[wanted].entropy)
        # And what was interrupted can be done again.
        save_calibration(folder, calibrations["new"])
        assert daisy_jax.load(folder).calibration.dataset == "new"


def test_a_config_that_a_person_edits_counts(model, tmp_path):
    daisy_jax.save(model, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    content = json.loads(path.read_text())
    content["model"]["normalize_input"] = not model.config.normalize_input
    path.write_text(json.dumps(content))
    found = daisy_jax.load(tmp_path / "model")
    assert found.config.normalize_input != model.config.normalize_input


# ---------------------------------------------------------------- flipped bits


def test_a_flipped_bit_in_a_model_is_noticed(model, tmp_path):
    daisy_jax.save(model, tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    content = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    header = 8 + int.from_bytes(content[:8], "little")
    for place in rng.integers(header, len(content), 20):
        content[place] ^= 1
        path.write_bytes(content)
        with pytest.raises(InputError, match="has changed since it was written"):
            daisy_jax.load(tmp_path / "model")
        content[place] ^= 1


def test_a_model_of_an_earlier_version_has_no_digest_and_is_read(model, tmp_path):
    daisy_jax.save(model, tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors, path)
    config = tmp_path / "model" / "config.json"
    content = json.loads(config.read_text())
    del content["sha256"]
    config.write_text(json.dumps(content))
    assert daisy_jax.load(tmp_path / "model").config == model.config


@pytest.fixture
def store(model, speech, tmp_path):
    folder = shutil.copytree(speech, tmp_path / "speech")
    extractor = Extractor(model, contents.layers((1,)))
    return extract_corpus(tmp_path / "store", extractor, open_corpus(folder), folder)


def rewritten(path, edit):
    """The part with some rows changed, and everything else as it was."""
    table = pyarrow.parquet.read_table(path)
    rows = table.to_pylist()
    edit(rows)
    new = pyarrow.Table.from_pylist(rows, table.schema)
    pyarrow.parquet.write_table(new, path)


def without_digest(path):
    """The part as earlier versions wrote it."""
    table = pyarrow.parquet.read_table(path)
    metadata = dict(table.schema.metadata)
    ((key, text),) = [item for item in metadata.items() if b"daisy_jax" in item[0]]
    source = json.loads(text)
    del source["rows"]
    schema = table.schema.with_metadata({key: json.dumps(source)})
    pyarrow.parquet.write_table(table.cast(schema), path)


EDITS = {
    "an entropy": (lambda rows: rows[0]["entropy"].__setitem__(0, 0.125), "its rows are not those"),
    "an id": (lambda rows: rows[0].update(id="other"), "its rows are not those"),
}
WRONG_ROWS = {
    "a way out": (lambda rows: rows[0].update(id="../../secret"), "leads out of the store"),
    "an absolute id": (lambda rows: rows[0].update(id="/etc/passwd"), "leads out of the store"),
    "negative samples": (lambda rows: rows[0].update(samples=-1), "negative numbers"),
    "another shard": (lambda rows: rows[0].update(shard=7), "belongs elsewhere"),
    "no path": (lambda rows: rows[0].update(path=None), "lacks a value"),
    "NaN": (lambda rows: rows[0].update(entropy=[float("nan")]), "holds NaN"),
}


@pytest.mark.parametrize("name", EDITS)
def test_changed_rows_are_noticed(store, name):
    edit, said = EDITS[name]
    (part,) = (store.folder / "index").glob("*.parquet")
    rewritten(part, edit)
    (problem,) = store.verify()
    assert said in problem
    with pytest.raises(InputError, match=said):
        FeatureStore(store.folder)


@pytest.mark.parametrize("name", WRONG_ROWS)
def test_rows_that_cannot_be_are_refused_without_a_digest_too(store, name):
    edit, said = WRONG_ROWS[name]
    (part,) = (store.folder / "index").glob("*.parquet")
    without_digest(part)
    FeatureStore(store.folder)
    rewritten(part, edit)
    with pytest.raises(InputError, match=said):
        FeatureStore(store.folder)


def test_a_part_copied_over_another_is_refused(model, speech, tmp_path, monkeypatch):
    monkeypatch.setattr("daisy_jax.features.extract.SHARD_UTTERANCES", 2)
    extractor = Extractor(model, contents.layers((1,)))
    store = extract_corpus(tmp_path / "store", extractor, open_corpus(speech), speech)
    first, second = sorted((store.folder / "index").glob("*.parquet"))
    kept = second.read_bytes()
    second.write_bytes(first.read_bytes())
    with pytest.raises(InputError, match="belongs elsewhere"):
        FeatureStore(store.folder)
    second.write_bytes(kept)
    shutil.copy(second, second.with_name("00007.parquet"))
    with pytest.raises(InputError):
        FeatureStore(store.folder)


def test_a_recording_that_was_replaced_is_encoded_again(model, speech, tmp_path):
    folder = shutil.copytree(speech, tmp_path / "speech")
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.flac"))
    (tmp_path / "list.tsv").write_text("\n".join([str(folder), *names]) + "\n")
    extractor = Extractor(model, contents.layers((1,)))
    files = read_list(tmp_path / "list.tsv")

    def stored():
        encode_shard(extractor, files, 0, 1, tmp_path / "store")
        store = FeatureStore(tmp_path / "store")
        return store.read(1), (store.folder / "index" / "00000.parquet").stat().st_mtime_ns

    before, written = stored()
    assert stored()[1] == written
    path = folder / names[1]
    sounds.write(path, np.roll(daisy_jax.audio.load(path), 999), 16_000)
    after, again = stored()
    assert again != written
    assert not np.array_equal(after, before)
    path.unlink()  # what is gone has not changed
    assert stored()[1] == again


# ---------------------------------------------------------------- numbers that are none


def no_digest(folder, edit):
    """The tensors changed by somebody who writes no digest, as other programs do not."""
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


def with_value(name, value):
    return lambda tensors: tensors[name].__setitem__((0,) * tensors[name].ndim, value)


def with_type(name, kind):
    return lambda tensors: tensors.update({name: np.ones(tensors[name].shape, kind)})


KERNEL, ENTROPY = "layers.ffn.up.kernel", "calibration.entropy"
NO_NUMBERS = {
    "NaN": (with_value(KERNEL, np.nan), f"{KERNEL} holds NaN or infinite"),
    "infinite": (with_value(KERNEL, -np.inf), f"{KERNEL} holds NaN or infinite"),
    "int8": (with_type(KERNEL, np.int8), f"{KERNEL} holds int8, not floating"),
    "complex": (with_type(KERNEL, np.complex64), f"{KERNEL} holds complex64|not read"),
    "entropy of NaN": (with_value(ENTROPY, np.nan), f"{ENTROPY} holds NaN"),
    "negative entropy": (with_value(ENTROPY, -1), f"{ENTROPY} is negative"),
    "no entropies": (
        lambda tensors: tensors.update({ENTROPY: tensors[ENTROPY][:0]}),
        "instead of",
    ),
}


@pytest.mark.parametrize("name", NO_NUMBERS)
def test_numbers_that_are_none_are_refused_where_the_file_is_read(model, speech, tmp_path, name):
    edit, said = NO_NUMBERS[name]
    layers = model.config.num_layers
    entropy = np.full((2, layers), 0.5, np.float16)
    daisy_jax.save(model.replace(calibration=Calibration(entropy, "here")), tmp_path / "model")
    no_digest(tmp_path / "model", edit)
    with pytest.raises(InputError, match=said) as error:
        daisy_jax.load(tmp_path / "model")
    assert str(tmp_path / "model" / "model.safetensors") in str(error.value)
    if "calibrate the model again" in str(error.value):  # which must be possible
        assert Calibrate(str(tmp_path / "model"), (str(speech),), "again").run() == 0
        assert daisy_jax.load(tmp_path / "model").calibration.dataset == "again"


def test_a_type_that_cannot_hold_a_weight_is_refused(model, tmp_path):
    kernel = model.layers.ffn.up.kernel[...].at[0, 0, 0].set(1e6)
    changed = jax.tree.map(lambda leaf: leaf, model)
    changed.layers.ffn.up.kernel = nnx.Param(kernel)
    with pytest.raises(InputError, match=f"float16 cannot hold {KERNEL}"):
        daisy_jax.save(changed, tmp_path / "model", dtype="float16")
    daisy_jax.save(changed, tmp_path / "model", dtype="bfloat16")


# ---------------------------------------------------------------- pipes and devices


STREAMS = {
    "a list": lambda path, _: read_list(path),
    "a model's config": lambda path, _: daisy_jax.load(path.parent),
    "a checkpoint": lambda path, _: convert(path, path.parent / "out"),
    "centroids": lambda path, _: load_codebook(path),
    "speakers": lambda path, _: read_speakers(path),
    "a lexicon": lambda path, _: read_lexicon(path),
    "a preset": lambda path, _: read_preset("sid", str(path)),
    "targets": lambda path, _: load_targets(path),
    "features": lambda path, _: saved_features(path),
    "samples of a prepared folder": lambda path, _: PreparedCorpus(path.parent),
}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no such pipes")
@pytest.mark.parametrize("name", STREAMS)
def test_a_pipe_is_refused_before_it_is_opened(name, model, tmp_path):
    names = {"a model's config": "config.json", "a preset": "x.toml"}
    path = tmp_path / names.get(name, "pipe")
    if name == "samples of a prepared folder":
        index = {"format": "daisy_jax_audio/1", "names": ["a"], "lengths": [1], "samples": "pipe"}
        (tmp_path / "index.json").write_text(json.dumps(index))
    os.mkfifo(path)
    with pytest.raises((InputError, OSError)) as error:
        STREAMS[name](path, model)
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)


@pytest.mark.skipif(not pathlib.Path("/dev/zero").exists(), reason="this system has no /dev/zero")
def test_a_device_is_no_checkpoint(tmp_path):
    with pytest.raises(InputError, match="/dev/zero: is a pipe or a device; give a file"):
        convert("/dev/zero", tmp_path / "out")
    with pytest.raises(InputError, match="/dev/zero: is a pipe or a device; give a file"):
        read_list("/dev/zero")
