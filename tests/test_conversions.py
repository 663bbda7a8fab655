"""Conversion of transformers folders: every spelling gives the same model, and is reported."""

import hashlib
import pathlib
import re

import numpy as np
import pytest
import tyro

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
huggingface_hub = pytest.importorskip("huggingface_hub")

from programs import COMMAND, run_here
from safetensors.torch import load_file, save_file
from torch_models import (
    LARGE,
    SMALL,
    WEIGHTS,
    change_json,
    change_tensors,
    drawn_model,
    small_folder,
    to_shards,
    to_torch_file,
)

import daisy_jax
from daisy_jax import InputError
from daisy_jax.checkpoints import abstract_model, named_leaves
from daisy_jax.commands.convert import Convert
from daisy_jax.conversions.convert import convert


@pytest.fixture
def folder(tmp_path):
    """A folder of a small Base-like model."""
    return small_folder(tmp_path / "theirs")


def _converted(folder, name="ours"):
    """The report, and the model's tensors by name."""
    report = convert(folder, folder.parent / name)
    return report, load_file(folder.parent / name / WEIGHTS)


def _assert_same(actual, desired):
    assert actual.keys() == desired.keys()
    for name, tensor in desired.items():
        assert torch.equal(actual[name], tensor), name


def _old_weight_norm(tensors):
    return {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): tensor
        for name, tensor in tensors.items()
    }


SPELLINGS = {
    "old weight norm": lambda folder: change_tensors(folder, _old_weight_norm),
    "prefix": lambda folder: change_tensors(
        folder, lambda tensors: {f"hubert.{name}": tensor for name, tensor in tensors.items()}
    ),
    "torch file": to_torch_file,
    "shards": lambda folder: to_shards(folder, "safetensors", save_file),
    "torch shards": lambda folder: to_shards(folder, "bin", torch.save),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_other_spellings_give_the_same_model(folder, spelling):
    report, desired = _converted(folder)
    SPELLINGS[spelling](folder)
    other, actual = _converted(folder, "again")
    _assert_same(actual, desired)
    assert other.used == report.used == 67
    assert len(other.sha256) == (2 if "shards" in spelling else 1)


def test_report_says_what_was_read_and_what_to_do(folder):
    report, tensors = _converted(folder)
    digest = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    assert report.sha256 == ((str(folder / WEIGHTS), digest),)
    assert report.parameters == sum(tensor.numel() for tensor in tensors.values())
    text = str(report)
    for part in (
        "transformers folder",
        "3 post-LN layers of width 48, 4 heads, front end of 32 channels with group norm",
        "67 used, 0 ignored",
        "head          absent",
        "branches      absent",
        "--head-from and the fairseq or s3prl checkpoint of the same model",
    ):
        assert part in text
    assert daisy_jax.load(folder.parent / "ours").config == report.config


@pytest.mark.parametrize(
    ("kind", "fields", "ignored"),
    [
        ("HubertForCTC", {}, ("lm_head.bias", "lm_head.weight")),
        (
            "HubertForSequenceClassification",
            {"use_weighted_layer_sum": True},
            (
                *("classifier.bias", "classifier.weight", "layer_weights"),
                *("projector.bias", "projector.weight"),
            ),
        ),
    ],
)
def test_models_with_other_heads_give_their_trunk(tmp_path, kind, fields, ignored):
    model = drawn_model(getattr(transformers, kind), **SMALL, **fields)
    model.save_pretrained(tmp_path / "whole")
    model.hubert.save_pretrained(tmp_path / "trunk")
    report, actual = _converted(tmp_path / "whole")
    assert report.ignored == ignored
    assert all(name in str(report) for name in ignored)
    _assert_same(actual, _converted(tmp_path / "trunk", "again")[1])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_half_precision_is_widened_before_anything_is_computed(folder, dtype, suffix):
    half = getattr(torch, dtype)
    change_tensors(folder, lambda tensors: {n: t.to(half).float() for n, t in tensors.items()})
    _, desired = _converted(folder)
    change_tensors(folder, lambda tensors: {n: t.to(half) for n, t in tensors.items()})
    if suffix == "bin":
        to_torch_file(folder)
    report, actual = _converted(folder, "again")
    _assert_same(actual, desired)
    assert all(tensor.dtype == torch.float32 for tensor in actual.values())
    assert f"written as float32, came as {dtype}" in str(report)


def test_a_kernel_is_gain_times_direction_of_unit_norm_per_tap(folder):
    tensors = load_file(folder / WEIGHTS)
    gain, direction = (t.double().numpy() for n, t in tensors.items() if "original" in n)
    kernel = _converted(folder)[1]["positional_convolution.convolution.kernel"].numpy()
    np.testing.assert_allclose(np.sqrt(np.sum(kernel**2.0, axis=(1, 2))), gain[0, 0], rtol=1e-6)
    tap = direction[:, :, 5]
    np.testing.assert_allclose(
        kernel[5].T, gain[0, 0, 5] * tap / np.linalg.norm(tap), rtol=1e-6, atol=1e-8
    )


def test_absent_mask_embedding_is_zero_and_said(folder):
    change_tensors(
        folder, lambda tensors: {n: t for n, t in tensors.items() if n != "masked_spec_embed"}
    )
    report, tensors = _converted(folder)
    assert not tensors["mask_embedding"].any()
    assert "no masked_spec_embed in the weights" in str(report)


@pytest.mark.parametrize(
    ("shape", "name", "content", "normalize", "note"),
    [
        ({}, None, {}, False, "off, assumed from the group norm of the front end"),
        (LARGE, None, {}, True, "on, assumed from the layer norm of the front end"),
        ({}, "preprocessor_config.json", {"do_normalize": True}, True, "on, as preprocessor_"),
        (LARGE, "preprocessor_config.json", {"do_normalize": False}, False, "off, as preproc"),
        ({}, "preprocessor_config.json", {}, True, "on, as preprocessor_config.json says"),
        (
            {},
            "processor_config.json",
            {"feature_extractor": {"do_normalize": True}},
            True,
            "on, as processor_config.json says",
        ),
    ],
)
def test_input_normalisation(tmp_path, shape, name, content, normalize, note):
    drawn_model(**SMALL, **shape).save_pretrained(tmp_path / "theirs")
    if name:
        change_json(tmp_path / "theirs" / name, **content)
    report = convert(tmp_path / "theirs", tmp_path / "ours")
    assert daisy_jax.load(tmp_path / "ours").config.normalize_input is normalize
    assert f"input normalisation: {note}" in str(report)


def test_a_model_is_never_overwritten_or_converted_twice(folder):
    ours = folder.parent / "ours"
    convert(folder, ours)
    for source, destination in ((folder, folder), (folder, ours)):
        with pytest.raises(InputError, match="already holds a model"):
            convert(source, destination)
    with pytest.raises(InputError, match="a model folder of daisy_jax already"):
        convert(ours, folder.parent / "again")


def test_names_of_the_hub_are_explained(tmp_path, monkeypatch):
    def offline(name, **_):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no connection")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(OSError, match=r"no connection.*hf download facebook/hubert.*--local-dir"):
        convert("facebook/hubert-base-ls960", tmp_path / "ours")
    with pytest.raises(OSError, match="no such file or folder; give a checkpoint on this machine"):
        convert("folder/that/is/absent", tmp_path / "ours")


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_names_of_the_hub_are_downloaded(folder, monkeypatch, suffix):
    """safetensors where the hub has them, else torch files, never both."""
    if suffix == "bin":
        to_torch_file(folder)
    fetched = []

    def download(name, revision, allow_patterns):
        assert revision is None
        fetched.append((name, allow_patterns))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    report = convert("someone/hubert", folder.parent / "ours")
    assert report.used == 67
    patterns = [["*.json", "*.safetensors"], ["*.json", "*.bin"]]
    assert fetched == [("someone/hubert", p) for p in patterns[: 1 + (suffix == "bin")]]


def test_script_reports_or_prints_one_line(folder):
    done = run_here("conversions/convert.py", folder, folder.parent / "ours")
    assert (done.returncode, done.stderr) == (0, "")
    assert "67 used, 0 ignored" in done.stdout
    failed = run_here("conversions/convert.py", folder, folder)
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr.startswith("error: ")
    assert failed.stderr.count("\n") == 1


DOCS = pathlib.Path(__file__).parent.parent / "docs" / "checkpoints.md"
COMMANDS = re.findall(r"`?daisy-jax (convert [^`\n]+)", DOCS.read_text(encoding="utf-8"))


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_docs_are_understood(command):
    parsed = tyro.cli(Convert, args=command.split()[1:])
    assert parsed.source
    assert parsed.destination


def test_known_checkpoints_are_those_of_the_docs():
    text = DOCS.read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if re.match(r"\| (HuBERT|DAISY) ", line)]
    known = daisy_jax.known_checkpoints()
    assert len(rows) == len(known) == len({each.name for each in known})
    done = run_here(COMMAND, "info", "--known")
    assert done.returncode == 0, done.stderr
    for row, each in zip(rows, known, strict=True):
        parts = ", ".join(each.parts)
        cells = [each.model, each.source, f"`{each.name}`", parts, each.licence]
        assert row == f"| {' | '.join(cells)} |"
        assert set(each.parts) <= {"trunk", "prediction head", "branches"}
        for said in (each.name, f"{each.model} ({each.size}): {parts}", each.source, each.licence):
            assert said in done.stdout
    assert run_here(COMMAND, "info", "--known", "x").stderr.startswith("error: --known lists")


@pytest.mark.parametrize("conv_norm", ["group", "layer"])
def test_every_module_of_a_model_stands_in_the_docs(conv_norm):
    text = DOCS.read_text(encoding="utf-8")
    table = text[text.index("| name | shape |") :]
    config = daisy_jax.HubertConfig(conv_norm=conv_norm, num_clusters=2, num_classes=2)
    for name in [*named_leaves(abstract_model(config)), "calibration.entropy"]:
        module = re.sub(r"\.\d", ".{0..6}", name.rpartition(".")[0] or name)
        assert f"`{module}" in table, name
