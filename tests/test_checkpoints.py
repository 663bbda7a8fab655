import dataclasses
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from made_models import made_model
from safetensors.numpy import load_file, save_file

import daisy_jax
from daisy_jax.checkpoints import named_leaves, save_calibration
from daisy_jax.errors import InputError
from daisy_jax.exits import Calibration
from daisy_jax.model.config import HubertConfig

CONFIG = HubertConfig(
    num_layers=2,
    dim=8,
    ffn_dim=12,
    num_heads=2,
    conv_dim=4,
    pos_conv_kernel=4,
    pos_conv_groups=2,
    num_clusters=5,
    head_dim=3,
    num_classes=5,
)
LARGE_LIKE = dataclasses.replace(
    CONFIG, norm_first=True, conv_norm="layer", conv_bias=True, normalize_input=True, num_classes=0
)


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    entropy = np.random.default_rng(1).uniform(0, 3, (7, 2)).astype(np.float16)
    return Calibration(entropy, "made speech, größer")


@pytest.fixture
def folder(tmp_path, calibration):
    daisy_jax.save(made_model(CONFIG, calibration), tmp_path / "model")
    return tmp_path / "model"


def assert_same(model, other) -> None:
    ours, theirs = named_leaves(model), named_leaves(other)
    assert list(ours) == list(theirs)
    for name, leaf in ours.items():
        assert leaf.dtype == theirs[name].dtype
        np.testing.assert_array_equal(leaf, theirs[name], err_msg=name)


@pytest.mark.parametrize("config", [CONFIG, LARGE_LIKE], ids=["base", "large"])
def test_a_model_comes_back_bit_by_bit(tmp_path, config):
    model = made_model(config)
    daisy_jax.save(model, tmp_path / "a" / "b")
    loaded = daisy_jax.load(tmp_path / "a" / "b")
    assert_same(loaded, model)
    assert loaded.config == config
    assert loaded.calibration is None
    assert jax.tree.structure(loaded) == jax.tree.structure(model)


def test_files_have_the_documented_names_and_content(folder):
    assert sorted(os.listdir(folder)) == ["config.json", "model.safetensors"]
    content = json.loads((folder / "config.json").read_text())
    assert content["format"] == "daisy_jax/1"
    assert content["model"] == dataclasses.asdict(CONFIG)
    tensors = load_file(folder / "model.safetensors")
    assert tensors["layers.ffn.up.kernel"].shape == (2, 8, 12)
    assert tensors["branches.kernel"].shape == (2, 8, 5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_short_storage_rounds_once_and_computes_in_float32(tmp_path, dtype):
    model = made_model(CONFIG)
    daisy_jax.save(model, tmp_path / "model", dtype=dtype)
    stored = load_file(tmp_path / "model" / "model.safetensors")
    loaded = named_leaves(daisy_jax.load(tmp_path / "model"))
    for name, leaf in named_leaves(model).items():
        rounded = np.asarray(leaf).astype(jnp.dtype(dtype))
        assert stored[name].dtype == jnp.dtype(dtype)
        assert loaded[name].dtype == jnp.float32
        np.testing.assert_array_equal(loaded[name], rounded.astype(np.float32), err_msg=name)
    daisy_jax.save(daisy_jax.load(tmp_path / "model"), tmp_path / "again", dtype=dtype)
    again = load_file(tmp_path / "again" / "model.safetensors")
    for name, tensor in stored.items():
        np.testing.assert_array_equal(again[name], tensor)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_short_trunk_keeps_branches_and_head_exact(folder, tmp_path, dtype, monkeypatch):
    model = made_model(CONFIG)
    # As where there is a GPU; tests/test_layer_arrays.py has what a CPU does.
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    loaded = daisy_jax.load(folder, dtype=dtype)
    for name, leaf in named_leaves(loaded).items():
        exact = name.startswith(("branches.", "head."))
        assert leaf.dtype == (jnp.float32 if exact else jnp.dtype(dtype)), name
        np.testing.assert_array_equal(leaf, named_leaves(model)[name].astype(leaf.dtype))
    daisy_jax.save(loaded, tmp_path / "short")  # both types in one file
    assert_same(daisy_jax.load(tmp_path / "short", dtype=dtype), loaded)


def test_an_unknown_dtype_is_refused_by_name(folder):
    for call in (
        lambda: daisy_jax.load(folder, dtype="float8"),
        lambda: daisy_jax.save(made_model(CONFIG), folder, dtype="int8"),
    ):
        with pytest.raises(InputError, match="must be one of float32, bfloat16, float16"):
            call()
    assert_same(daisy_jax.load(folder), made_model(CONFIG))


def test_a_calibration_comes_back_as_float16(folder, calibration):
    loaded = daisy_jax.load(folder).calibration
    assert loaded == calibration
    assert loaded.entropy.dtype == np.float16
    assert loaded.dataset == "made speech, größer"
    np.testing.assert_array_equal(loaded.mean_entropy, calibration.mean_entropy)


def test_a_float32_calibration_is_rounded_to_float16(tmp_path):
    entropy = np.random.default_rng(0).uniform(0, 3, (5, 2)).astype(np.float32)
    daisy_jax.save(made_model(CONFIG, Calibration(entropy, "x")), tmp_path / "model")
    loaded = daisy_jax.load(tmp_path / "model").calibration
    np.testing.assert_array_equal(loaded.entropy, entropy.astype(np.float16))


def test_arrays_that_are_not_contiguous_are_written_right(tmp_path):
    # safetensors writes their memory as it lies, without an error.
    model = made_model(CONFIG)
    turned = jax.tree.map(lambda leaf: np.asfortranarray(np.asarray(leaf)), model)
    entropy = np.asfortranarray(np.arange(6, dtype=np.float16).reshape(3, 2))
    turned = turned.replace(calibration=Calibration(entropy, "x"))
    daisy_jax.save(turned, tmp_path / "model")
    assert_same(daisy_jax.load(tmp_path / "model"), model)
    np.testing.assert_array_equal(daisy_jax.load(tmp_path / "model").calibration.entropy, entropy)


class FullDisk:
    """Stands in for a writer: leaves half a file and fails as a full disk does."""

    def __call__(self, *arguments, **options):
        for argument in arguments:
            if isinstance(argument, os.PathLike):
                with open(argument, "wb") as stream:
                    stream.write(b"half")
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("fails", ["tensors", "config"])
@pytest.mark.parametrize("before", ["without calibration", "with calibration"])
def test_a_full_disk_keeps_the_old_model(tmp_path, monkeypatch, calibration, fails, before):
    path = tmp_path / "model"
    old = made_model(CONFIG, calibration if before == "with calibration" else None)
    daisy_jax.save(old, path)
    other = made_model(LARGE_LIKE, None if old.calibration else calibration)
    with monkeypatch.context() as patch:
        if fails == "tensors":
            patch.setattr("daisy_jax.whole_files.tensors.save_file", FullDisk())
        else:
            patch.setattr("pathlib.Path.write_text", FullDisk())
        with pytest.raises(OSError, match="No space left"):
            daisy_jax.save(other, path)
    loaded = daisy_jax.load(path)
    assert_same(loaded, old)
    assert loaded.calibration == old.calibration
    assert sorted(os.listdir(path)) == ["config.json", "model.safetensors"]
    daisy_jax.save(other, path)
    assert_same(daisy_jax.load(path), other)


def test_a_folder_that_cannot_be_made_is_an_os_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        daisy_jax.save(made_model(CONFIG), tmp_path / "file")


def test_a_folder_without_a_model_says_what_a_model_is(tmp_path, folder):
    (tmp_path / "bare").mkdir()
    for path in (tmp_path / "nowhere", tmp_path / "bare", folder / "model.safetensors"):
        with pytest.raises(FileNotFoundError, match=r"no config.json there; give a folder"):
            daisy_jax.load(path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no model.safetensors there"):
        daisy_jax.load(folder)


def change_tensors(folder, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_every_wrong_tensor_is_listed(folder):
    def change(tensors):
        del tensors["mask_embedding"], tensors["head.projection.bias"]
        tensors["layers.extra"] = np.zeros(3, np.float32)
        tensors["branches.kernel"] = np.ascontiguousarray(tensors["branches.kernel"][..., :4])

    change_tensors(folder, change)
    with pytest.raises(InputError) as error:
        daisy_jax.load(folder)
    message = str(error.value)
    assert message.startswith(str(folder / "model.safetensors"))
    assert "mask_embedding is missing" in message
    assert "head.projection.bias is missing" in message
    assert "layers.extra is not part of the model" in message
    assert "branches.kernel has the shape (2, 8, 4) instead of (2, 8, 5)" in message
    assert "\n" not in message


@pytest.mark.parametrize("shape", [(7,), (7, 3), (2, 7)])
def test_a_calibration_of_another_model_is_refused(folder, shape):
    def change(tensors):
        tensors["calibration.entropy"] = np.zeros(shape, np.float16)

    change_tensors(folder, change)
    with pytest.raises(InputError, match=r"calibration.entropy has the shape"):
        daisy_jax.load(folder)


@pytest.mark.parametrize(
    ("agreement", "said"),
    [
        (np.zeros((7, 3), np.float16), "has the shape"),
        (np.full((7, 2), 1.5, np.float16), "outside of 0 to 1"),
        (np.full((7, 2), np.nan, np.float16), "NaN"),
    ],
)
def test_a_faulty_agreement_is_refused(folder, agreement, said):
    change_tensors(folder, lambda tensors: tensors.update({"calibration.agreement": agreement}))
    with pytest.raises(InputError, match=rf"calibration.agreement.*{said}.*calibrate the model"):
        daisy_jax.load(folder)


def test_agreements_are_stored_with_the_calibration(folder):
    model = daisy_jax.load(folder)
    agreement = np.linspace(0, 1, 14, dtype=np.float16).reshape(7, 2)
    calibration = dataclasses.replace(model.calibration, agreement=agreement)
    daisy_jax.save(model.replace(calibration=calibration), folder)
    assert daisy_jax.load(folder).calibration == calibration
    save_calibration(folder, model.calibration)  # of before they were kept
    assert daisy_jax.load(folder).calibration == model.calibration


def test_a_calibration_in_one_of_the_files_alone_is_refused(folder):
    change_tensors(folder, lambda tensors: tensors.pop("calibration.entropy"))
    with pytest.raises(InputError, match="disagree about the calibration"):
        daisy_jax.load(folder)


@pytest.mark.parametrize("size", [0, 4, 100, -1])
def test_a_cut_off_tensor_file_is_refused(folder, size):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(InputError, match="not a whole safetensors file") as error:
        daisy_jax.load(folder)
    assert str(error.value).startswith(str(path))


def edited(**changes):
    def edit(content):
        content["model"].update(changes)

    return edit


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda content: content.update(format="daisy_jax/9"), "this version reads 'daisy_jax/1'"),
        (lambda content: content.pop("format"), "format is None"),
        (lambda content: content.pop("model"), "model"),
        (lambda content: content.pop("calibration"), "calibration"),
        (lambda content: content.update(model=3), r"Expected `object`, got `int` - at `\$.model`"),
        (edited(colour="red"), r"unknown fields \['colour'\]"),
        (lambda content: content["model"].pop("dim"), r"lacks the fields \['dim'\]"),
        (edited(dim="eight"), "dim is 'eight'"),
        (edited(num_heads=3), "must divide"),
        (edited(tap="middle"), "tap is 'middle'"),
    ],
)
@pytest.mark.usefixtures("unchecked_annotations")
def test_a_wrong_config_is_refused_in_one_line(folder, edit, said):
    path = folder / "config.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=said) as error:
        daisy_jax.load(folder)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1, 2]", b"null"])
def test_a_config_that_is_not_a_json_object_is_refused(folder, content):
    (folder / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=r"config.json: (not JSON|not UTF-8|Expected `object`)"):
        daisy_jax.load(folder)
