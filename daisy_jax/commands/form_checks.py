"""Steps of the model in this platform's forms, against a CPU's: part of `daisy-jax check`."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

import daisy_jax
from daisy_jax import Hubert, HubertConfig
from daisy_jax.commands.device_checks import (
    FLOAT32,
    MANY,
    SMALL,
    Answer,
    Arrays,
    at_most,
    difference,
    random_model,
    sounds,
    spread,
)
from daisy_jax.model.attention import attend
from daisy_jax.model.branches import Branches
from daisy_jax.model.feature_encoder import FeatureEncoder
from daisy_jax.model.forms import ELSEWHERE, FORMS, one_form
from daisy_jax.model.transformer import PositionalConvolution
from daisy_jax.tasks.lstm import BidirectionalLstm

Step: TypeAlias = tuple[Callable[..., Arrays], list[Arrays], float]
"""A function, its arguments, and how far two forms may be apart."""
ROUNDED = 2.0**-6
"""A few roundings of bfloat16."""
FRAMES = 50, 20
"""Of two utterances."""


def numbers(*shape: int) -> Float[Array, "..."]:
    """Standard normal."""
    return jnp.asarray(np.random.RandomState(3).standard_normal(shape).astype(np.float32))


def call(module: Callable[..., Arrays], *arguments: Array) -> Arrays:
    """A module as an argument, so that programs do not hold its weights."""
    return module(*arguments)


def attention(config: HubertConfig) -> Step:
    """In bfloat16, for which there are fused kernels."""
    mask = jnp.arange(max(FRAMES))[None] < jnp.asarray(FRAMES)[:, None]
    shape = *mask.shape, 3, config.num_heads, config.dim // config.num_heads
    projected = numbers(*shape).astype(jnp.bfloat16)

    def attended(projected: Array) -> Array:
        return jnp.where(mask[..., None, None], attend(projected, mask), 0)

    return attended, [projected], ROUNDED


def positional_convolution(config: HubertConfig) -> Step:
    """In float32."""
    module = PositionalConvolution(config, rngs=nnx.Rngs(0))
    return call, [module, numbers(2, max(FRAMES), config.dim)], FLOAT32


def front_end(config: HubertConfig) -> Step:
    """In bfloat16, for which its other form is there."""
    module = FeatureEncoder(config, rngs=nnx.Rngs(0))
    module = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), module)
    lengths = np.full(2, 8_000, np.int32)
    return call, [module, jnp.asarray(sounds(lengths)), jnp.asarray(lengths)], ROUNDED


def branch(config: HubertConfig) -> Step:
    """On bfloat16 features; the product is as exact as in float32."""
    branches = Branches(1, config.dim, 100, rngs=nnx.Rngs(0))
    features = numbers(2, max(FRAMES), config.dim).astype(jnp.bfloat16)
    return call, [jax.tree.map(lambda leaf: leaf[0], branches), features], FLOAT32


def layer(config: HubertConfig) -> Step:
    """All layers of the small model with exits everywhere, whatever the config."""
    del config
    model, waveform = random_model(SMALL), sounds(MANY)
    everywhere = np.full(len(MANY), -np.inf, np.float32)
    entropy = daisy_jax.encode(model, waveform, MANY, threshold=everywhere).entropy
    threshold = spread(np.asarray(entropy))

    def leave(model: Hubert, waveform: Float[Array, "batch samples"]) -> Arrays:
        out = daisy_jax.encode(model, waveform, MANY, threshold=threshold)
        return out.last_hidden, out.exit_layer

    return leave, [model, jnp.asarray(waveform)], FLOAT32


def lstm(config: HubertConfig) -> Step:
    """Of a task head, for as many rows as all devices can share."""
    del config
    frames = jnp.asarray(jax.device_count() * FRAMES)
    mask = jnp.arange(max(FRAMES))[None] < frames[:, None]
    module = BidirectionalLstm(32, 16, 2, rngs=nnx.Rngs(0))
    return call, [module, numbers(*mask.shape, 32), mask], FLOAT32


STEPS: dict[str, Callable[[HubertConfig], Step]] = {
    "attention": attention,
    "positional_convolution": positional_convolution,
    "front_end": front_end,
    "branch": branch,
    "layer": layer,
    "lstm": lstm,
}
"""The rows of `FORMS`."""
OF_THE_MODEL = ("attention", "positional_convolution", "front_end")
"""Those that depend on a model's widths."""


def forms_agree(step: str, config: HubertConfig) -> Answer:
    """This platform's form of a step, and the one that unknown platforms get, against the CPU's."""
    function, arguments, limit = STEPS[step](config)

    def run() -> Arrays:
        jax.clear_caches()  # what was traced with another form
        return jax.jit(lambda *arguments: function(*arguments))(*arguments)

    found = [run()]
    for form in (FORMS[step][ELSEWHERE], FORMS[step].get("cpu", FORMS[step][ELSEWHERE])):
        with one_form(step, form):
            found.append(run())
    jax.clear_caches()
    *found, wanted = found
    error = float(np.max([difference(each, wanted) for each in found]))
    return at_most(error, limit, f"largest difference from {form}")
