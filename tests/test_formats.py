"""Each format gives the model that PyTorch ran: states, labels, entropies, exits."""

import copy
import pathlib
import re

import formats
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from formats import ALL, CLUSTERS, HEAD_DIM, KINDS, SIZES, load_case
from helpers import numpy_of

from daisy_jax import InputError, encode, final_norm, frame_labels
from daisy_jax.checkpoints import abstract_model, fill
from daisy_jax.conversions import bare_file, fairseq_file
from daisy_jax.conversions.grafts import graft
from daisy_jax.conversions.rules import Converted, apply_rules
from daisy_jax.conversions.trunk import TRANSFORMERS, infer_config

PATH = pathlib.Path("a/file.pt")


BIASED = pytest.param("large-bias", marks=pytest.mark.slow("large again, with a few biases more"))


@pytest.fixture(params=[*KINDS[:-1], BIASED])
def case(request):
    return load_case(request.param)


def converted(content, path=PATH) -> Converted:
    if fairseq_file.recognizes(content):
        return apply_rules(fairseq_file.read(path, content))
    return apply_rules(bare_file.read(path, content, SIZES["heads"]))


def model_of(whole: Converted):
    model = fill(abstract_model(whole.config), whole.parameters)
    return jax.tree.map(jnp.asarray, model)


def encoded(model, case, **options):
    return numpy_of(encode(model, case.waveform[None], **options))


def labels_of(model, case) -> list[int]:
    return np.asarray(frame_labels(model, case.waveform[None]))[0].tolist()


def assert_close(actual, desired):
    """Within 1e-5 of the desired tensor's rms."""
    desired = np.asarray(desired, np.float64)
    scale = np.sqrt(np.mean(desired**2))
    np.testing.assert_allclose(np.asarray(actual) / scale, desired / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize("format", ALL)
def test_hidden_states_equal_those_of_pytorch(case, format):
    whole = converted(ALL[format](case))
    assert whole.config.normalize_input == case.large
    model = model_of(whole)
    out = encoded(model, case, return_hidden_states=True)
    for ours, theirs in zip(out.hidden_states[0], case.hidden_states, strict=True):
        assert_close(ours, theirs)


@pytest.mark.parametrize("format", formats.WITH_HEAD)
def test_labels_equal_those_of_pytorch(case, format):
    whole = converted(formats.WITH_HEAD[format](case))
    assert (whole.config.num_clusters, whole.config.head_dim) == (CLUSTERS, HEAD_DIM)
    assert labels_of(model_of(whole), case) == case.labels.tolist()
    assert len(set(case.labels)) > 1


@pytest.mark.parametrize("format", formats.WITHOUT_HEAD)
def test_trunks_without_a_head_have_none(case, format):
    whole = converted(formats.WITHOUT_HEAD[format](case))
    assert (whole.config.num_clusters, whole.config.num_classes) == (0, 0)
    assert model_of(whole).head is None
    extras = [name for name in whole.ignored if "proj" not in name and "label_embs" not in name]
    assert extras == []


@pytest.mark.parametrize("format", formats.WITH_BRANCHES)
def test_branches_leave_where_those_of_pytorch_leave(case, format):
    whole = converted(formats.WITH_BRANCHES[format](case))
    block = "after" in format
    assert whole.config.tap == ("block" if block else "ffn")
    assert whole.config.item0 == "projection"
    assert (whole.config.num_classes, whole.config.num_clusters) == (CLUSTERS, 0)
    model, desired = model_of(whole), case.entropy[0 if block else 1]
    out = encoded(model, case, threshold=-np.inf)
    assert_close(out.entropy[0], desired)
    for threshold in (0.0, float(np.mean(desired)), 10.0):
        out = encoded(model, case, threshold=threshold)
        fires = desired < threshold
        assert out.exit_layer[0] == (np.argmax(fires) + 1 if fires.any() else SIZES["layers"])
        assert out.forced[0] == (not fires.any())


def test_formats_of_one_model_give_the_same_parameters(case):
    desired = converted(formats.fairseq(case)).parameters
    for make in ALL.values():
        actual = converted(make(case)).parameters
        for name in actual.keys() & desired.keys() - {"mask_embedding"}:
            np.testing.assert_array_equal(actual[name], desired[name], err_msg=name)


def test_architecture_is_read_off_the_shapes(case):
    fields = converted(formats.fairseq(case)).config
    config, notes = infer_config(case.tensors, TRANSFORMERS, num_heads=SIZES["heads"])
    for name in ("num_layers", "dim", "ffn_dim", "conv_dim", "conv_norm", "conv_bias"):
        assert getattr(config, name) == getattr(fields, name)
    for name in ("pos_conv_kernel", "pos_conv_groups", "norm_first", "normalize_input"):
        assert getattr(config, name) == getattr(fields, name)
    assert "there is no config, so the architecture was read off the tensors" in notes[0]
    with pytest.raises(InputError, match="width 16 cannot be read off its tensors; give it as"):
        infer_config(case.tensors, TRANSFORMERS)


# ---------------------------------------------------------------- heads of fairseq


def test_first_of_several_dictionaries_is_the_head(case):
    content = formats.fairseq(case)
    plain = converted(formats.fairseq(case)).parameters
    rng = np.random.default_rng(0)
    tensors = content["model"]
    for name, rows in (("label_embs_concat", 4 + 3), ("final_proj.weight", HEAD_DIM)):
        more = rng.standard_normal((rows, tensors[name].shape[1])).astype(np.float32)
        tensors[name] = np.concatenate([tensors[name], more])
    tensors["final_proj.bias"] = np.concatenate([tensors["final_proj.bias"]] * 2)
    content["task_state"]["dictionaries"].append({"symbols": formats.symbols()[:7]})
    whole = converted(content)
    assert "head: the first of 2 label dictionaries" in whole.source.notes
    for name in ("head.projection.kernel", "head.projection.bias", "head.label_embeddings"):
        np.testing.assert_array_equal(whole.parameters[name], plain[name])


@pytest.mark.parametrize("gated", [False, True])
def test_labels_are_the_dictionarys_numbers(case, gated):
    """Row r of the dictionary is cluster number symbols[r]: that of a .km file."""
    content = formats.fairseq(case)
    if gated:
        rng = np.random.default_rng(0)
        weight = rng.standard_normal((2 * HEAD_DIM, HEAD_DIM)).astype(np.float32)
        content["model"] |= {"target_glu.0.weight": weight, "target_glu.0.bias": weight[:, 0]}
    plain = labels_of(model_of(converted(content_of(content))), case)
    count = len(formats.symbols()) - 4
    order = np.random.default_rng(1).permutation(count).tolist()
    shuffled = content_of(content)
    symbols = formats.symbols()[:4] + [str(number) for number in order]
    shuffled["task_state"]["dictionaries"][0]["symbols"] = symbols
    whole = converted(shuffled)
    assert labels_of(model_of(whole), case) == [order[label] for label in plain]
    assert any("label k is the symbol k, as in .km files" in note for note in whole.source.notes)


def content_of(content):
    """The same content once more: converting takes the tensors out."""
    return copy.deepcopy(content)


@pytest.mark.parametrize(
    ("symbols", "said"),
    [
        (lambda count: [f"c{n}" for n in range(count)], "as its symbols (c0, c1, c2, ...) are not"),
        (lambda count: [str(n + 1) for n in range(count)], "as its symbols (1, 2, 3, ...) are not"),
        (lambda count: ["0"] * count, "as its symbols (0, 0, 0, ...) are not the numbers 0 to 6"),
        (None, "no dictionary is there, so that labels are rows"),
    ],
)
def test_other_symbols_and_none_are_said(case, symbols, said):
    content = formats.fairseq(case)
    count = len(formats.symbols()) - 4
    if symbols is None:
        del content["task_state"]
    else:
        names = formats.symbols()[:4] + symbols(count)
        content["task_state"]["dictionaries"][0]["symbols"] = names
    whole = converted(content)
    wanted = converted(formats.fairseq(case)).parameters["head.label_embeddings"]
    np.testing.assert_array_equal(whole.parameters["head.label_embeddings"], wanted)
    assert any(note.startswith("head: ") and said in note for note in whole.source.notes)


def test_gated_label_embeddings_are_folded(case):
    content = formats.fairseq(case)
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((2 * HEAD_DIM, HEAD_DIM)).astype(np.float32)
    bias = rng.standard_normal(2 * HEAD_DIM).astype(np.float32)
    content["model"] |= {"target_glu.0.weight": weight, "target_glu.0.bias": bias}
    by_hand = []
    for row in case.extra["label_embs"].astype(np.float64):
        both = [float(weight[i] @ row + bias[i]) for i in range(2 * HEAD_DIM)]
        by_hand.append([both[i] / (1 + np.exp(-both[HEAD_DIM + i])) for i in range(HEAD_DIM)])
    assert_close(converted(content).parameters["head.label_embeddings"], by_hand)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c["task_state"]["dictionaries"][0]["symbols"].pop(),
            "label_embs_concat has 11 rows, which are not those of the label dictionaries",
        ),
        (
            lambda c: c["task_state"]["dictionaries"][0]["symbols"].sort(),
            "each with <s>, <pad>, </s>, <unk> in front",
        ),
        (
            lambda c: c["model"].update({"final_proj.weight": np.ones((5, 16), np.float32)}),
            "final_proj.weight has 5 rows, which do not match the 6 columns",
        ),
        (
            lambda c: c["model"].update({"label_embs_concat": np.ones(5, np.float32)}),
            "label_embs_concat has the shape (5,)",
        ),
    ],
)
def test_heads_that_do_not_fit_are_refused(case, change, message):
    content = formats.fairseq(case)
    change(content)
    with pytest.raises(InputError) as caught:
        converted(content)
    assert message in str(caught.value)


def test_several_dictionaries_of_unknown_size_are_refused(case):
    content = formats.fairseq_old(case)
    content["args"]["labels"] = ["km", "km2"]
    with pytest.raises(InputError, match="belongs to 2 label dictionaries, whose sizes the file"):
        converted(content)


@pytest.mark.parametrize("format", ["fairseq", "s3prl"])
def test_absent_normalisation_is_assumed_from_the_front_end(case, format):
    content = formats.WITH_HEAD[format](case)
    del (content["cfg"]["task"] if format == "fairseq" else content["task_cfg"])["normalize"]
    whole = converted(content)
    assert whole.config.normalize_input == case.large
    assert any("has no task.normalize" in note for note in whole.source.notes)


@pytest.mark.parametrize("shape", [(), (0, 16)])
def test_branches_without_classes_are_refused(case, shape):
    content = formats.daisy(case)
    content["model_weight"]["final_proj.0.weight"] = np.zeros(shape, np.float32)
    with pytest.raises(InputError, match=r"final_proj\.0\.weight has the shape"):
        converted(content)


def test_other_temperature_is_said(case):
    content = formats.fairseq(case)
    content["cfg"]["model"]["logit_temp"] = 0.2
    assert any("logit_temp was 0.2" in note for note in converted(content).source.notes)


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize("spelling", ["[({c}, 10, 5)]+[({c},3,2)]*4+[({c},2,2),({c},2,2)]"])
def test_convolutions_are_read_without_evaluation(case, spelling):
    content = formats.fairseq(case)
    content["cfg"]["model"]["conv_feature_layers"] = spelling.format(c=SIZES["conv"])
    assert converted(content).config.conv_dim == SIZES["conv"]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("_name", "wav2vec2", "the model is 'wav2vec2'; only 'hubert' models"),
        ("_name", "data2vec_audio", "the model is 'data2vec_audio'"),
        ("conv_pos_batch_norm", True, "conv_pos_batch_norm is True, where only False"),
        ("pos_conv_depth", 5, "pos_conv_depth is 5"),
        ("layer_type", "conformer", "layer_type is 'conformer'"),
        ("activation_fn", "relu", "activation_fn is 'relu'"),
        ("extractor_mode", "batch", "extractor_mode is 'batch'"),
        ("conv_feature_layers", "__import__('os').getpid()", "wanted a sum of lists"),
        ("conv_feature_layers", "[(8,10,5)] * 7", "only HuBERT's kernels and strides"),
        ("conv_feature_layers", "[(8,10,5)] * 10000000", "wanted a sum of lists"),
        ("encoder_layers", "two", "encoder_layers is 'two'; wanted int"),
        ("encoder_layers", 1, "encoder.layers.1.fc1.weight is unknown"),
        ("encoder_attention_heads", 3, "num_heads is 3; it must divide"),
        ("encoder_embed_dim", 32, "post_extract_proj.weight has the shape (16, 8) instead of"),
    ],
)
def test_settings_that_we_cannot_hold_are_refused(case, field, value, message):
    content = formats.fairseq(case)
    content["cfg"]["model"][field] = value
    with pytest.raises(InputError) as caught:
        converted(content)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_rates_and_positions_are_refused(case):
    content = formats.fairseq(case)
    content["cfg"]["task"]["sample_rate"] = 8000
    with pytest.raises(InputError, match="sample_rate is 8000; HuBERT needs 16000"):
        converted(content)
    with pytest.raises(InputError, match="cls_pred_position is 'nowhere'"):
        converted(formats.daisy(case, "nowhere"))
    with pytest.raises(InputError, match="no table of fields"):
        converted({"args": [1], "model": formats.fairseq_tensors(case)})


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("encoder.layers.0.self_attn.grep_linear.weight", "WavLM"),
        ("encoder.layers.0.attention.gru_rel_pos_linear.weight", "WavLM"),
        ("quantizer.vars", "wav2vec 2.0"),
        ("encoder.pos_conv.0.0.weight", "data2vec"),
        ("encoder.pos_conv_embed.layers.0.conv.weight", "data2vec"),
        ("encoder.layers.0.conv_module.batch_norm.weight", "a Conformer"),
        ("encoder.pos_conv.0.running_mean", "a HuBERT with conv_pos_batch_norm"),
        ("encoder.pos_conv_embed.batch_norm.weight", "a HuBERT with conv_pos_batch_norm"),
        ("encoder.layers.0.adapter_layer.norm.weight", "a HuBERT with attention adapters"),
        ("output_layer.0.weight", "DistilHuBERT .*"),
        ("feature_extractor.conv0.weight", "the HuBERT of soft units .*"),
        ("encoder.layers.12.self_attn_layer_norm.weight_ln.weight", "ContentVec .*"),
        ("layer_proj.weight", "ContentVec .*"),
    ],
)
@pytest.mark.parametrize("format", ["fairseq", "s3prl", "torchaudio", "transformers"])
def test_models_that_look_alike_are_refused_by_name(case, format, name, model):
    content = ALL[format](case)
    tensors = content.get("model", content.get("model_weight", content))
    tensors[name] = np.ones(2, np.float32)
    with pytest.raises(InputError, match=f"this is {model}, as its tensor {name} shows"):
        converted(content)


@pytest.mark.parametrize("format", ALL)
def test_lost_and_unknown_tensors_are_all_named(case, format):
    content = ALL[format](case)
    boxes = [name for name in ("model", "model_weight", "state_dict") if name in content]
    tensors = content[boxes[0]] if boxes else content
    lost = [name for name in tensors if ".layers.1." in name and "norm" in name]
    for name in lost:
        del tensors[name]
    outer = "model." if "trainer" in format else ""
    tensors[f"{outer}surprise"] = np.ones(1, np.float32)
    with pytest.raises(InputError) as caught:
        converted(content)
    message = str(caught.value)
    assert message.startswith(f"{PATH}: {len(lost) + 1} tensors do not fit")
    for name in lost:
        assert f"{name.removeprefix(outer)} is missing" in message
    assert " surprise is unknown" in message


def prefixed(tensors, prefix):
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


WRAPPED = {
    "DDP": lambda tensors: prefixed(tensors, "module."),
    "torch.compile inside DDP": lambda tensors: prefixed(tensors, "module._orig_mod."),
    "Lightning": lambda tensors: {
        "state_dict": prefixed(tensors, "model.") | {"loss.scale": np.ones(1)},
        "epoch": 3,
        "optimizer_states": [{"state": {"a": np.ones(1)}}],
    },
    "a box in a box": lambda tensors: {"net": {"encoder": tensors, "step": 1}, "optimizer": {}},
    "an average beside it": lambda tensors: {"model": tensors, "ema": tensors, "step": 1},
}


@pytest.mark.parametrize("wrapping", WRAPPED)
@pytest.mark.parametrize("format", ["torchaudio", "torchaudio pretraining", "transformers"])
def test_a_model_is_taken_out_of_what_frameworks_wrap_around_it(case, format, wrapping):
    wanted = converted(ALL[format](case))
    found = converted(WRAPPED[wrapping](ALL[format](case)))
    assert found.config == wanted.config
    for name, parameter in wanted.parameters.items():
        np.testing.assert_array_equal(found.parameters[name], parameter)
    notes = "; ".join(found.source.notes)
    for said in {
        "DDP": ["'module.' was taken away"],
        "Lightning": ["out of state_dict; left out: epoch, optimizer", "left out: loss.scale"],
        "a box in a box": ["out of net.encoder; left out: optimizer"],
        "an average beside it": ["out of model; left out: ema, step"],
    }.get(wrapping, []):
        assert said in notes


def test_names_of_fairseqs_are_unwrapped_too(case):
    content = formats.fairseq(case)
    wanted = converted(content | {"model": dict(content["model"])})
    found = converted(content | {"model": prefixed(content["model"], "module.")})
    for name, parameter in wanted.parameters.items():
        np.testing.assert_array_equal(found.parameters[name], parameter)
    assert "'module.' was taken away from names of tensors" in found.source.notes


def test_two_models_in_one_file_are_refused(case):
    tensors = formats.torchaudio(case)
    with pytest.raises(InputError, match="holds several models, in student, teacher; save one"):
        converted({"student": tensors, "teacher": tensors})
    both = prefixed(tensors, "student.") | prefixed(tensors, "teacher.")
    with pytest.raises(InputError, match=r"several models, behind 'student\.', 'teacher\.'; save"):
        converted(both)


def test_state_dicts_of_other_things_are_refused(case):
    with pytest.raises(InputError, match=r"its tensors \(a, \.\.\.\) are not named as fairseq"):
        converted({"a": np.ones(1)})
    with pytest.raises(InputError, match="a fairseq state dict without its configuration"):
        converted(formats.fairseq_tensors(case))
    with pytest.raises(InputError, match="wanted plain tensors only, but these are none: epoch"):
        converted(formats.torchaudio(case) | {"epoch": 3})


# ---------------------------------------------------------------- grafts


def test_grafted_head_labels_as_its_own_trunk_does(case):
    onto = converted(formats.torchaudio(case))
    donor = converted(formats.fairseq(case), pathlib.Path("b/donor.pt"))
    whole = graft("head", donor, onto)
    assert labels_of(model_of(whole), case) == case.labels.tolist()
    assert "head: from b/donor.pt" in whole.source.notes


def test_grafted_branches_look_where_the_donors_look(case):
    whole = graft("branches", converted(formats.daisy(case)), converted(formats.fairseq(case)))
    assert (whole.config.tap, whole.config.item0) == ("ffn", "projection")
    out = encoded(model_of(whole), case, threshold=-np.inf)
    assert_close(out.entropy[0], case.entropy[1])
    assert whole.config.num_clusters == CLUSTERS


def test_halves_agree_with_their_originals(case):
    content = formats.fairseq(case)
    content["model"] = {name: a.astype(np.float16) for name, a in content["model"].items()}
    whole = graft("head", converted(content), converted(formats.torchaudio(case)))
    assert whole.config.num_clusters == CLUSTERS


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_almost_equal_trunks_are_others(case, dtype):
    """Scaled by less than 1e-3, or different in one number: more than rounding explains."""
    onto = converted(formats.torchaudio(case))
    content = formats.fairseq(case)
    name = "encoder.layers.0.fc2.weight"
    scaled = content["model"] | {name: content["model"][name] * np.float32(1.0008)}
    one = content["model"][name].copy()
    one[3, 5] *= 1.002
    for tensors in (scaled, content["model"] | {name: one}):
        content["model"] = {n: a.astype(dtype) for n, a in tensors.items()}
        with pytest.raises(InputError, match=r"numbers of layers\.ffn\.down\.kernel differ"):
            graft("head", converted(content), onto)


def test_ignored_tensors_do_not_loosen_the_comparison(case):
    content = formats.fairseq_finetuned(case)
    content["model"] = {
        name: a * np.float32(1.0001) if "fc1" in name else a for name, a in content["model"].items()
    }
    content["model"]["w2v_encoder.proj.bias"] = np.ones(3, np.float16)
    content["model"]["w2v_encoder.proj.steps"] = np.ones(1, np.int64)
    with pytest.raises(InputError, match="belongs to another trunk"):
        graft("head", converted(formats.fairseq(case)), converted(content))


def test_a_coarse_head_does_not_loosen_the_comparison_of_trunks(case):
    content = formats.fairseq(case)
    name = "encoder.layers.0.fc2.weight"
    content["model"][name] = content["model"][name] * np.float32(1.0003)
    content["model"]["final_proj.bias"] = content["model"]["final_proj.bias"].astype(np.float16)
    with pytest.raises(InputError, match="belongs to another trunk"):
        graft("head", converted(content), converted(formats.torchaudio(case)))


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_positional_kernels_are_compared_as_they_were_rounded(case, dtype):
    content = formats.fairseq(case)
    halves = {name: a.astype(dtype) for name, a in content["model"].items()}
    onto = converted(formats.torchaudio(case))
    graft("head", converted(content | {"model": dict(halves)}), onto)
    gain = halves["encoder.pos_conv.0.weight_g"].copy()
    gain[0, 0, 3] = 1.1 * float(gain[0, 0, 3])
    halves["encoder.pos_conv.0.weight_g"] = gain
    with pytest.raises(InputError, match=r"numbers of positional_convolution"):
        graft("head", converted(content | {"model": halves}), onto)


def test_biases_that_one_trunk_lacks_must_be_zero():
    """Those of the donor count as much as those of the trunk."""
    donor, onto = (
        formats.fairseq(load_case("large-bias")),
        formats.torchaudio(load_case("large-bias")),
    )
    for name in [name for name in onto if re.search(r"conv_layers\.\d\.conv\.bias", name)]:
        del onto[name]
    with pytest.raises(InputError, match=r"numbers of feature_encoder\.convolutions\.0\.bias"):
        graft("head", converted(donor), converted(onto))


def test_absent_biases_agree_with_zeros():
    """transformers' Large has biases in its front end that fairseq's lacks; they are zero."""
    case = load_case("large-bias")
    for name in list(case.tensors):
        if ".conv.bias" in name and "conv_layers" in name:
            case.tensors[name][:] = 0
    onto = converted(dict(case.tensors))
    donor = formats.fairseq(case)
    donor["cfg"]["model"]["conv_bias"] = False
    donor["model"] = {
        n: a
        for n, a in donor["model"].items()
        if not n.endswith(".0.bias") or "conv_layers" not in n
    }
    whole = graft("head", converted(donor), onto)
    assert whole.config.conv_bias
    assert whole.config.num_clusters == CLUSTERS


def test_grafts_onto_another_trunk_are_refused(case):
    content = formats.fairseq(case)
    weight = content["model"]["encoder.layers.1.fc1.weight"]
    content["model"]["encoder.layers.1.fc1.weight"] = weight + 1e-3 * np.std(weight)
    with pytest.raises(
        InputError,
        match=r"another trunk than .*: \d+ of the 768 numbers of layers\.ffn\.up",
    ):
        graft("head", converted(content), converted(formats.torchaudio(case)))
    other = load_case("base" if case.large else "large")
    with pytest.raises(InputError, match=r"another architecture than .*: conv_norm is"):
        graft("head", converted(formats.fairseq(other)), converted(formats.torchaudio(case)))


def test_grafts_of_what_is_not_there_are_refused(case):
    head, trunk = converted(formats.fairseq(case)), converted(formats.torchaudio(case))
    with pytest.raises(InputError, match=r"a/file.pt: has no head; give a checkpoint that has"):
        graft("head", trunk, head)
    with pytest.raises(InputError, match="has head of its own; leave --head-from out"):
        graft("head", head, head)
    with pytest.raises(InputError, match="has no branches"):
        graft("branches", head, trunk)


def test_other_input_normalisation_is_a_warning(case):
    content = formats.fairseq(case)
    content["cfg"]["task"]["normalize"] = not case.large
    whole = graft("head", converted(content), converted(formats.torchaudio(case)))
    warning = next(note for note in whole.source.notes if note.startswith("warning: "))
    assert "normalises its input and" in warning
    assert whole.config.normalize_input == case.large


@pytest.mark.parametrize("kind", ["large", "large-bias"])
def test_final_norm_is_applied_before_the_head(kind):
    """The stored labels tell: without it those of Large are others."""
    case = load_case(kind)
    model = model_of(converted(formats.fairseq(case)))
    hidden = jnp.asarray(encoded(model, case).last_hidden)
    with_norm = model.head(final_norm(model, hidden))
    without = model.head(hidden)
    assert np.argmax(with_norm, axis=-1)[0].tolist() == case.labels.tolist()
    assert np.argmax(without, axis=-1)[0].tolist() != case.labels.tolist()
