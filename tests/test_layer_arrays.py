"""Layers stacked and apart: the same model, whatever holds its arrays."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import AS_FOR_USERS, CONFIGS, SMALL, random_model, speech_like
from flax import nnx
from helpers import assert_close_to_scale
from made_models import made_model

import daisy_jax
from daisy_jax import Hubert, encode, frame_labels
from daisy_jax.audio import pad_batch
from daisy_jax.features.codebook import trunk_digest
from daisy_jax.features.extractor import model_digest
from daisy_jax.model import layer_arrays
from daisy_jax.model.forms import one_form
from daisy_jax.model.frame_labels import block_features
from daisy_jax.model.hubert import arranged, embed
from daisy_jax.model.layer_arrays import LayersApart, apart, first_layers, stacked
from daisy_jax.model.layer_loops import last_block, tapped_layers

BATCH, LENGTHS = pad_batch(speech_like((3000, 400, 2500, 0), seed=3))
WEIGHTS = np.array([0.3, -1.0, 0.7, 1.5, -0.2], np.float32)
ONE_MORE = pytest.mark.slow("compiles encode once more")


def with_layers_apart(model: Hubert) -> Hubert:
    return model.replace(layers=apart(model.layers))


def assert_same_trees(actual, desired):
    assert jax.tree.structure(actual) == jax.tree.structure(desired)
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(desired), strict=True):
        np.testing.assert_array_equal(one, other)


def test_taken_apart_and_stacked_again_nothing_changes():
    layers = random_model(SMALL).layers
    pieces = apart(layers)
    assert isinstance(pieces, LayersApart)
    assert len(pieces) == SMALL.num_layers
    assert_same_trees(stacked(pieces), layers)
    for number in range(len(pieces)):
        assert_same_trees(pieces[number], jax.tree.map(lambda leaf, k=number: leaf[k], layers))
    assert apart(pieces) is pieces
    assert stacked(layers) is layers
    assert_same_trees(stacked(first_layers(pieces, 3)), first_layers(layers, 3))


OPTIONS = {
    "full depth": {},
    "exits": {"threshold": 1.4},
    "everything": {
        "threshold": np.array([1.4, 0.9, -np.inf, 2.0], np.float32),
        "allowed": np.array([True, False, True, True]),
        "layer_weights": WEIGHTS,
        "return_hidden_states": True,
    },
    "one layer": {"allowed": np.arange(4) == 1, "return_hidden_states": True},
}


@pytest.mark.parametrize(
    "name", ["exits", *(pytest.param(n, marks=ONE_MORE) for n in OPTIONS if n != "exits")]
)
@pytest.mark.parametrize(
    "config", ["base", *(pytest.param(c, marks=ONE_MORE) for c in CONFIGS if c != "base")]
)
def test_encode_gives_the_same(config, name):
    model = random_model(CONFIGS[config])
    found = encode(with_layers_apart(model), BATCH, LENGTHS, **OPTIONS[name])
    wanted = encode(model, BATCH, LENGTHS, **OPTIONS[name])
    np.testing.assert_array_equal(found.exit_layer, wanted.exit_layer)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        finite = np.isfinite(other)
        np.testing.assert_array_equal(np.isfinite(one), finite)
        assert_close_to_scale(np.where(finite, one, 0), np.where(finite, other, 0))


def test_labels_and_features_of_one_layer_are_the_same(small_models):
    model = small_models["large"]
    pieces = with_layers_apart(model)
    np.testing.assert_array_equal(
        frame_labels(pieces, BATCH, LENGTHS), frame_labels(model, BATCH, LENGTHS)
    )
    row = BATCH[0, : LENGTHS[0]]
    assert_close_to_scale(block_features(pieces, 2)(row), block_features(model, 2)(row))


@ONE_MORE
def test_gradients_of_every_array_are_the_same(small_models):
    """Backward through the layers, as pretraining goes."""
    model = small_models["base"]

    def loss(model):
        embedded = embed(model, BATCH, LENGTHS)
        last, tapped = tapped_layers(model, embedded)
        valid = embedded.frame_mask[..., None]
        other = last_block(model, embedded)
        return jnp.sum(jnp.where(valid, last * other, 0)) + jnp.sum(jnp.where(valid, tapped**3, 0))

    found = jax.jit(jax.grad(loss))(with_layers_apart(model))
    wanted = jax.jit(jax.grad(loss))(model)
    found = found.replace(layers=stacked(found.layers))
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert_close_to_scale(one, other)


def test_a_model_is_saved_and_told_from_others_alike(tmp_path):
    model = made_model()
    pieces = with_layers_apart(model)
    assert model_digest(pieces) == model_digest(model)
    assert trunk_digest(pieces) == trunk_digest(model)
    daisy_jax.save(pieces, tmp_path / "apart")
    daisy_jax.save(model, tmp_path / "stacked")
    for name in ("model.safetensors", "config.json"):
        one, other = (tmp_path / kind / name for kind in ("apart", "stacked"))
        assert one.read_bytes() == other.read_bytes()
    assert_same_trees(daisy_jax.load(tmp_path / "apart"), model)


def test_it_is_a_part_of_nnx_modules_like_any_other():
    pieces = with_layers_apart(made_model())
    definition, state = nnx.split(pieces)
    assert_same_trees(nnx.merge(definition, state), pieces)
    assert_same_trees(nnx.clone(pieces), pieces)


def test_a_cpu_takes_large_layers_apart(tmp_path, monkeypatch):
    daisy_jax.save(made_model(), tmp_path / "model")
    monkeypatch.setattr("daisy_jax.model.hubert.LEAST_BYTES", 1)
    model = daisy_jax.load(tmp_path / "model")
    assert isinstance(model.layers, LayersApart)
    assert_same_trees(stacked(model.layers), made_model().layers)
    with one_form("layer_arrays", "stacked"):
        assert not isinstance(arranged(model).layers, LayersApart)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert not isinstance(daisy_jax.load(tmp_path / "model").layers, LayersApart)


def test_the_size_of_a_layer_decides():
    layers = made_model().layers
    wanted = sum(leaf[0].nbytes for leaf in jax.tree.leaves(layers))
    assert layer_arrays.layer_bytes(layers) == layer_arrays.layer_bytes(apart(layers)) == wanted
    packaged = daisy_jax.load()
    assert layer_arrays.layer_bytes(packaged.layers) < layer_arrays.LEAST_BYTES
    assert not isinstance(packaged.layers, LayersApart)
    base = daisy_jax.HubertConfig.base(num_layers=1)
    shapes = jax.eval_shape(lambda: Hubert(base, rngs=nnx.Rngs(0))).layers
    sizes = [4 * np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)]
    assert sum(sizes) >= layer_arrays.LEAST_BYTES


WEIGHT = re.compile(r"= f32\[(?:1,)?(?:32,48|48,32|32,96)\]\S* (\w[\w-]*)\(")
"""What makes an array of the shape of a layer's kernel in a compiled program."""


@pytest.mark.slow("compiles encode as users do, in both forms")
@pytest.mark.parametrize("threshold", [None, 1.4])
def test_no_layer_is_copied_before_it_is_computed(threshold):
    def made_in_program(model):
        compiled = jax.jit(encode, compiler_options=AS_FOR_USERS)
        text = compiled.lower(model, BATCH, LENGTHS, threshold=threshold).compile().as_text()
        return {
            kind for kind in WEIGHT.findall(text) if kind not in ("parameter", "get-tuple-element")
        }

    model = random_model(dataclasses.replace(SMALL, num_layers=2, num_clusters=0))
    assert made_in_program(model)  # the pattern finds what is copied out of a stack
    assert not made_in_program(with_layers_apart(model))


def test_one_program_serves_all_thresholds(small_models):
    model, compiled = with_layers_apart(small_models["base"]), jax.jit(encode)
    for threshold in (0.5, 1.4, np.float32(2.0)):
        compiled(model, BATCH, LENGTHS, threshold=jnp.asarray(threshold, jnp.float32))
    assert compiled._cache_size() == 1


@pytest.mark.parametrize("stored", ["bfloat16", "float16"])
def test_a_cpu_computes_rounded_weights_in_float32(tmp_path, stored, monkeypatch):
    daisy_jax.save(made_model(), tmp_path / "model")
    exact, rounded = (daisy_jax.load(tmp_path / "model", kind) for kind in ("float32", stored))
    kernel = rounded.layers.ffn.up.kernel[...]
    assert kernel.dtype == jnp.float32
    wanted = exact.layers.ffn.up.kernel[...].astype(stored).astype(jnp.float32)
    np.testing.assert_array_equal(kernel, wanted)
    assert_same_trees((rounded.head, rounded.branches), (exact.head, exact.branches))
    assert encode(rounded, BATCH, LENGTHS).last_hidden.dtype == jnp.float32
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    on_gpu = daisy_jax.load(tmp_path / "model", stored)
    assert on_gpu.layers.ffn.up.kernel[...].dtype == stored
    assert model_digest(on_gpu) == model_digest(rounded)  # a head of one fits the other
    assert trunk_digest(on_gpu) == trunk_digest(rounded)
