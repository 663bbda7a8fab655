"""The model as an object: frame labels, final norm, replaced parts, and its configuration."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CONFIGS, SMALL, random_model, speech_like
from flax import nnx
from helpers import assert_close_to_scale
from reference import reference_of

from daisy_jax import (
    Calibration,
    Hubert,
    HubertConfig,
    InputError,
    encode,
    final_norm,
    frame_labels,
)
from daisy_jax.audio import frame_count, pad_batch
from daisy_jax.model.frame_labels import block_features
from daisy_jax.model.hubert import embed

LENGTHS = (3000, 400, 0, 2500, 399)
WAVEFORMS = speech_like(LENGTHS, seed=9)
BATCH, BATCH_LENGTHS = pad_batch(WAVEFORMS, 3200)
label_frames = jax.jit(frame_labels)


def cosine_scores(model, last_hidden):
    """Cosine of each projected frame with each label embedding, in float64."""
    reference = reference_of(model)
    if model.config.norm_first:
        last_hidden = reference.norm("encoder_norm", last_hidden)
    projected = reference.linear("head.projection", last_hidden)
    embeddings = reference.weights["head.label_embeddings"]
    cosines = projected @ embeddings.T
    cosines /= np.linalg.norm(projected, axis=1)[:, None]
    return cosines / np.linalg.norm(embeddings, axis=1)


def with_centred_head(model):
    """The model, its head shifted so that projected frames lie around the origin on all sides."""
    reference = reference_of(model)
    last = [reference.everything(waveform)[1][-1] for waveform in WAVEFORMS if len(waveform) >= 400]
    last = np.concatenate(last)
    if model.config.norm_first:
        last = reference.norm("encoder_norm", last)
    centre = (last @ reference.weights["head.projection.kernel"]).mean(axis=0)

    def shift(path, leaf):
        is_bias = "head" in jax.tree_util.keystr(path) and leaf.ndim == 1
        return jnp.asarray(-centre, jnp.float32) if is_bias else leaf

    return jax.tree_util.tree_map_with_path(shift, model)


def test_frame_labels_are_the_nearest_label_embeddings(any_model):
    any_model = with_centred_head(any_model)
    labels = np.asarray(label_frames(any_model, BATCH, BATCH_LENGTHS))
    assert labels.dtype == np.int32
    assert labels.shape == (5, frame_count(3200))
    used = set()
    for row, waveform in enumerate(WAVEFORMS):
        frames = frame_count(len(waveform))
        assert np.all(labels[row, frames:] == -1)
        if frames:
            _, blocks, _ = reference_of(any_model).everything(waveform)
            scores = cosine_scores(any_model, blocks[-1])
            np.testing.assert_array_equal(labels[row, :frames], scores.argmax(axis=1))
            used |= set(labels[row, :frames].tolist())
    assert len(used) >= 2


def test_head_scores_are_cosines_over_a_tenth(base_model):
    hidden = np.random.default_rng(0).standard_normal((6, 32)).astype(np.float32)
    head = jax.jit(lambda hidden: base_model.head(hidden))
    scores = head(hidden)
    assert scores.dtype == jnp.float32
    assert_close_to_scale(scores, cosine_scores(base_model, hidden.astype(np.float64)) / 0.1)
    assert np.all(np.isfinite(head(np.zeros_like(hidden))))


def test_frame_labels_without_lengths_and_under_jit(base_model):
    compiled = np.asarray(label_frames(base_model, BATCH, BATCH_LENGTHS))
    np.testing.assert_array_equal(compiled, frame_labels(base_model, BATCH, BATCH_LENGTHS))
    full = label_frames(base_model, BATCH[:1, :3000])
    np.testing.assert_array_equal(full, compiled[:1, :9])


def test_frame_labels_need_a_head(base_model):
    with pytest.raises(InputError, match=r"no HuBERT prediction head.*again with --head-from"):
        frame_labels(base_model.replace(head=None), BATCH)


@pytest.mark.parametrize(
    ("waveform", "lengths", "message"),
    [
        (BATCH[0], None, r"waveform is float32 .*; wanted float \[batch, samples\]"),
        ((BATCH * 1000).astype(np.int16), None, "waveform is int16"),
        (BATCH[:, :399], None, "waveform has 399 samples"),
        (BATCH, BATCH_LENGTHS[:2], "lengths is int32"),
        (BATCH, np.full(len(BATCH), 10**6), "lengths go from 1000000 to 1000000"),
    ],
)
def test_frame_labels_refuse_what_encode_refuses(base_model, waveform, lengths, message):
    for function in (frame_labels, encode):
        with pytest.raises(InputError, match=message):
            function(base_model, waveform, lengths)


def test_final_norm_is_the_last_layer_norm_of_pre_ln_models_only(small_models):
    hidden = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 32)).astype(np.float32))
    assert final_norm(small_models["base"], hidden) is hidden
    large = small_models["large"]
    desired = reference_of(large).norm("encoder_norm", np.asarray(hidden, np.float64))
    assert_close_to_scale(jax.jit(final_norm)(large, hidden), desired)


@pytest.mark.usefixtures("unchecked_annotations")  # a lambda for a module
def test_masked_frames_become_the_mask_embedding_before_the_positional_convolution(base_model):
    reference = reference_of(base_model)
    projected, _ = reference.embed(WAVEFORMS[0])
    masked = np.zeros((5, frame_count(3200)), bool)
    masked[0, [2, 3]] = True
    masked[1, 5] = True  # padding, which stays padding
    projected[[2, 3]] = reference.weights["mask_embedding"]
    run = jax.jit(embed)
    embedded, plain = (
        jax.tree.map(np.asarray, run(base_model, BATCH, BATCH_LENGTHS, which))
        for which in (masked, None)
    )
    np.testing.assert_array_equal(embedded.projected, plain.projected)
    np.testing.assert_array_equal(embedded.hidden[1:], plain.hidden[1:])
    assert np.max(np.abs(embedded.hidden[0] - plain.hidden[0])) > 0.1
    # Without the positional convolution the input is the projection or the embedding itself.
    flat = base_model.replace(positional_convolution=lambda hidden: hidden)
    run_flat = jax.jit(lambda masked: embed(flat, BATCH, BATCH_LENGTHS, masked).hidden)
    hidden = np.asarray(run_flat(masked))[0, :9]
    assert_close_to_scale(hidden, reference.norm("encoder_norm", projected))


def test_block_features_are_one_blocks_outputs(any_model):
    _, blocks, _ = reference_of(any_model).everything(WAVEFORMS[0])
    assert_close_to_scale(block_features(any_model, 2)(WAVEFORMS[0]), blocks[2])
    for layer in (0, 5):
        with pytest.raises(InputError, match=f"layer {layer} of a model with 4 layers"):
            block_features(any_model, layer)


# ---------------------------------------------------------------- the object


def test_a_model_is_a_pytree_of_arrays(base_model):
    leaves = jax.tree.leaves(base_model)
    assert all(isinstance(leaf, jax.Array) and leaf.dtype == jnp.float32 for leaf in leaves)
    doubled = jax.jit(lambda model: jax.tree.map(lambda leaf: 2 * leaf, model))(base_model)
    assert type(doubled) is Hubert
    assert doubled.config == base_model.config
    assert base_model.layers.ffn.up.kernel.shape == (4, 32, 48)


def test_fresh_layers_differ_and_fresh_models_repeat():
    @jax.jit
    def two_models():
        models = [Hubert(SMALL, rngs=nnx.Rngs(3)) for _ in range(2)]
        return [model.layers.attention.qkv.kernel[...] for model in models]

    kernels, again = map(np.asarray, two_models())
    assert not np.allclose(kernels[0], kernels[1])
    np.testing.assert_array_equal(kernels, again)


@pytest.mark.parametrize("name", CONFIGS)
def test_config_decides_which_parts_exist(name):
    config = dataclasses.replace(CONFIGS[name], num_clusters=0, num_classes=0)
    model = nnx.eval_shape(lambda: Hubert(config, rngs=nnx.Rngs(0)))
    assert model.head is None
    assert model.branches is None
    assert model.calibration is None


def test_replace_makes_a_copy_that_shares_everything_else(base_model):
    calibration = Calibration(np.ones((2, 4), np.float16), "made up")
    before = jax.tree.structure(base_model)
    changed = base_model.replace(head=None, calibration=calibration)
    assert (changed.head, changed.calibration) == (None, calibration)
    assert changed.layers is base_model.layers
    assert base_model.head is not None
    assert base_model.calibration is None
    assert jax.tree.structure(base_model) == before
    back = changed.replace(head=base_model.head, calibration=None)
    assert jax.tree.structure(back) == before
    np.testing.assert_array_equal(
        label_frames(back, BATCH, BATCH_LENGTHS),
        frame_labels(base_model, BATCH, BATCH_LENGTHS),
    )


def test_replace_refuses_parts_that_do_not_exist(base_model):
    with pytest.raises(AttributeError, match="a Hubert has no part named 'branch'"):
        base_model.replace(branch=None)


# ---------------------------------------------------------------- config


@pytest.mark.parametrize(
    ("config", "layers", "dim", "ffn_dim", "heads", "head_dim", "pre_ln"),
    [
        (HubertConfig.base(), 12, 768, 3072, 12, 256, False),
        (HubertConfig.large(), 24, 1024, 4096, 16, 768, True),
        (HubertConfig.xlarge(), 48, 1280, 5120, 16, 1024, True),
    ],
)
def test_the_published_sizes(config, layers, dim, ffn_dim, heads, head_dim, pre_ln):
    assert (config.num_layers, config.dim, config.ffn_dim) == (layers, dim, ffn_dim)
    assert (config.num_heads, config.head_dim, config.conv_dim) == (heads, head_dim, 512)
    assert config.norm_first == config.normalize_input == (config.conv_norm == "layer") == pre_ln
    assert (config.pos_conv_kernel, config.pos_conv_groups) == (128, 16)


def test_base_has_as_many_parameters_as_the_published_model():
    model = nnx.eval_shape(lambda: Hubert(HubertConfig.base(), rngs=nnx.Rngs(0)))
    # torch's model has 94 371 712: it keeps the weight norm's 128 gains apart.
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(model)) == 94_371_712 - 128


def test_changes_override_single_fields():
    config = HubertConfig.large(num_layers=3, norm_first=False, num_classes=7)
    assert (config.num_layers, config.norm_first, config.num_classes) == (3, False, 7)
    assert config.dim == 1024


@pytest.mark.parametrize("config", [*CONFIGS.values(), HubertConfig.xlarge(num_classes=500)])
def test_config_survives_json(config):
    text = json.dumps(dataclasses.asdict(config))
    assert HubertConfig.from_dict(json.loads(text)) == config


def test_fields_that_older_folders_lack_have_their_default():
    fields = dataclasses.asdict(SMALL)
    assert fields.pop("normalize_epsilon") == 1e-5  # fairseq's
    assert HubertConfig.from_dict(fields) == SMALL


def test_from_dict_names_unknown_and_missing_fields():
    fields = dataclasses.asdict(SMALL)
    del fields["tap"], fields["dim"]
    with pytest.raises(
        InputError, match=r"unknown fields \['width'\] and lacks the fields \['dim', 'tap'\]"
    ):
        HubertConfig.from_dict(fields | {"width": 3})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": 0}, "config num_layers is 0; it must be a whole number of at least 1"),
        ({"dim": 768.0}, r"config dim is 768\.0; it must be a whole number"),
        ({"ffn_dim": True}, "config ffn_dim is True"),
        ({"num_classes": -1}, "config num_classes is -1; .* at least 0"),
        ({"normalize_epsilon": 0.0}, r"config normalize_epsilon is 0\.0; wanted a number between"),
        ({"normalize_epsilon": np.nan}, "config normalize_epsilon is nan"),
        ({"normalize_epsilon": True}, "config normalize_epsilon is True"),
        ({"num_clusters": "504"}, "config num_clusters is '504'"),
        ({"conv_norm": "batch"}, r"config conv_norm is 'batch'; it must be one of \('group'"),
        ({"tap": "fc2"}, "config tap is 'fc2'"),
        ({"item0": None}, "config item0 is None"),
        ({"num_heads": 5}, "config num_heads is 5; it must divide dim = 768"),
        ({"pos_conv_groups": 7}, "config pos_conv_groups is 7; it must divide dim = 768"),
        ({"pos_conv_groups": 0}, "config pos_conv_groups is 0"),
        ({"pos_conv_groups": 16.0}, r"config pos_conv_groups is 16\.0; it must be a whole number"),
        ({"num_clusters": 5, "head_dim": 0}, "config head_dim is 0; a prediction head needs"),
        ({"norm_first": "true"}, "config norm_first is 'true'; wanted true or false"),
        ({"conv_bias": 1}, "config conv_bias is 1; wanted true or false"),
    ],
)
@pytest.mark.usefixtures("unchecked_annotations")
def test_impossible_configs_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        HubertConfig.base(**changes)


def test_models_of_other_seeds_differ():
    one, other = random_model(SMALL, 0), random_model(SMALL, 1)
    assert not np.allclose(one.branches.kernel[...], other.branches.kernel[...])
