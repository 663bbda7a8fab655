"""Folders that cannot be converted: each ends in one line naming the flaw; nothing is written."""

import json
import sys

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file
from torch_models import (
    WEIGHTS,
    change_json,
    change_tensors,
    small_folder,
    to_shards,
    to_torch_file,
)

from daisy_jax import InputError
from daisy_jax.conversions.convert import convert

QUERY = "encoder.layers.1.attention.q_proj.weight"
GAIN = "encoder.pos_conv_embed.conv.parametrizations.weight.original0"


@pytest.fixture
def folder(tmp_path):
    """A folder of a small Base-like model, to be spoilt by the tests."""
    return small_folder(tmp_path / "theirs")


def _set(name, make):
    return lambda tensors: tensors.update({name: make(tensors.get(name))})


@pytest.mark.parametrize(
    ("change", "offenders"),
    [
        (lambda tensors: {n: t for n, t in tensors.items() if n != QUERY}, [f"{QUERY} is missing"]),
        (_set("extra.weight", lambda _: torch.ones(2)), ["extra.weight is unknown"]),
        (_set(QUERY, lambda t: t[:7]), [f"{QUERY} has the shape (7, 48) instead of (48, 48)"]),
        (_set(GAIN, lambda t: t[0]), [f"{GAIN} has the shape (1, 16) instead of (1, 1, 16)"]),
        (_set(QUERY, lambda t: t.int()), [f"{QUERY} is int32, not one of float16"]),
        (_set(QUERY, lambda t: t * torch.nan), [f"{QUERY} with ", "gives NaN or infinite values"]),
        (
            lambda tensors: {
                "encoder.layer_norm.bias": torch.ones(3),
                "other": torch.ones(1),
                "another": torch.ones(1),
            },
            [
                "68 tensors do not fit",
                "encoder.layer_norm.bias has the shape (3,) instead of (48,)",
                "encoder.layers.2.feed_forward.output_dense.bias is missing",
                f"{GAIN} is missing",
                "other is unknown",
            ],
        ),
        (lambda _: {"a": torch.ones(1)}, ["1 tensors are too few for the 3 layers"]),
    ],
)
def test_tensors_that_do_not_fit_are_all_named(folder, change, offenders):
    change_tensors(folder, change)
    _assert_refused(folder, offenders)


def _assert_refused(folder, parts):
    """One line that names the source, and nothing written."""
    with pytest.raises(InputError) as caught:
        convert(folder, folder.parent / "ours")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(folder))
    for part in parts:
        assert part in message
    assert not (folder.parent / "ours").exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_type", "wavlm"),
        ("model_type", "wav2vec2"),
        ("model_type", "data2vec-audio"),
        ("conv_kernel", [10, 3, 3, 3, 3, 3, 3]),
        ("conv_stride", [5, 2, 2, 2, 2, 2]),
        ("conv_dim", [32, 32, 32, 32, 32, 32, 64]),
        ("conv_dim", [32] * 6),
        ("hidden_act", "gelu_new"),
        ("feat_extract_activation", "relu"),
        ("feat_extract_norm", "batch"),
        ("layer_norm_eps", 1e-6),
        ("conv_pos_batch_norm", True),
        ("feat_proj_layer_norm", False),
        ("add_adapter", True),
        ("adapter_attn_dim", 16),
        ("num_attention_heads", 5),
        ("conv_bias", "yes"),
    ],
)
def test_models_that_we_cannot_hold_are_refused_by_name_and_value(folder, field, value):
    change_json(folder / "config.json", **{field: value})
    ours = "num_heads" if field == "num_attention_heads" else field
    _assert_refused(folder, [f"{ours} is {value!r}"])


def _cut(folder, name, share=0.5):
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: int(len(data) * share)])


def _cut_torch_file(folder):
    to_torch_file(folder)
    _cut(folder, "pytorch_model.bin")


class _Malicious:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code of a checkpoint was run')",))


def _plant_code(folder, **options):
    (folder / WEIGHTS).unlink()
    torch.save({"weight": _Malicious()}, folder / "pytorch_model.bin", **options)


def _lose_shard(folder):
    to_shards(folder, "safetensors", save_file)
    (folder / "model-00002-of-00002.safetensors").unlink()


def _wrong_shard(folder):
    to_shards(folder, "safetensors", save_file)
    save_file({"a": torch.ones(1)}, folder / "model-00002-of-00002.safetensors")


def _copy_into_other_shard(folder):
    first, second = (folder / f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    tensors, others = load_file(first), load_file(second)
    save_file(others | dict([next(iter(tensors.items()))]), second)


def _with_one_more(folder):
    places = json.loads((folder / f"{WEIGHTS}.index.json").read_text())["weight_map"]
    return places | {"one.more": next(iter(places.values()))}


def _first_tensor(folder, change):
    """Changes a weight that the model needs."""
    tensors = load_file(folder / WEIGHTS)
    name = next(name for name in sorted(tensors) if name.endswith("fc1.weight") or "dense" in name)
    save_file(tensors | {name: change(tensors[name])}, folder / WEIGHTS, {"format": "pt"})


FLAWS = {
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "no weights there; put model.safetensors or"),
    "cut off": (lambda f: _cut(f, WEIGHTS), "not a whole safetensors file"),
    "torch file cut off": (_cut_torch_file, "not a whole torch file"),
    "torch file of a list": (
        lambda f: (to_torch_file(f), torch.save([1], f / "pytorch_model.bin")),
        "holds a list, where tensors by name were wanted",
    ),
    "code": (_plant_code, "an object of builtins.exec, whose code is never run"),
    "code, old format": (
        lambda f: _plant_code(f, _use_new_zipfile_serialization=False),
        "an object of builtins.exec, whose code is never run",
    ),
    "shard lost": (_lose_shard, "its shard model-00002-of-00002.safetensors is not in the folder"),
    "wrong shard": (_wrong_shard, "holds tensors that are not listed as its own: a"),
    "shard elsewhere": (
        lambda f: (
            (f / WEIGHTS).rename(f.parent / WEIGHTS),
            change_json(f / f"{WEIGHTS}.index.json", weight_map={"a": f"../{WEIGHTS}"}),
        ),
        "is not in the folder",
    ),
    "tensor in both shards": (
        lambda f: (to_shards(f, "safetensors", save_file), _copy_into_other_shard(f)),
        "holds tensors that are not listed as its own: ",
    ),
    "shard incomplete": (
        lambda f: (
            to_shards(f, "safetensors", save_file),
            change_json(f / f"{WEIGHTS}.index.json", weight_map=_with_one_more(f)),
        ),
        "no shard holds one.more",
    ),
    "empty index": (
        lambda f: (
            (f / WEIGHTS).unlink(),
            change_json(f / f"{WEIGHTS}.index.json", weight_map={}),
        ),
        "no weight_map",
    ),
    "pointer": (
        lambda f: (f / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\n"),
        "run git lfs pull",
    ),
    "NaN": (
        lambda f: _first_tensor(f, lambda t: torch.full_like(t, torch.nan)),
        "gives NaN or infinite values",
    ),
    "int8": (lambda f: _first_tensor(f, lambda t: t.to(torch.int8)), "is int8, not one of float16"),
    "no JSON": (lambda f: _cut(f, "config.json"), "not JSON"),
    "rate": (
        lambda f: change_json(f / "preprocessor_config.json", sampling_rate=8000),
        "sampling_rate is 8000; HuBERT needs 16000",
    ),
    "no config": (lambda f: (f / "config.json").unlink(), "not a checkpoint of a known format"),
}


@pytest.mark.parametrize("flaw", FLAWS)
def test_flawed_folders_are_refused(folder, flaw):
    spoil, message = FLAWS[flaw]
    spoil(folder)
    _assert_refused(folder, [message])


def test_torch_is_needed_for_torch_files_only(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    convert(folder, folder.parent / "with-safetensors")
    monkeypatch.undo()
    to_torch_file(folder)
    monkeypatch.setitem(sys.modules, "torch", None)
    _assert_refused(folder, ["pip install 'daisy-jax[convert]'"])
