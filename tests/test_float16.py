"""A trunk in float16, which GPUs without bfloat16 take, does not come near the range's end."""

import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_model
from helpers import relative_error
from jax.extend.core import Primitive

import daisy_jax
from daisy_jax.accelerator import trunk_dtype
from daisy_jax.model.config import HubertConfig
from daisy_jax.model.hubert import embed
from daisy_jax.model.layer_loops import last_block

SPEECH = daisy_jax.audio.load(
    pathlib.Path(daisy_jax.__file__).parent / "samples" / "reading-1.flac"
)[16_000:32_000]
SOUNDS = {
    "clipped": np.clip(100 * SPEECH, -1, 1),
    "quiet": 1e-4 * SPEECH,
    "click": np.eye(1, len(SPEECH), 8_000, dtype=np.float32)[0],  # large once it is normalised
    "silence": np.zeros_like(SPEECH),
}
LIMIT = float(jnp.finfo(jnp.float16).max) / 4
MODELS = {
    "packaged": daisy_jax.load,
    "base": lambda: random_model(HubertConfig.base(num_layers=3)),
}


@pytest.mark.parametrize(
    ("platform", "capability", "wanted"),
    [
        ("cpu", None, "float32"),
        ("gpu", "7.0", "float16"),  # V100
        ("gpu", "7.5", "float16"),  # T4
        ("gpu", "8.0", "bfloat16"),  # A100
        ("gpu", "12.0", "bfloat16"),
        ("gpu", "gfx90a", "bfloat16"),  # ROCm
        ("tpu", None, "bfloat16"),
    ],
)
def test_the_trunks_type_is_one_that_the_device_computes_in(platform, capability, wanted):
    device = types.SimpleNamespace(platform=platform, device_kind=platform)
    if capability is not None:
        device.compute_capability = capability
    assert trunk_dtype(device) == wanted


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    """The trunk of one of the models, in float16."""
    trunk = MODELS[request.param]().replace(head=None, branches=None)
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float16), trunk)


@pytest.fixture
def sizes(monkeypatch):
    """The largest magnitude in each float16 array that JAX computes where nothing is compiled."""
    found: list[float] = []
    bind = Primitive.bind

    def remember(self, *arguments, **options):
        result = bind(self, *arguments, **options)
        for array in jax.tree.leaves(result):
            if not isinstance(array, jax.core.Tracer) and array.dtype == jnp.float16:
                found.append(float(np.max(np.abs(np.asarray(array, np.float32)))))
        return result

    monkeypatch.setattr(Primitive, "bind", remember)
    return found


@pytest.mark.parametrize("name", SOUNDS)
def test_no_intermediate_comes_near_the_end_of_the_range(model, sizes, name):
    lengths = np.asarray([len(SPEECH)], np.int32)
    layers = jax.tree.map(np.asarray, model.layers)
    with jax.disable_jit(), jax.numpy_dtype_promotion("standard"):
        embedded = embed(model, jnp.asarray(SOUNDS[name][None]), lengths)
        assert len(sizes) > 50  # seven convolutions with what belongs to them, and more
        for number in range(model.config.num_layers):
            before = len(sizes)
            layer = jax.tree.map(lambda leaf, n=number: jnp.asarray(leaf[n : n + 1]), layers)
            hidden = last_block(model.replace(layers=layer), embedded)
            embedded = embedded._replace(hidden=hidden)
            assert len(sizes) > before + 30
    assert np.max(sizes) < LIMIT  # 117 of 16 376, for the click; a NaN would fail, too


def test_features_are_nearer_to_float32s_than_bfloat16s_are():
    waveform = np.stack([*SOUNDS.values()])
    lengths = np.full(len(waveform), waveform.shape[1], np.int32)
    run = jax.jit(lambda model: last_block(model, embed(model, waveform, lengths)))
    with jax.numpy_dtype_promotion("standard"):
        exact, ours, other = (
            np.asarray(run(daisy_jax.load(dtype=dtype)), np.float32)
            for dtype in ("float32", "float16", "bfloat16")
        )
    assert np.isfinite(ours).all()
    for row in range(len(SOUNDS)):  # float16 has three bits more
        assert relative_error(ours[row], exact[row]) < relative_error(other[row], exact[row]) / 2
