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
from daisy_jax.model.forms import ELSEWHERE, FORMS
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
    return jax.tree.map(lambda leaf: np.asarray(leaf).astype(np.float16), trunk)


def with_sizes(function):
    """The function as a program, with the largest magnitude in each float16 array that it computes.

    JAX compiles nothing inside on its own, so that no array is hidden, and every one is rounded to
    float16, as where they are computed one by one.
    """
    bind = Primitive.bind

    def watched(*arguments):
        found = []

        def remember(self, *inputs, **options):
            result = bind(self, *inputs, **options)
            found.extend(array for array in jax.tree.leaves(result) if array.dtype == jnp.float16)
            return result

        with pytest.MonkeyPatch.context() as patch, jax.disable_jit():
            for step, row in FORMS.items():  # a choice among platforms would hide what is inside
                patch.setitem(FORMS, step, {ELSEWHERE: row.get("cpu", row[ELSEWHERE])})
            patch.setattr(Primitive, "bind", remember)
            result = function(*arguments)
        return result, [jnp.max(jnp.abs(array.astype(jnp.float32))) for array in found]

    return jax.jit(watched, compiler_options={"xla_allow_excess_precision": False})


embed_with_sizes = with_sizes(embed)
last_block_with_sizes = with_sizes(last_block)


def test_what_leaves_the_range_is_seen():
    """Also where only an array in between does, which a larger type would have held."""
    _, sizes = with_sizes(lambda x: jax.jit(lambda x: x * x)(x) / x)(np.full(3, 300, np.float16))
    assert np.isinf(sizes).any()


@pytest.mark.slow("looks at every operation of a trunk")
@pytest.mark.parametrize("name", SOUNDS)
def test_no_intermediate_comes_near_the_end_of_the_range(model, name):
    lengths = np.asarray([len(SPEECH)], np.int32)
    with jax.numpy_dtype_promotion("standard"):
        embedded, sizes = embed_with_sizes(model, SOUNDS[name][None], lengths)
        assert len(sizes) > 30  # seven convolutions, activations (float32 inside), and more
        for number in range(model.config.num_layers):
            layer = jax.tree.map(lambda leaf, n=number: leaf[n : n + 1], model.layers)
            hidden, more = last_block_with_sizes(model.replace(layers=layer), embedded)
            embedded = embedded._replace(hidden=hidden)
            assert len(more) > 30
            sizes += more
    assert np.max(sizes) < LIMIT  # 117 of 16 376, for the click; a NaN would fail, too


@pytest.mark.slow("looks at every operation of a trunk")
def test_features_are_nearer_to_float32s_than_bfloat16s_are():
    waveform = np.stack([*SOUNDS.values()])
    lengths = np.full(len(waveform), waveform.shape[1], np.int32)
    trunk = daisy_jax.load().replace(head=None, branches=None)
    run = jax.jit(
        lambda model: last_block(model, embed(model, waveform, lengths)).astype(jnp.float32)
    )
    with jax.numpy_dtype_promotion("standard"):
        exact, ours, other = (
            # As an accelerator has it: a CPU would compute in float32.
            np.asarray(run(jax.tree.map(lambda leaf, dtype=dtype: leaf.astype(dtype), trunk)))
            for dtype in ("float32", "float16", "bfloat16")
        )
    assert np.isfinite(ours).all()
    for row in range(len(SOUNDS)):  # float16 has three bits more
        assert relative_error(ours[row], exact[row]) < relative_error(other[row], exact[row]) / 2
