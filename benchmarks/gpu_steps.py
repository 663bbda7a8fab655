"""Single steps of the model in all their forms: part of first_gpu.py and of forms.py."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from gpu_sizes import Line, Sizes
from jaxtyping import Array, Bool, DTypeLike, Float, Float32, Int, PyTree
from timing import Task, milliseconds

import daisy_jax
from daisy_jax import Hubert
from daisy_jax.model import attention
from daisy_jax.model.branches import Branches
from daisy_jax.model.feature_encoder import FeatureEncoder
from daisy_jax.model.forms import FORMS, one_form
from daisy_jax.model.gelu import gelu
from daisy_jax.model.transformer import PositionalConvolution
from daisy_jax.tasks import lstm
from daisy_jax.tasks.lstm import BidirectionalLstm

Numbers = Float[Array, "..."] | Float[np.ndarray, "..."]
Function = Callable[..., PyTree[Array]]
Step = tuple[Function, Sequence[PyTree[Array]]]
"""A function and its arguments: modules and arrays in float32."""
UNROLLINGS = (1, 4, 8)  # of an LSTM


def in_form(step: str, form: str, function: Function) -> Function:
    """The function jitted, with one form of a step on this platform."""

    def run(*arguments: PyTree[Array]) -> PyTree[Array]:
        with one_form(step, form):
            return function(*arguments)

    return jax.jit(run)


def drawn(seed: int, *shape: int) -> Float[Array, "..."]:
    """Standard normal numbers, made on the device."""
    return jax.random.normal(jax.random.key(seed), shape)


def cast(tree: PyTree[Array], dtype: DTypeLike) -> PyTree[Array]:
    """All arrays of a tree in another type."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


def error_of(actual: Numbers, wanted: Numbers) -> float:
    """Largest difference, as a share of the largest number wanted."""
    actual, wanted = np.asarray(actual, np.float64), np.asarray(wanted, np.float64)
    return float(np.max(np.abs(actual - wanted)) / np.max(np.abs(wanted)))


def squares(function: Function, arguments: tuple[int, ...]) -> Function:
    """Gradients of a sum of squares of what a function returns."""

    def loss(*given: PyTree[Array]) -> Float[Array, ""]:
        return jnp.sum(jnp.square(function(*given).astype(jnp.float32)))

    return jax.jit(jax.grad(loss, arguments))


def timed_forms(
    forms: Mapping[str, Function],
    arguments: Sequence[PyTree[Array]],
    shapes: Sizes,
    gradients: tuple[int, ...] = (),
    judge: Callable[[list[PyTree[Array]]], Line] | None = None,
) -> Iterator[Line]:
    """A line for each form of a step: median milliseconds, and what else is asked for.

    Args:
      forms: jitted functions of the same arguments.
      arguments: theirs.
      shapes: how time is taken.
      gradients: numbers of the arguments, by which gradients are taken as well; none: by none.
      judge: makes figures of what a form returns, and of its gradients if there are some.
    """
    backward = {form: squares(run, gradients) for form, run in forms.items() if gradients}

    def times_of(runs: Mapping[str, Function]) -> dict[str, float]:
        calls = {form: functools.partial(run, *arguments) for form, run in runs.items()}
        return milliseconds(calls, shapes.runs, shapes.calls)

    times, gradient_times = times_of(forms), times_of(backward)
    for form, run in forms.items():
        line: Line = {"form": form, "milliseconds": times[form]}
        if gradients:
            line["gradient_milliseconds"] = gradient_times[form]
        if judge:
            outputs = [run(*arguments), *(backward[form](*arguments) if gradients else ())]
            line |= judge(outputs)
        yield line


def last_hidden(
    model: Hubert,
    waveform: Float[Array, "batch samples"],
    threshold: Float[Array, " batch"] | float | None = None,
    allowed: Bool[Array, " layers"] | None = None,
    lengths: Int[Array, " batch"] | None = None,
) -> Float[Array, "batch frames dim"]:
    """Of the whole model, for `encode`'s options."""
    options = {"threshold": threshold, "allowed": allowed}
    return daisy_jax.encode(model, waveform, lengths, **options).last_hidden


# ---------------------------------------------------------------- the steps


def call(module: Function, *arguments: Array) -> PyTree[Array]:
    """A module as an argument, so that programs do not hold its weights."""
    return module(*arguments)


def attention_step(shapes: Sizes) -> Step:
    """Queries, keys and values of all heads, and which frames there are."""
    heads, width = shapes.config.num_heads, shapes.config.dim // shapes.config.num_heads
    projected = drawn(0, shapes.rows, shapes.frames, 3, heads, width)
    return attention.attend, [projected, jnp.ones((shapes.rows, shapes.frames), bool)]


def positional_step(shapes: Sizes) -> Step:
    """The module, and the transformer's input."""
    module = PositionalConvolution(shapes.config, rngs=nnx.Rngs(0))
    return call, [module, drawn(0, shapes.rows, shapes.frames, shapes.config.dim)]


def front_end_step(shapes: Sizes, lengths: Int[Array, " batch"] | None = None) -> Step:
    """The module, waveforms and their lengths; None: all of them to the end."""
    encoder = FeatureEncoder(shapes.config, rngs=nnx.Rngs(0))
    waveform = drawn(0, shapes.rows, shapes.samples)
    if lengths is None:
        lengths = jnp.full(shapes.rows, shapes.samples)
    return call, [encoder, waveform, lengths]


def branch_step(shapes: Sizes) -> Step:
    """A branch, and what it looks at: bfloat16, as in a trunk of that type."""
    config = shapes.config
    branches = Branches(1, config.dim, config.num_classes, rngs=nnx.Rngs(0))
    tapped = drawn(0, shapes.rows, shapes.frames, config.dim).astype(jnp.bfloat16)
    return call, [jax.tree.map(lambda leaf: leaf[0], branches), tapped]


def lstm_step(shapes: Sizes) -> Step:
    """The LSTM of a recognition head, features, and which frames there are."""
    batch, frames, inputs, units, layers = shapes.lstm
    module = BidirectionalLstm(inputs, units, layers, rngs=nnx.Rngs(0))
    return call, [module, drawn(0, batch, frames, inputs), jnp.ones((batch, frames), bool)]


# ---------------------------------------------------------------- what is measured


def measure_attention(shapes: Sizes) -> Iterator[Line]:
    """Fused against plain, with a row of no frames and one of a single frame, and the gradient."""
    for seconds in (shapes.seconds, shapes.long_seconds):
        yield from attention_at(shapes._replace(seconds=seconds))


def attention_at(shapes: Sizes) -> Iterator[Line]:
    """The lines for utterances of one length."""
    attend, (projected, mask) = attention_step(shapes)
    arrays, mask = cast([projected], jnp.bfloat16), mask.at[:2].set(False).at[1, 0].set(True)

    def attended(
        projected: Float[Array, "batch frames 3 heads head_dim"],
    ) -> Float[Array, "batch frames heads head_dim"]:
        return jnp.where(mask[..., None, None], attend(projected, mask), 0)

    with jax.default_matmul_precision("highest"):
        whole, exactly = cast(arrays, jnp.float32), in_form("attention", "by_head", attended)
        exact = [exactly(*whole), *squares(exactly, (0,))(*whole)]

    def judge(outputs: list[Array]) -> Line:
        finite = all(bool(jnp.all(jnp.isfinite(output))) for output in outputs)
        return {"error": max(map(error_of, outputs, exact)), "finite": finite}

    names = ["at_once", "fused"] if attention._fused_kernel_runs() else ["at_once"]
    forms = {form: in_form("attention", form, attended) for form in names}
    for line in timed_forms(forms, arrays, shapes, (0,), judge):
        yield {"seconds": shapes.seconds, **line}


def measure_positional_convolution(shapes: Sizes) -> Iterator[Line]:
    """As a grouped convolution over one dimension and over two, and by blocks."""
    function, (module, x) = positional_step(shapes)

    def over_two_dimensions(
        module: PositionalConvolution, x: Float[Array, "batch frames dim"]
    ) -> Float[Array, "batch frames dim"]:
        layer = module.convolution
        out = jax.lax.conv_general_dilated(
            x[:, None],
            layer.kernel[...][None],
            (1, 1),
            ((0, 0), *layer.padding),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=layer.feature_group_count,
        )[:, 0]
        return x + gelu(out + layer.bias[...][None, None])

    names = ("convolution", "blocks")
    forms = {form: in_form("positional_convolution", form, function) for form in names}
    exact = forms["convolution"](*jax.device_put((module, x[:2]), jax.devices("cpu")[0]))
    forms["two_dimensional"] = jax.jit(over_two_dimensions)

    def judge(outputs: list[Array]) -> Line:
        return {"error": error_of(outputs[0][:2], exact)}

    with jax.default_matmul_precision("highest"):
        in_float32 = list(timed_forms(forms, (module, x), shapes, judge=judge))
    short = cast((module, x), jnp.bfloat16)
    for line, other in zip(timed_forms(forms, short, shapes, (0, 1)), in_float32, strict=True):
        yield {**line, "float32_milliseconds": other["milliseconds"], "error": other["error"]}


def measure_front_end(shapes: Sizes) -> Iterator[Line]:
    """As it is, over two dimensions, and without its norm, to see what that costs."""
    step = "front_end"
    function, (encoder, waveform, lengths) = front_end_step(shapes)
    encoder, bare = (cast(encoder, jnp.bfloat16) for _ in range(2))
    bare.group_norm = lambda x, *moments: x
    forms = {form: in_form(step, form, function) for form in set(FORMS[step].values())}
    forms["without norm"] = in_form(step, "one_dimensional", lambda _, *batch: bare(*batch))
    yield from timed_forms(forms, (encoder, waveform, lengths), shapes)


def measure_branch(shapes: Sizes) -> Iterator[Line]:
    """A branch's product: float32 in highest and JAX's own precision, three parts, bfloat16."""
    function, (branch, tapped) = branch_step(shapes)

    def product(dtype: DTypeLike) -> Function:
        def run(branch: Branches, tapped: Array) -> Float[Array, "batch frames classes"]:
            inputs = tapped.astype(dtype), branch.kernel[...].astype(dtype)
            return jnp.einsum("btd,dc->btc", *inputs, preferred_element_type=jnp.float32)

        return jax.jit(run)

    forms = {form: in_form("branch", form, function) for form in set(FORMS["branch"].values())}
    forms |= {"default precision": product(jnp.float32), "bfloat16": product(jnp.bfloat16)}
    exact = np.asarray(tapped[0], np.float64) @ np.asarray(branch.kernel[...], np.float64)

    def judge(outputs: list[Array]) -> Line:
        return {"error": error_of(outputs[0][0], exact)}

    yield from timed_forms(forms, (branch, tapped), shapes, judge=judge)


def measure_lstm(shapes: Sizes) -> Iterator[Line]:
    """Directions apart, together with several unrollings, cuDNN's, and torch's; in float32."""
    function, arguments = lstm_step(shapes)

    def unrolled(form: str, count: int) -> Function:
        def run(*arguments: PyTree[Array]) -> PyTree[Array]:
            with mock.patch.object(lstm, "UNROLLED", count):  # which is read while this is traced
                return function(*arguments)

        return in_form("lstm", form, run)

    forms = {f"together {count}": unrolled("together", count) for count in UNROLLINGS}
    forms |= {f"{form} 1": unrolled(form, 1) for form in ("side_by_side", "cudnn")}
    with jax.default_matmul_precision("highest"):  # as task heads are trained
        lines = list(timed_forms(forms, arguments, shapes, (0, 1)))
    for line in lines:
        form, count = str(line["form"]).split()
        yield {**line, "form": form, "unrolled": int(count)}
    theirs = torch_lstm(np.asarray(arguments[1]), *shapes.lstm[3:])
    if theirs:
        tasks = {"milliseconds": theirs[1], "gradient_milliseconds": theirs[2]}
        yield {"form": "torch", "unrolled": 1, **milliseconds(tasks, shapes.runs, shapes.calls)}


def torch_lstm(
    x: Float32[np.ndarray, "batch frames inputs"],
    units: int,
    layers: int,
    lengths: Int[np.ndarray, " batch"] | None = None,
) -> tuple[str, Task, Task] | None:
    """Where torch's own LSTM runs, and its tasks, forward and with gradients; None without torch.

    Args:
      x: the sequences.
      units: of each direction.
      layers: bidirectional ones.
      lengths: of the sequences, which are packed then; None: all frames count.
    """
    from peers import torch_place

    place = torch_place()
    if place is None:
        return None
    import torch
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    options = {"batch_first": True, "bidirectional": True}
    module = torch.nn.LSTM(x.shape[-1], units, layers, **options).to(place)
    theirs = torch.tensor(x, device=place, requires_grad=True)
    wait = torch.cuda.synchronize if place == "cuda" else lambda: None

    def run() -> torch.Tensor:
        if lengths is None:
            return module(theirs)[0]
        packed = pack_padded_sequence(theirs, torch.tensor(lengths), True, enforce_sorted=False)
        return pad_packed_sequence(module(packed)[0], batch_first=True)[0]

    def forward() -> Callable[[], None]:
        with torch.no_grad():
            run()
        return wait

    def backward() -> Callable[[], None]:
        run().square().sum().backward()
        return wait

    return place, forward, backward


MEASUREMENTS = {
    "attention": measure_attention,
    "positional_convolution": measure_positional_convolution,
    "front_end": measure_front_end,
    "branch": measure_branch,
    "lstm": measure_lstm,
}
