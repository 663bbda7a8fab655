"""Single steps of the model in all their forms: part of benchmarks/first_gpu.py."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from gpu_sizes import Sizes, milliseconds

from daisy_jax import audio
from daisy_jax.model import attention
from daisy_jax.model.branches import Branches
from daisy_jax.model.feature_encoder import FeatureEncoder
from daisy_jax.model.forms import FORMS, one_form
from daisy_jax.model.transformer import PositionalConvolution
from daisy_jax.tasks import lstm
from daisy_jax.tasks.lstm import BidirectionalLstm

Line = dict[str, Any]


def in_form(step: str, form: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function jitted, with one form of a step on this platform."""

    def run(*arguments: Any) -> Any:
        with one_form(step, form):
            return function(*arguments)

    return jax.jit(run)


def drawn(seed: int, *shape: int, dtype: Any = jnp.float32) -> jax.Array:
    """Standard normal numbers, made on the device."""
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def cast(tree: Any, dtype: Any) -> Any:
    """All arrays of a tree in another type."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


def error_of(actual: Any, wanted: Any) -> float:
    """Largest difference, as a share of the largest number wanted."""
    actual, wanted = np.asarray(actual, np.float64), np.asarray(wanted, np.float64)
    return float(np.max(np.abs(actual - wanted)) / np.max(np.abs(wanted)))


def squares(function: Callable[..., Any], arguments: tuple[int, ...]) -> Callable[..., Any]:
    """Gradients of a sum of squares of what a function returns."""

    def loss(*given: Any) -> jax.Array:
        return jnp.sum(jnp.square(function(*given).astype(jnp.float32)))

    return jax.grad(loss, arguments)


def measure_attention(shapes: Sizes) -> Iterator[Line]:
    """Fused against plain, with a row of no frames and one of a single frame, and the gradient."""
    for seconds in (shapes.seconds, shapes.long_seconds):
        yield from attention_at(shapes, seconds)


def attention_at(shapes: Sizes, seconds: float) -> Iterator[Line]:
    """The lines for utterances of one length."""
    heads, width = shapes.config.num_heads, shapes.config.dim // shapes.config.num_heads
    frames = int(audio.frame_count(round(seconds * audio.SAMPLE_RATE)))
    arrays = [drawn(i, shapes.rows, frames, heads, width, dtype=jnp.bfloat16) for i in range(3)]
    counts = np.full(shapes.rows, frames)
    counts[:2] = 0, 1
    mask = jnp.asarray(np.arange(frames) < counts[:, None])

    def attended(query: Any, key: Any, value: Any) -> jax.Array:
        return jnp.where(mask[..., None, None], attention.attend(query, key, value, mask), 0)

    with jax.default_matmul_precision("highest"):
        whole = cast(arrays, jnp.float32)
        exact = in_form("attention", "by_head", attended)(*whole)
        exact_gradients = in_form("attention", "by_head", squares(attended, (0, 1, 2)))(*whole)
    forms = ["at_once", "fused"] if attention._fused_kernel_runs() else ["at_once"]
    forward = {form: in_form("attention", form, attended) for form in forms}
    backward = {form: in_form("attention", form, squares(attended, (0, 1, 2))) for form in forms}
    times = milliseconds({f: lambda f=f: forward[f](*arrays) for f in forms}, shapes)
    gradient_times = milliseconds({f: lambda f=f: backward[f](*arrays) for f in forms}, shapes)
    for form in forms:
        out, gradients = forward[form](*arrays), backward[form](*arrays)
        yield {
            "form": form,
            "seconds": seconds,
            "milliseconds": times[form],
            "gradient_milliseconds": gradient_times[form],
            "error": max(map(error_of, (out, *gradients), (exact, *exact_gradients))),
            "finite": all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in (out, *gradients)),
        }


def measure_positional_convolution(shapes: Sizes) -> Iterator[Line]:
    """As a grouped convolution over one dimension and over two, and by blocks."""
    config = shapes.config
    frames = int(audio.frame_count(round(shapes.seconds * audio.SAMPLE_RATE)))
    module = PositionalConvolution(config, rngs=nnx.Rngs(0))
    x = drawn(0, shapes.rows, frames, config.dim)

    def over_two_dimensions(module: Any, x: jax.Array) -> jax.Array:
        layer = module.convolution
        out = jax.lax.conv_general_dilated(
            x[:, None],
            layer.kernel[...][None],
            (1, 1),
            ((0, 0), *layer.padding),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=layer.feature_group_count,
        )[:, 0]
        return x + jax.nn.gelu(out + layer.bias[...][None, None], approximate=False)

    def call(module: Any, x: jax.Array) -> jax.Array:
        return module(x)

    functions = {
        "convolution": lambda f: in_form("positional_convolution", "convolution", f(call)),
        "blocks": lambda f: in_form("positional_convolution", "blocks", f(call)),
        "two_dimensional": lambda f: jax.jit(f(over_two_dimensions)),
    }
    short_module, short_x = cast(module, jnp.bfloat16), x.astype(jnp.bfloat16)
    forward = {form: make(lambda f: f) for form, make in functions.items()}
    backward = {form: make(lambda f: squares(f, (0, 1))) for form, make in functions.items()}
    cpu = jax.devices("cpu")[0]
    exact = forward["convolution"](*jax.device_put((module, x[:2]), cpu))
    times = milliseconds(
        {f: lambda f=f: forward[f](short_module, short_x) for f in functions}, shapes
    )
    gradient_times = milliseconds(
        {f: lambda f=f: backward[f](short_module, short_x) for f in functions}, shapes
    )
    with jax.default_matmul_precision("highest"):
        float32 = milliseconds({f: lambda f=f: forward[f](module, x) for f in functions}, shapes)
        errors = {f: error_of(forward[f](module, x)[:2], exact) for f in functions}
    for form in functions:
        yield {
            "form": form,
            "milliseconds": times[form],
            "gradient_milliseconds": gradient_times[form],
            "float32_milliseconds": float32[form],
            "error": errors[form],
        }


def measure_front_end(shapes: Sizes) -> Iterator[Line]:
    """As it is, over two dimensions, and without its norm, to see what that costs."""
    encoder = cast(FeatureEncoder(shapes.config, rngs=nnx.Rngs(0)), jnp.bfloat16)
    samples = round(shapes.seconds * audio.SAMPLE_RATE)
    waveform, lengths = drawn(0, shapes.rows, samples), jnp.full(shapes.rows, samples)

    def call(encoder: Any, waveform: jax.Array) -> jax.Array:
        return encoder(waveform, lengths)

    bare = cast(FeatureEncoder(shapes.config, rngs=nnx.Rngs(0)), jnp.bfloat16)
    bare.group_norm = lambda x, mask: x
    tasks = {form: in_form("front_end", form, call) for form in set(FORMS["front_end"].values())}
    without = in_form("front_end", "one_dimensional", lambda waveform: bare(waveform, lengths))
    times = milliseconds(
        {form: lambda form=form: tasks[form](encoder, waveform) for form in tasks}
        | {"without norm": lambda: without(waveform)},
        shapes,
    )
    for form, taken in times.items():
        yield {"form": form, "milliseconds": taken}


def measure_branch(shapes: Sizes) -> Iterator[Line]:
    """A branch's product: float32 in highest and JAX's own precision, three parts, bfloat16."""
    config = shapes.config
    frames = int(audio.frame_count(round(shapes.seconds * audio.SAMPLE_RATE)))
    branches = Branches(1, config.dim, config.num_classes, rngs=nnx.Rngs(0))
    branch = jax.tree.map(lambda leaf: leaf[0], branches)
    tapped = drawn(0, shapes.rows, frames, config.dim, dtype=jnp.bfloat16)

    def call(branch: Any, tapped: jax.Array) -> jax.Array:
        return branch(tapped)

    def plain(branch: Any, tapped: jax.Array) -> jax.Array:
        return jnp.einsum("btd,dc->btc", tapped.astype(jnp.float32), branch.kernel[...])

    def rounded(branch: Any, tapped: jax.Array) -> jax.Array:
        kernel = branch.kernel[...].astype(jnp.bfloat16)
        return jnp.einsum("btd,dc->btc", tapped, kernel, preferred_element_type=jnp.float32)

    functions = {form: in_form("branch", form, call) for form in set(FORMS["branch"].values())}
    functions |= {"default precision": jax.jit(plain), "bfloat16": jax.jit(rounded)}
    times = milliseconds({f: lambda f=f: functions[f](branch, tapped) for f in functions}, shapes)
    exact = np.asarray(tapped[0], np.float64) @ np.asarray(branch.kernel[...], np.float64)
    for form, function in functions.items():
        error = error_of(function(branch, tapped)[0], exact)
        yield {"form": form, "milliseconds": times[form], "error": error}


UNROLLINGS = (1, 4, 8)


def measure_lstm(shapes: Sizes) -> Iterator[Line]:
    """Both directions in turn, and together with several unrollings, and torch's; in float32."""
    batch, frames, inputs, units, layers = shapes.lstm
    module = BidirectionalLstm(inputs, units, layers, rngs=nnx.Rngs(0))
    x, mask = drawn(0, batch, frames, inputs), jnp.ones((batch, frames), bool)

    def call(module: Any, x: jax.Array) -> jax.Array:
        return module(x, mask)

    tasks: dict[Any, Any] = {}
    gradients: dict[Any, Any] = {}
    before = lstm.UNROLLED
    with jax.default_matmul_precision("highest"):  # as task heads are trained
        for form in sorted(set(FORMS["lstm"].values())):
            for unrolled in UNROLLINGS if form == "together" else (1,):
                lstm.UNROLLED = unrolled  # which is read while a program is traced
                forward = in_form("lstm", form, call).lower(module, x).compile()
                backward = in_form("lstm", form, squares(call, (0, 1))).lower(module, x).compile()
                tasks[form, unrolled] = lambda run=forward: run(module, x)
                gradients[form, unrolled] = lambda run=backward: run(module, x)
    lstm.UNROLLED = before
    theirs = torch_lstm(shapes.lstm)
    if theirs:
        tasks["torch", 1], gradients["torch", 1] = theirs
    times, gradient_times = milliseconds(tasks, shapes), milliseconds(gradients, shapes)
    for (form, unrolled), taken in times.items():
        yield {
            "form": form,
            "unrolled": unrolled,
            "milliseconds": taken,
            "gradient_milliseconds": gradient_times[form, unrolled],
        }


def torch_lstm(sizes: tuple[int, ...]) -> tuple[Callable, Callable] | None:
    """Tasks of torch's own LSTM, forward and with gradients; None without torch."""
    from torch_place import torch_place

    place = torch_place()
    if place is None:
        return None
    import torch

    batch, frames, inputs, units, layers = sizes
    module = torch.nn.LSTM(inputs, units, layers, batch_first=True, bidirectional=True).to(place)
    x = torch.randn(batch, frames, inputs, device=place, requires_grad=True)
    wait = torch.cuda.synchronize if place == "cuda" else lambda: None

    def forward() -> Any:
        with torch.no_grad():
            module(x)
        return wait

    def backward() -> Any:
        module(x)[0].square().sum().backward()
        return wait

    return forward, backward


MEASUREMENTS = {
    "attention": measure_attention,
    "positional_convolution": measure_positional_convolution,
    "front_end": measure_front_end,
    "branch": measure_branch,
    "lstm": measure_lstm,
}
