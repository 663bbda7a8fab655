"""Steps with several forms: all of them run on a CPU, and give the same numbers there."""

import contextlib
import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import AS_FOR_USERS, CONFIGS, speech_like
from flax import nnx
from helpers import assert_close_to_scale
from jax.experimental import rnn
from lowered import cudnn_as_documented

from daisy_jax import HubertConfig, encode
from daisy_jax.audio import frame_count, pad_batch
from daisy_jax.model import forms, pieces, slices
from daisy_jax.model.branches import Branches
from daisy_jax.model.feature_encoder import FeatureEncoder, valid_positions
from daisy_jax.model.forms import FORMS, one_form, run_form
from daisy_jax.model.transformer import PositionalConvolution
from daisy_jax.tasks import lstm
from daisy_jax.tasks.lstm import BidirectionalLstm

FULL_WIDTH = pytest.mark.slow("compiles every form, with its gradient, at full width")


def drawn(*shape, dtype=jnp.float32):
    """The same numbers whatever other tests have drawn.

    With some other draws, one of the bfloat16 gradients below is rounded to its other neighbour.
    """
    return np.random.default_rng(1).standard_normal(shape).astype(dtype)


def in_each_form(step, function, *arguments, compiler_options=None):
    """What a function returns in each form of a step, as lists of arrays, by the form's name."""
    out, programs = {}, set()
    for form in sorted(set(FORMS[step].values())):
        with one_form(step, form):
            # A new function each time, so that it is traced each time.
            lowered = jax.jit(lambda *arguments: function(*arguments)).lower(*arguments)
        programs.add(lowered.as_text())
        compiled = lowered.compile(compiler_options=compiler_options)
        out[form] = jax.tree.leaves(compiled(*arguments))
    assert len(programs) == len(out)  # the forms differ, so that the comparison says something
    return out


def assert_all_equal(step, function, *arguments, **options):
    """All forms give the same, to 1e-5 of the scale."""
    first, *others = in_each_form(step, function, *arguments, **options).values()
    for other in others:
        for one, another in zip(first, other, strict=True):
            assert_close_to_scale(another, one)


def with_gradients(module, x, *rest):
    """A module's output, and the gradients of a loss to its parameters and to x."""

    def loss(module, x):
        out = module(x, *rest)
        weights = jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)
        return jnp.sum(jnp.sin(out) * weights), out

    gradients, out = jax.grad(loss, (0, 1), has_aux=True)(module, x)
    return out, gradients


def test_forms_follow_the_platform_that_is_lowered_for(monkeypatch):
    row = {"cpu": "one", "cuda": "two", forms.ELSEWHERE: "three"}
    monkeypatch.setitem(FORMS, "made", row)
    made = {
        "one": lambda x: jnp.sin(x),
        "two": lambda x: jnp.cos(x),
        "three": lambda x: jnp.tanh(x),
    }
    traced = jax.jit(lambda x: run_form("made", made, x)).trace(jnp.float32(1))
    for platform, function in (("cpu", "sine"), ("cuda", "cosine"), ("rocm", "tanh")):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert [name for name in ("sine", "cosine", "tanh") if f"stablehlo.{name}" in text] == [
            function
        ]
    assert run_form("made", made, jnp.float32(1)) == jnp.sin(1.0)


def test_one_form_everywhere_and_back_again():
    before = {step: dict(row) for step, row in FORMS.items()}
    with contextlib.suppress(ZeroDivisionError), one_form("layer", "switch"):
        assert set(FORMS["layer"].values()) == {"switch"}
        raise ZeroDivisionError
    assert before == FORMS


@pytest.mark.parametrize(
    ("config", "frames"),
    [
        (CONFIGS["base"], 37),
        (CONFIGS["large_ffn"], 37),  # an odd number of taps
        (dataclasses.replace(CONFIGS["base"], pos_conv_kernel=1), 5),
        (dataclasses.replace(CONFIGS["base"], pos_conv_kernel=2), 8),
        pytest.param(HubertConfig.base(), 50, marks=FULL_WIDTH),
        pytest.param(HubertConfig.base(), 1, marks=FULL_WIDTH),
    ],
)
def test_positional_convolution(config, frames):
    module = PositionalConvolution(config, rngs=nnx.Rngs(0))
    x = drawn(2, frames, config.dim)
    assert_all_equal("positional_convolution", with_gradients, module, x)


@pytest.mark.parametrize("name", ["base", "large"])
def test_front_end(name, monkeypatch):
    encoder = FeatureEncoder(CONFIGS[name], rngs=nnx.Rngs(0))
    monkeypatch.setattr(pieces, "PIECE_BYTES", 8_500)  # of two frames
    lengths = jnp.array([2000, 1203])
    valid = valid_positions(frame_count(2000), frame_count(lengths))[..., None]

    def features(encoder, waveform):
        return jnp.where(valid, encoder(waveform, lengths), 0)

    def loss(encoder, waveform):
        return jnp.sum(jnp.sin(features(encoder, waveform)))

    def with_and_without_gradients(encoder, waveform):
        moved = jax.jvp(features, (encoder, waveform), (encoder, waveform))
        return features(encoder, waveform), moved, jax.grad(loss, (0, 1))(encoder, waveform)

    assert_all_equal("front_end", with_and_without_gradients, encoder, drawn(2, 2000))


def test_branch_products_are_exact():
    """Against float64, in every form: within a few roundings of float32."""
    branches = Branches(3, 64, 21, rngs=nnx.Rngs(0))
    branch = jax.tree.map(lambda leaf: leaf[1], branches)
    tapped = drawn(2, 9, 64, dtype=jnp.bfloat16)
    exact = np.asarray(tapped, np.float64) @ np.asarray(branch.kernel[...], np.float64)
    outputs = in_each_form(
        "branch", lambda *given: given[0](given[1]), branch, tapped, compiler_options=AS_FOR_USERS
    )
    for (actual,) in outputs.values():
        assert actual.dtype == jnp.float32
        assert np.max(np.abs(actual - exact)) < 1e-6 * np.max(np.abs(exact))


def test_branches_gradients_are_as_exact_as_their_products():
    """A bfloat16 tap must not round what the float32 kernel learns from."""
    branches = Branches(3, 64, 21, rngs=nnx.Rngs(0))
    tapped = drawn(3, 2, 9, 64, dtype=jnp.bfloat16)

    def losses(branches, tapped):
        return jnp.sum(jnp.sin(jax.vmap(lambda branch, one: branch(one))(branches, tapped)))

    def gradients(branches, tapped):
        moved = jax.tree.map(jnp.cos, branches)
        forward = jax.jvp(lambda branches: losses(branches, tapped), (branches,), (moved,))
        to_branches, to_tapped = jax.grad(losses, (0, 1))(branches, tapped)
        return forward, to_branches, to_tapped.astype(jnp.float32)

    assert_all_equal("branch", gradients, branches, tapped, compiler_options=AS_FOR_USERS)


def test_lstm_directions(monkeypatch):
    monkeypatch.setattr(lstm, "_cudnn_runs", lambda: True)
    monkeypatch.setattr(rnn, "lstm", cudnn_as_documented)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    stack = BidirectionalLstm(6, 5, 2, rngs=nnx.Rngs(0))
    mask = np.arange(17) < np.array([17, 9, 1, 13])[:, None]

    def with_and_without_gradients(stack, x, mask):
        return stack(x, mask), with_gradients(stack, x, mask)  # they keep different things

    assert_all_equal("lstm", with_and_without_gradients, stack, drawn(4, 17, 6), mask)


# ---------------------------------------------------------------- the whole model


def test_all_forms_of_other_platforms_together(monkeypatch, small_models):
    """What GPUs and TPUs run, but for their own kernels, equals what a CPU runs."""
    compiled = sys.modules["daisy_jax.encode"]._compiled
    waveform, lengths = pad_batch(speech_like((3000, 400, 2500, 0, 1700), seed=1))
    options = {"threshold": 1.4, "return_hidden_states": True}
    compiled.clear_cache()
    wanted = encode(small_models["base"], waveform, lengths, **options)
    monkeypatch.setattr(slices, "LEAST_FRAMES", 16)
    for step, row in FORMS.items():
        monkeypatch.setitem(FORMS, step, {forms.ELSEWHERE: row[forms.ELSEWHERE]})
    compiled.clear_cache()
    out = encode(small_models["base"], waveform, lengths, **options)
    compiled.clear_cache()
    np.testing.assert_array_equal(out.exit_layer, wanted.exit_layer)
    np.testing.assert_allclose(out.entropy, wanted.entropy, rtol=0, atol=1e-5)
    assert_close_to_scale(out.hidden_states, wanted.hidden_states)
