"""Checking conversions against PyTorch, and the way back to transformers."""

import dataclasses
import json
import pathlib
import re

import formats
import numpy as np
import pytest
from formats import SIZES, load_case

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import sounds
from made_models import SMALL, made_model
from make_references import FIELDS, KIND_FIELDS
from programs import COMMAND, run_here
from torch_models import drawn_model

import daisy_jax
from daisy_jax import InputError
from daisy_jax.checkpoints import named_leaves
from daisy_jax.conversions.convert import convert
from daisy_jax.conversions.export import export


def verify(*arguments):
    return run_here("conversions/verify.py", *arguments)


def write(content, path):
    torch.save(formats.to_tensors(content), path)
    return path


# ---------------------------------------------------------------- verify.py


@pytest.mark.slow("compares whole models with PyTorch")
@pytest.mark.parametrize(
    ("make", "kind", "lines"),
    [
        (formats.fairseq, "base", ["hidden state 2: ", "frame labels: ", "score lost by the"]),
        (formats.torchaudio_pretraining, "large", ["hidden state 2: ", "frame labels: "]),
        (formats.daisy, "base", ["hidden state 0: ", "entropy 1, nats: ", "entropy 2, nats: "]),
    ],
)
def test_right_conversions_are_found_equal(tmp_path, make, kind, lines):
    source = write(make(load_case(kind)), tmp_path / "source.pt")
    convert(source, tmp_path / "ours", num_heads=SIZES["heads"])
    done = verify(tmp_path / "ours", "--against", source)
    assert (done.returncode, done.stderr) == (0, "")
    for line in [*lines, "equal within the tolerance"]:
        assert line in done.stdout


@pytest.mark.parametrize("extractor", [True, False])
def test_transformers_whole_pipeline_is_compared_on_quiet_audio(tmp_path, extractor):
    drawn_model(seed=7, **FIELDS, **KIND_FIELDS["large"]).save_pretrained(tmp_path / "theirs")
    if extractor:
        kind = transformers.Wav2Vec2FeatureExtractor
        kind(do_normalize=True).save_pretrained(tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "ours")
    quiet = 0.001 * np.random.default_rng(0).standard_normal(8_000)
    sounds.write(tmp_path / "quiet.wav", quiet, subtype="FLOAT")
    options = ["--against", tmp_path / "theirs", "--audio", tmp_path / "quiet.wav"]
    done = verify(tmp_path / "ours", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    # A model that normalises as fairseq does is found out.
    model = daisy_jax.load(tmp_path / "ours")
    config = dataclasses.replace(model.config, normalize_epsilon=1e-5)
    daisy_jax.save(model.replace(config=config), tmp_path / "other")
    done = verify(tmp_path / "other", *options)
    assert done.returncode == 1
    assert "hidden state 0: " in done.stdout
    assert ", beyond" in done.stdout


def test_transformers_itself_runs_on_its_folders(tmp_path):
    drawn_model(seed=7, **FIELDS, **KIND_FIELDS["large"]).save_pretrained(tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "ours")
    done = verify(tmp_path / "ours", "--against", tmp_path / "theirs")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("hidden state") == 3


@pytest.mark.slow("compares whole models with PyTorch")
def test_labels_are_compared_by_the_dictionarys_numbers(tmp_path):
    content = formats.fairseq(load_case("base"))
    symbols = content["task_state"]["dictionaries"][0]["symbols"]
    symbols[4:] = reversed(symbols[4:])
    source = write(content, tmp_path / "source.pt")
    convert(source, tmp_path / "ours")
    done = verify(tmp_path / "ours", "--against", source)
    assert done.returncode == 0, done.stderr
    assert "frame labels: 149 of 149 equal" in done.stdout
    # Labels that are the dictionary's rows would be found.
    model = daisy_jax.load(tmp_path / "ours")
    table = model.head.label_embeddings
    table[...] = table[::-1]
    daisy_jax.save(model, tmp_path / "rows")
    done = verify(tmp_path / "rows", "--against", source)
    assert done.returncode == 1
    assert "score lost by the labels" in done.stdout


@pytest.mark.slow("compares whole models with PyTorch")
def test_wrong_conversions_are_found(tmp_path):
    """One bias of one layer is off; published features are off as well."""
    case = load_case("base")
    source = write(formats.fairseq(case), tmp_path / "source.pt")
    convert(source, tmp_path / "ours")
    model = daisy_jax.load(tmp_path / "ours")
    bias = model.layers.ffn.down.bias
    bias[...] = bias[...].at[1, 3].add(0.01)
    daisy_jax.save(model, tmp_path / "spoilt")
    np.save(tmp_path / "features.npy", np.zeros((149, SIZES["dim"])) + 1)
    features = ["--features", tmp_path / "features.npy", "--features-layer", "1"]
    done = verify(tmp_path / "spoilt", "--against", source, *features)
    assert done.returncode == 1
    assert "hidden state 1: " in done.stdout
    assert done.stdout.count(", beyond") == 2
    assert done.stderr.startswith("error: the models differ in 2 places: hidden state 2")


@pytest.mark.parametrize(
    ("make", "spoil", "said"),
    [
        (formats.fairseq, lambda model: model.head.projection, "score lost by the labels"),
        (formats.daisy, lambda model: model.branches, "entropy 1, nats"),
    ],
)
def test_wrong_heads_and_branches_are_found(tmp_path, make, spoil, said):
    source = write(make(load_case("base")), tmp_path / "source.pt")
    convert(source, tmp_path / "ours")
    model = daisy_jax.load(tmp_path / "ours")
    kernel = spoil(model).kernel
    kernel[...] = -kernel[...]
    daisy_jax.save(model, tmp_path / "spoilt")
    done = verify(tmp_path / "spoilt", "--against", source)
    assert done.returncode == 1
    assert re.search(rf"{said}: .*, beyond", done.stdout)


def test_other_input_normalisation_is_found(tmp_path):
    source = write(formats.fairseq(load_case("base")), tmp_path / "source.pt")
    convert(source, tmp_path / "ours")
    fields = json.loads((tmp_path / "ours" / "config.json").read_text())
    fields["model"]["normalize_input"] = True
    (tmp_path / "ours" / "config.json").write_text(json.dumps(fields))
    done = verify(tmp_path / "ours", "--against", source)
    assert done.returncode == 1
    assert "treats input normalisation otherwise" in done.stderr


def test_parts_that_one_side_lacks_are_said(tmp_path):
    case = load_case("base")
    trunk = write(formats.torchaudio(case), tmp_path / "trunk.pth")
    convert(trunk, tmp_path / "ours", num_heads=SIZES["heads"])
    done = verify(tmp_path / "ours", "--against", write(formats.fairseq(case), tmp_path / "f.pt"))
    assert done.returncode == 0, done.stderr
    assert "prediction head: not compared, as only" in done.stdout


@pytest.mark.slow("compares whole models with PyTorch")
def test_published_features_are_checked(tmp_path):
    case = load_case("large")
    source = write(formats.fairseq(case), tmp_path / "source.pt")
    convert(source, tmp_path / "ours")
    audio = pathlib.Path(daisy_jax.__file__).parent / "samples" / "reading-3.flac"
    model = daisy_jax.load(tmp_path / "ours")
    out = daisy_jax.encode(model, daisy_jax.audio.load(audio)[None], return_hidden_states=True)
    np.save(tmp_path / "sample.L1.npy", out.hidden_states[0, 1])
    features = ["--features", tmp_path / "sample.L1.npy", "--features-layer", "1"]
    done = verify(tmp_path / "ours", "--against", source, *features)
    assert done.returncode == 0, done.stderr
    assert "sample.L1.npy, layer 1: 0.0e+00" in done.stdout


# ---------------------------------------------------------------- --to transformers


@pytest.mark.parametrize("kind", formats.KINDS)
def test_there_and_back_again(tmp_path, kind):
    """Every tensor is bit-equal; the positional kernel, which is refactored, equal to 1e-6."""
    first = drawn_model(seed=7, **FIELDS, **KIND_FIELDS[kind])
    first.save_pretrained(tmp_path / "first")
    convert(tmp_path / "first", tmp_path / "ours")
    report = export(tmp_path / "ours", tmp_path / "second")
    assert report.tensors == len(first.state_dict())
    assert report.left_out == ()
    second = transformers.HubertModel.from_pretrained(tmp_path / "second")
    before, after = first.state_dict(), second.state_dict()
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        if "parametrizations" not in name:
            assert torch.equal(after[name], tensor), name
    kernels = [model.encoder.pos_conv_embed.conv.weight.detach() for model in (first, second)]
    assert torch.allclose(*kernels, rtol=0, atol=1e-6 * float(kernels[0].abs().max()))
    waveform = torch.from_numpy(load_case(kind).waveform)[None]
    with torch.no_grad():
        outputs = [model(waveform).last_hidden_state for model in (first, second.eval())]
    assert torch.allclose(*outputs, rtol=0, atol=1e-5 * float(outputs[0].std()))
    assert convert(tmp_path / "second", tmp_path / "again").config == report_config(tmp_path)


def report_config(tmp_path):
    return daisy_jax.load(tmp_path / "ours").config


def test_export_says_what_it_leaves_out(tmp_path):
    calibration = daisy_jax.Calibration(np.ones((2, 3), np.float16), "set")
    daisy_jax.save(made_model(SMALL, calibration), tmp_path / "ours")
    report = export(tmp_path / "ours", tmp_path / "theirs")
    assert report.left_out == ("head", "branches", "calibration")
    assert "branches; a HubertModel has no place for it" in str(report)
    fields = json.loads((tmp_path / "theirs" / "preprocessor_config.json").read_text())
    assert fields["do_normalize"] is False
    model = transformers.HubertModel.from_pretrained(tmp_path / "theirs")
    assert model.config.num_hidden_layers == 3


def test_taps_of_zeros_survive_the_way_back(tmp_path):
    model = made_model(SMALL)
    kernel = model.positional_convolution.convolution.kernel
    kernel[...] = kernel[...].at[2].set(0)
    daisy_jax.save(model, tmp_path / "ours")
    words = ("convert", tmp_path / "ours", tmp_path / "theirs", "--to", "transformers")
    refused = run_here(COMMAND, *words, "--num-heads", 4)
    assert refused.returncode == 1
    assert "--to transformers writes the trunk alone; leave the rest out" in refused.stderr
    done = run_here(COMMAND, *words)
    assert done.returncode == 0, done.stderr
    convert(tmp_path / "theirs", tmp_path / "again")
    again = named_leaves(daisy_jax.load(tmp_path / "again"))
    name = "positional_convolution.convolution.kernel"
    np.testing.assert_allclose(again[name], kernel[...], rtol=0, atol=1e-6)


def test_export_refuses_what_it_must(tmp_path):
    daisy_jax.save(made_model(SMALL), tmp_path / "ours")
    with pytest.raises(InputError, match="already holds a model"):
        export(tmp_path / "ours", tmp_path / "ours")
    (tmp_path / "half" / "preprocessor_config.json").mkdir(parents=True)
    with pytest.raises(InputError, match="already holds a model"):
        export(tmp_path / "ours", tmp_path / "half")
    (tmp_path / "half" / "preprocessor_config.json").rmdir()
    (tmp_path / "half").rmdir()
    with pytest.raises(OSError, match=r"no config\.json there"):
        export(tmp_path / "absent", tmp_path / "theirs")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours"]
