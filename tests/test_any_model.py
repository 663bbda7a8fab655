"""One line to a model: checkpoints of other libraries are converted once, and kept."""

import json
import pathlib
import shutil
import sys

import numpy as np
import pytest
from made_models import made_model
from torch_models import SMALL, change_json, drawn_model, small_folder, to_torch_file

import daisy_jax
from daisy_jax import InputError
from daisy_jax.checkpoints import named_leaves
from daisy_jax.conversions import any_model
from daisy_jax.conversions.convert import convert

huggingface_hub = pytest.importorskip("huggingface_hub")

REVISION = "0" * 39 + "1"


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Where converted models are kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "daisy_jax" / "models"


@pytest.fixture
def converted(monkeypatch):
    """What was converted, in order."""
    done = []

    def watched(source, destination):
        done.append(str(source))
        return convert(source, destination)

    monkeypatch.setattr(any_model, "convert", watched)
    return done


def assert_same(ours, theirs):
    for name, leaf in named_leaves(ours).items():
        np.testing.assert_array_equal(leaf, named_leaves(theirs)[name])
    assert ours.config == theirs.config


@pytest.mark.parametrize("form", ["folder", "torch folder", "file"])
def test_a_checkpoint_is_converted_once(form, tmp_path, kept, converted, monkeypatch):
    source = small_folder(tmp_path / "theirs")
    if form == "torch folder":
        to_torch_file(source)
    if form == "file":
        source = source / "model.safetensors"
    first = daisy_jax.load(source)
    convert(source, tmp_path / "ours")
    assert_same(first, daisy_jax.load(tmp_path / "ours"))
    (folder,) = kept.iterdir()
    assert folder.name.startswith("model-" if form == "file" else "theirs-")
    assert json.loads((folder / "source.json").read_text())["source"] == str(source)
    # The next time without any of these.
    for name in ("torch", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    assert_same(daisy_jax.load(str(source)), first)
    assert converted == [str(source)]


def test_another_content_is_converted_again(tmp_path, kept, converted):
    source = small_folder(tmp_path / "theirs")
    daisy_jax.load(source)
    change_json(source / "config.json", num_attention_heads=6)
    assert daisy_jax.load(source).config.num_heads == 6
    drawn_model(seed=1, **SMALL).save_pretrained(source)
    daisy_jax.load(source)
    assert len(converted) == len(list(kept.iterdir())) == 3


def test_model_folders_are_read_where_they_are(tmp_path, kept, converted):
    model = made_model()
    daisy_jax.save(model, tmp_path / "ours")
    assert_same(daisy_jax.load(tmp_path / "ours"), model)
    (tmp_path / "ours" / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"ours.config\.json: not JSON"):
        daisy_jax.load(tmp_path / "ours")
    with pytest.raises(FileNotFoundError, match="give a folder written by"):
        daisy_jax.load(tmp_path)
    assert converted == []
    assert not kept.exists()


def test_what_is_no_hubert_leaves_nothing_behind(tmp_path, kept):
    source = small_folder(tmp_path / "theirs")
    change_json(source / "config.json", model_type="wav2vec2")
    with pytest.raises(InputError, match="only 'hubert' models can be converted"):
        daisy_jax.load(source)
    assert list(kept.iterdir()) == []
    (tmp_path / "notes.txt").write_text("no checkpoint")
    with pytest.raises(InputError, match=r"notes\.txt"):
        daisy_jax.load(tmp_path / "notes.txt")


def test_two_processes_may_convert_at_once(tmp_path, kept, monkeypatch):
    source = small_folder(tmp_path / "theirs")
    calls = []

    def overtaken(source, destination):
        calls.append(destination)
        if len(calls) == 1:  # another process is faster
            daisy_jax.load(source)
        return convert(source, destination)

    monkeypatch.setattr(any_model, "convert", overtaken)
    model = daisy_jax.load(source)
    assert len(calls) == 2
    (folder,) = kept.iterdir()
    assert_same(daisy_jax.load(folder), model)


# ---- the hub ----


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder in the layout of the hub's cache with someone/hubert, and no connection."""
    place = tmp_path / "hub" / "models--someone--hubert"
    small_folder(place / "snapshots" / REVISION)
    for name in ("main", "v2"):
        (place / "refs" / name).parent.mkdir(exist_ok=True)
        (place / "refs" / name).write_text(REVISION)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return place


@pytest.mark.parametrize("revision", ["", "@v2", f"@{REVISION}"])
def test_a_name_of_the_hub_is_enough(revision, hub, kept, converted, monkeypatch):
    name = f"someone/hubert{revision}"
    model = daisy_jax.load(name)
    assert_same(model, daisy_jax.load(hub / "snapshots" / REVISION))
    shutil.rmtree(hub)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert_same(daisy_jax.load(name), model)
    found = [json.loads(path.read_text())["source"] for path in kept.glob("*/source.json")]
    assert name in found


def test_a_name_that_the_hub_cannot_give_is_one_line(hub, kept, monkeypatch):
    said = "nobody/hubert: no such file or folder, and the hub could not"
    with pytest.raises(FileNotFoundError, match=said):
        daisy_jax.load("nobody/hubert")
    with pytest.raises(FileNotFoundError, match="someone/hubert@v3: no such file"):
        daisy_jax.load("someone/hubert@v3")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(FileNotFoundError, match=r"needs pip install 'daisy-jax\[convert\]'"):
        daisy_jax.load("someone/hubert")


def test_a_conversion_by_other_rules_is_made_again(hub, kept, converted, monkeypatch):
    daisy_jax.load("someone/hubert")
    monkeypatch.setattr(any_model, "RULES", any_model.RULES + 1)
    daisy_jax.load("someone/hubert")
    daisy_jax.load("someone/hubert")
    assert len(converted) == len(list(kept.iterdir())) == 2
    assert pathlib.Path(converted[0]).name == REVISION
