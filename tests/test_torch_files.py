"""Pickled checkpoints: read without their libraries, and never run."""

import argparse
import collections
import contextlib
import pathlib
import re
import sys
import types
import zipfile

import formats
import numpy as np
import pytest
from formats import SIZES, load_case

torch = pytest.importorskip("torch")

import daisy_jax
from daisy_jax import InputError
from daisy_jax.conversions.convert import convert
from daisy_jax.conversions.torch_files import StandIn, read_torch_file

FORMATS = [name for name in formats.ALL if "DAISY," not in name and "trainer" not in name]
ZIP = pytest.mark.parametrize("zip", [True, False], ids=["zip", "legacy"])


@pytest.fixture
def case():
    return load_case("base")


def write(content, path, zip=True):
    torch.save(formats.to_tensors(content), path, _use_new_zipfile_serialization=zip)
    return path


@contextlib.contextmanager
def foreign(*names):
    """Classes of libraries that are not installed, importable while a file is written."""
    made, modules = [], []
    for name in names:
        parts = name.split(".")
        for depth in range(1, len(parts)):
            module = ".".join(parts[:depth])
            if module not in sys.modules:
                sys.modules[module] = types.ModuleType(module)
                modules.append(module)
        kind = type(parts[-1], (), {"__module__": ".".join(parts[:-1])})
        setattr(sys.modules[".".join(parts[:-1])], parts[-1], kind)
        made.append(kind)
    try:
        yield made
    finally:
        for module in modules:
            del sys.modules[module]


def made_of(kind, **attributes):
    instance = kind()
    vars(instance).update(attributes)
    return instance


@ZIP
@pytest.mark.parametrize("format", FORMATS)
def test_files_give_what_their_content_gives(case, tmp_path, format, zip):
    path = write(formats.ALL[format](case), tmp_path / "file.pt", zip)
    report = convert(path, tmp_path / "ours", num_heads=SIZES["heads"])
    model = daisy_jax.load(tmp_path / "ours")
    out = daisy_jax.encode(model, case.waveform[None])
    scale = np.std(case.hidden_states[-1])
    np.testing.assert_allclose(
        out.last_hidden[0] / scale, case.hidden_states[-1] / scale, rtol=0, atol=1e-5
    )
    name = {"DAISY": "the DAISY authors' checkpoint"}.get(format, format.split(",")[0])
    assert report.format.startswith(name)
    assert str(report)


@ZIP
def test_objects_of_fairseq_are_read_without_it(case, tmp_path, zip):
    """An old file: a Namespace, a Dictionary, numpy scalars beside the weights."""
    content = formats.to_tensors(formats.fairseq_old(case))
    content["args"] = argparse.Namespace(**content["args"])
    content["extra_state"] = {"val_loss": np.float64(1.5), "best": np.float32(2)}
    with foreign("fairseq.data.dictionary.Dictionary") as (dictionary,):
        symbols = made_of(dictionary, symbols=formats.symbols(), nspecial=4, unk_word="<unk>")
        content["task_state"] = {"dictionaries": [symbols]}
        torch.save(content, tmp_path / "old.pt", _use_new_zipfile_serialization=zip)
    assert "fairseq" not in sys.modules
    report = convert(tmp_path / "old.pt", tmp_path / "ours")
    assert report.config.num_clusters == formats.CLUSTERS
    labels = daisy_jax.frame_labels(daisy_jax.load(tmp_path / "ours"), case.waveform[None])
    assert labels[0].tolist() == case.labels.tolist()


@ZIP
def test_settings_of_omegaconf_are_read_without_it(case, tmp_path, zip):
    content = formats.to_tensors(formats.fairseq(case))
    names = (
        "omegaconf.dictconfig.DictConfig",
        "omegaconf.nodes.AnyNode",
        "omegaconf.base.ContainerMetadata",
    )
    with foreign(*names) as (mapping, leaf, metadata):

        def wrapped(value):
            if not isinstance(value, dict):
                return made_of(leaf, _val=value, _parent=None)
            inner = {name: wrapped(item) for name, item in value.items()}
            cache = collections.defaultdict(dict)
            known = made_of(metadata, key=None, object_type=dict, resolver_cache=cache)
            return made_of(mapping, _content=inner, _metadata=known)

        content["cfg"] = wrapped(content["cfg"])
        torch.save(content, tmp_path / "new.pt", _use_new_zipfile_serialization=zip)
    report = convert(tmp_path / "new.pt", tmp_path / "ours")
    write(formats.fairseq(case), tmp_path / "plain.pt")
    assert report.config == convert(tmp_path / "plain.pt", tmp_path / "plain").config


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_widened(case, tmp_path, dtype):
    content = formats.to_tensors(formats.fairseq(case))
    content["model"] = {name: tensor.to(dtype) for name, tensor in content["model"].items()}
    torch.save(content, tmp_path / "half.pt")
    report = convert(tmp_path / "half.pt", tmp_path / "ours")
    assert report.stored == str(dtype).removeprefix("torch.")
    weight = content["model"]["encoder.layers.1.fc1.weight"].float().numpy()
    model = daisy_jax.load(tmp_path / "ours")
    np.testing.assert_array_equal(model.layers.ffn.up.kernel[1], weight.T)


def test_grafts_from_files(case, tmp_path):
    trunk = write(formats.torchaudio(case), tmp_path / "trunk.pth")
    head = write(formats.fairseq(case), tmp_path / "head.pt")
    branches = write(formats.daisy(case), tmp_path / "branches.pt")
    report = convert(
        trunk, tmp_path / "ours", head_from=head, branches_from=branches, num_heads=SIZES["heads"]
    )
    assert [path for path, _ in report.sha256] == [str(trunk), str(head), str(branches)]
    for part in ("7 clusters", "7 classes", f"head: from {head}", f"branches: from {branches}"):
        assert part in str(report)
    model = daisy_jax.load(tmp_path / "ours")
    out = daisy_jax.encode(model, case.waveform[None], threshold=-np.inf)
    np.testing.assert_allclose(out.entropy[0], case.entropy[1], rtol=1e-5)
    labels = daisy_jax.frame_labels(model, case.waveform[None])
    assert labels[0].tolist() == case.labels.tolist()


def test_config_beside_a_transformers_file_counts(case, tmp_path):
    from make_references import FIELDS, KIND_FIELDS
    from torch_models import drawn_model

    drawn_model(seed=7, **FIELDS, **KIND_FIELDS["large"]).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"do_normalize": false}')
    report = convert(tmp_path / "model.safetensors", tmp_path / "ours")
    assert not report.config.normalize_input
    assert report.config.num_heads == SIZES["heads"]


# ---------------------------------------------------------------- files that are not served


class Code:
    """Unpickles by calling a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@ZIP
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda mark: Code(exec, f"open({str(mark)!r}, 'w')"), "builtins.exec"),
        (lambda mark: Code(getattr, pathlib.Path(mark), "touch"), "builtins.getattr"),
    ],
)
def test_code_is_named_and_not_run(case, tmp_path, make, name, zip):
    content = formats.to_tensors(formats.fairseq(case))
    content["extra_state"] = make(tmp_path / "mark")
    torch.save(content, tmp_path / "beside.pt", _use_new_zipfile_serialization=zip)
    report = str(convert(tmp_path / "beside.pt", tmp_path / "ours"))
    assert (
        f"as code in such files is not run; left out: extra_state (an object of {name})" in report
    )
    # Nothing of it may become a part of the model.
    content["model"]["mask_emb"] = content.pop("extra_state")
    torch.save(content, tmp_path / "bad.pt", _use_new_zipfile_serialization=zip)
    torch.save(content["model"]["mask_emb"], tmp_path / "alone.pt")
    for file, said in (("bad.pt", "mask_emb (an object of {}, whose"), ("alone.pt", "of {}, and")):
        with pytest.raises(InputError, match=re.escape(said.format(name))) as caught:
            convert(tmp_path / file, tmp_path / "not")
        assert "never run" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "mark").exists()
    assert not (tmp_path / "not").exists()


@ZIP
def test_objects_of_unknown_classes_are_left_out_by_name(case, tmp_path, zip):
    content = formats.to_tensors(formats.fairseq(case))
    with foreign("apex.amp.Scaler", "a.b.Loop") as (scaler, loop):
        content["extra_state"] = {"scaler": made_of(scaler, scale=1.0), "epoch": 3}
        content["criterion"] = made_of(loop, inner=made_of(scaler, scale=torch.ones(2)))
        torch.save(content, tmp_path / "file.pt", _use_new_zipfile_serialization=zip)
    report = str(convert(tmp_path / "file.pt", tmp_path / "ours"))
    assert "extra_state.scaler (an object of apex.amp.Scaler)" in report
    assert "criterion (an object of a.b.Loop)" in report


@ZIP
def test_what_torch_never_lets_in_is_refused_by_name(case, tmp_path, zip):
    content = formats.to_tensors(formats.fairseq(case))
    content["extra_state"] = Code(__import__("os").system, f"touch {tmp_path / 'mark'}")
    torch.save(content, tmp_path / "bad.pt", _use_new_zipfile_serialization=zip)
    with pytest.raises(
        InputError, match=r"needs posix\.system, and code in such files is never run"
    ):
        convert(tmp_path / "bad.pt", tmp_path / "ours")
    assert not (tmp_path / "mark").exists()


@ZIP
def test_functions_on_the_list_are_not_called(tmp_path, zip):
    """Even those are only stood in for: what they would make stays unmade."""
    path = tmp_path / "file.pt"
    torch.save({"a": np.float64(1)}, path, _use_new_zipfile_serialization=zip)
    assert isinstance(read_torch_file(path)["a"], StandIn)


@ZIP
@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_files_that_are_cut_off_are_said_to_be(case, tmp_path, zip, share):
    path = write(formats.fairseq(case), tmp_path / "cut.pt", zip)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InputError) as caught:
        convert(path, tmp_path / "ours")
    assert str(caught.value).startswith(str(path))
    assert "copy it again" in str(caught.value)
    assert not (tmp_path / "ours").exists()


def test_things_that_are_no_checkpoints_are_refused(tmp_path):
    (tmp_path / "text.pt").write_text("hello, I am a text file\n" * 100)
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.save([1, 2], tmp_path / "list.pt")
    for name, message in (
        ("text.pt", "not a whole torch file"),
        ("empty.pt", "copy it again"),
        ("list.pt", "holds a list, where tensors by name were wanted"),
    ):
        with pytest.raises(InputError) as caught:
            convert(tmp_path / name, tmp_path / "ours")
        assert message in str(caught.value)
        assert str(caught.value).startswith(str(tmp_path / name))


@pytest.mark.parametrize(
    "value",
    [torch.ones(3).to(torch.float8_e4m3fn), torch.eye(2).to_sparse()],
)
def test_tensors_that_numpy_lacks_disturb_only_where_they_are_used(case, tmp_path, value):
    content = formats.to_tensors(formats.fairseq(case))
    content["extra_state"] = {"state": value}
    torch.save(content, tmp_path / "beside.pt")
    convert(tmp_path / "beside.pt", tmp_path / "ours")
    content["model"]["mask_emb"] = value
    torch.save(content, tmp_path / "used.pt")
    with pytest.raises(InputError, match="wanted plain tensors only, but these are none: mask_emb"):
        convert(tmp_path / "used.pt", tmp_path / "again")


def test_endless_content_is_refused(case, tmp_path):
    content = formats.to_tensors(formats.fairseq(case))
    content["extra_state"] = []
    content["extra_state"].append(content["extra_state"])
    torch.save(content, tmp_path / "endless.pt")
    with pytest.raises(InputError, match="nested too deeply"):
        convert(tmp_path / "endless.pt", tmp_path / "ours")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("encoder_layers", np.int64(2), "encoder_layers is an object; wanted int"),
        ("encoder_layers", torch.tensor(2), "encoder_layers is an object; wanted int"),
        ("layer_norm_first", "${model.x}", r"layer_norm_first is '\$\{model.x\}'; wanted bool"),
        ("extractor_mode", ["default"], r"extractor_mode is \['default'\]; wanted str"),
        ("_name", torch.ones(2), "_name is an object; wanted str"),
        ("conv_pos", 8.5, r"conv_pos is 8\.5; wanted int"),
    ],
)
def test_settings_of_other_types_are_refused(case, tmp_path, name, value, message):
    content = formats.to_tensors(formats.fairseq(case))
    content["cfg"]["model"][name] = value
    torch.save(content, tmp_path / "odd.pt")
    with pytest.raises(InputError, match=message):
        convert(tmp_path / "odd.pt", tmp_path / "ours")


def test_shared_objects_are_read_once(case, tmp_path):
    content = formats.to_tensors(formats.fairseq(case))
    shared = [0]
    for _ in range(60):  # 2 to the power of 60 entries, if each were copied
        shared = [shared, shared]
    torch.save(content | {"extra_state": shared}, tmp_path / "shared.pt")
    convert(tmp_path / "shared.pt", tmp_path / "ours")
    torch.save(content, tmp_path / "plain.pt")
    convert(tmp_path / "plain.pt", tmp_path / "same")
    files = [tmp_path / name / "model.safetensors" for name in ("ours", "same")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_keys_that_take_for_ever_to_hash_are_refused(case, tmp_path):
    """A pickle of few bytes, in which a tuple holds another one twice, sixty times over."""
    twice = b"".join(b"h\x00h\x00\x86q\x00" for _ in range(60))
    pickled = b"\x80\x02}q\x01X\x01\x00\x00\x00a\x85q\x00" + twice + b"h\x01h\x00K\x01s."
    torch.save(formats.to_tensors(formats.fairseq(case)), tmp_path / "good.pt")
    with (
        zipfile.ZipFile(tmp_path / "good.pt") as good,
        zipfile.ZipFile(tmp_path / "bad.pt", "w") as bad,
    ):
        for name in good.namelist():
            bad.writestr(name, pickled if name.endswith("data.pkl") else good.read(name))
    (tmp_path / "old.pt").write_bytes(pickled)
    for name in ("bad.pt", "old.pt"):
        with pytest.raises(InputError, match="nested too deeply"):
            convert(tmp_path / name, tmp_path / "ours")


@pytest.mark.parametrize("content", [torch.ones(3), {"model": torch.ones(3), "cfg": {"model": {}}}])
def test_a_single_tensor_is_no_checkpoint(tmp_path, content):
    torch.save(content, tmp_path / "one.pt")
    with pytest.raises(InputError, match="holds a ndarray, where tensors by name were wanted"):
        convert(tmp_path / "one.pt", tmp_path / "ours")


def test_whole_floats_are_sizes(case, tmp_path):
    content = formats.fairseq(case)
    content["cfg"]["model"] |= {"conv_pos": 8.0, "logit_temp": 1}
    assert convert(write(content, tmp_path / "f.pt"), tmp_path / "o").config.pos_conv_kernel == 8


def test_safetensors_are_known_by_their_content(case, tmp_path):
    from safetensors.numpy import save_file

    save_file(case.tensors, tmp_path / "renamed.pt")
    report = convert(tmp_path / "renamed.pt", tmp_path / "ours", num_heads=SIZES["heads"])
    assert report.format == "transformers file"


def test_names_in_a_file_cannot_fake_the_report(case, tmp_path):
    content = case.tensors | {"lm_head.\x1b[2J\nwritten       /safe": np.ones(2, np.float32)}
    report = convert(
        write(content, tmp_path / "file.pt"), tmp_path / "ours", num_heads=SIZES["heads"]
    )
    assert "\x1b" not in str(report)
    assert str(report).count("\nwritten ") == 1


def test_destinations_are_checked_before_any_work(case, tmp_path):
    (tmp_path / "file").write_text("here")
    with pytest.raises(InputError, match="is a file; give a new folder"):
        convert(tmp_path / "absent.pt", tmp_path / "file")


def test_heads_beside_a_configuration_must_agree_with_it(case, tmp_path):
    path = write(formats.fairseq(case), tmp_path / "file.pt")
    with pytest.raises(InputError, match="has 2 attention heads by its configuration, not 8"):
        convert(path, tmp_path / "ours", num_heads=8)


def test_stored_references_are_what_pytorch_computes_today():
    pytest.importorskip("transformers")
    from make_references import make_reference

    for kind in formats.KINDS:
        with np.load(formats.DATA / f"{kind}.npz") as file:
            stored = dict(file)
        made = make_reference(kind)
        assert stored.keys() == made.keys()
        for name, array in made.items():
            np.testing.assert_allclose(stored[name], array, rtol=1e-6, atol=1e-6, err_msg=name)
