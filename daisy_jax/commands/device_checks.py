"""What `daisy-jax check` looks at: one function a question, each with its answer in one line.

References were computed in float64 numpy (`tests/make_check_references.py`) from weights and sounds
that numpy's legacy generator gives, whose numbers are the same everywhere and for good.
"""

import dataclasses
import pathlib
import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, PyTree

import daisy_jax
from daisy_jax import Encoded, Hubert, HubertConfig
from daisy_jax.model.attention import attend
from daisy_jax.model.branches import Branches
from daisy_jax.model.branches_loss import branches_loss
from daisy_jax.model.feature_encoder import FeatureEncoder
from daisy_jax.model.forms import ELSEWHERE, FORMS, one_form
from daisy_jax.model.transformer import PositionalConvolution
from daisy_jax.tasks.lstm import BidirectionalLstm
from daisy_jax.whole_files import read_json

Arrays: TypeAlias = PyTree[Array | np.ndarray]
SMALL = HubertConfig(
    num_layers=4,
    dim=32,
    ffn_dim=64,
    num_heads=4,
    conv_dim=16,
    pos_conv_kernel=16,
    pos_conv_groups=4,
    num_classes=12,
)
BASE = HubertConfig.base(num_classes=100)
FLOAT32, BATCHED, SHORT = 1e-4, 1e-5, 0.05
"""How far numbers may be apart: float32 on two devices; in a batch and alone; a bfloat16 trunk."""
CLEAR = 1e-3
"""Nats between two entropies that no rounding exchanges."""
LENGTHS = np.array([16_000, 9_000, 16_000, 9_000], np.int32)
"""Samples of the utterances that are compared."""
TIMED = 2, 5.0
"""Utterances that are timed, and seconds of each."""
PAIRS = 5
"""Measurements of two depths, in turn."""


class Answer(NamedTuple):
    """Of one check."""

    right: bool
    said: str
    """What was found, and what was wanted."""
    found: float | None = None
    """A difference or a ratio."""
    most: float | None = None
    """What it may be."""


@dataclasses.dataclass(frozen=True)
class Reference:
    """What a model makes of the first utterance, in places that `sampled` chooses."""

    hidden: list[float]
    """Items 0 to L."""
    entropy: list[float]
    """Of each layer, nats."""
    loss: float
    """Sum of stage 1's loss over the branches, nats, for `labels`."""
    gradient: list[float]
    """Of that loss, by the branches' kernels."""


def random_model(config: HubertConfig) -> Hubert:
    """Weights that never change; branches are surer, the deeper they sit."""
    rng = np.random.RandomState(0)
    sure = np.linspace(1, 4, config.num_layers, dtype=np.float32)[:, None, None]

    def draw(path: tuple[object, ...], leaf: jax.ShapeDtypeStruct) -> Array:
        name = jax.tree_util.keystr(path)
        numbers = rng.standard_normal(leaf.shape).astype(np.float32)
        if "kernel" not in name:
            return jnp.asarray(0.1 * numbers + np.float32("scale" in name))
        stacked = "layers" in name or "branches" in name
        inputs = leaf.shape[-2] if stacked else np.prod(leaf.shape[:-1])
        gain = sure if "branches" in name else np.float32(np.sqrt(2))
        return jnp.asarray(numbers * gain / np.float32(np.sqrt(inputs)))

    empty = nnx.eval_shape(lambda: Hubert(config, rngs=nnx.Rngs(0)))
    return jax.tree_util.tree_map_with_path(draw, empty)


def sounds(
    lengths: Int[np.ndarray, " batch"],
) -> Float[np.ndarray, "batch samples"]:
    """Tones in noise, of other pitch and loudness in each row, padded with zeros."""
    rng = np.random.RandomState(1)
    rows = np.zeros((len(lengths), max(lengths)), np.float32)
    for row, length in zip(rows, lengths, strict=True):
        pitch, loudness, share = rng.uniform((80, 0.1, 0), (2_000, 0.8, 1))
        tone = np.sin(2 * np.pi * pitch / daisy_jax.audio.SAMPLE_RATE * np.arange(length))
        row[:length] = loudness * ((1 - share) * tone + share / 3 * rng.standard_normal(length))
    return rows


def labels(config: HubertConfig) -> Int[np.ndarray, "batch frames"]:
    """Classes for the frames of the first utterance, int32."""
    frames = daisy_jax.audio.frame_count(int(LENGTHS[0]))
    return np.random.RandomState(2).randint(0, config.num_classes, (1, frames)).astype(np.int32)


def sampled(hidden: Float[np.ndarray, "items frames dim"]) -> Float[np.ndarray, " places"]:
    """A few hundred of the numbers, from all items and from all over an utterance."""
    _, frames, dim = hidden.shape
    return hidden[:, :: frames // 4, :: dim // 8].reshape(-1)


def stored_references() -> dict[str, Reference]:
    """By the name of a model: "small" and "base"."""
    path = pathlib.Path(__file__).with_name("check_references.json")
    return read_json(path, dict[str, Reference], "install daisy_jax again")


def difference(found: Arrays, wanted: Arrays) -> float:
    """The largest difference, as a share of the largest number wanted; NaN if one is."""
    shares = []
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        shares.append(np.max(np.abs(one - other)) / np.max(np.abs(other)))
    return float(np.max(shares))


def at_most(found: float, most: float, what: str) -> Answer:
    """Whether a difference is small enough; NaN is not."""
    said = f"{what} {found:.1e} (at most {most:.0e})"
    return Answer(found <= most, said, found, most)


# ---------------------------------------------------------------- the questions


def float32_is_exact(model: Hubert, wanted: Reference) -> Answer:
    """Every layer's output and entropy, against float64."""
    options = {"threshold": -np.inf, "return_hidden_states": True}
    out = daisy_jax.encode(model, sounds(LENGTHS)[:1], LENGTHS[:1], **options)
    assert out.hidden_states is not None
    hidden = sampled(np.asarray(out.hidden_states[0]))
    pairs = [(hidden, wanted.hidden), (out.entropy[0], wanted.entropy)]
    error = max(difference(found, np.asarray(other)) for found, other in pairs)
    return at_most(error, FLOAT32, "largest difference from float64")


def gradients_are_exact(model: Hubert, wanted: Reference) -> Answer:
    """Loss and gradient of a step of stage 1, against float64."""
    waveform, lengths = sounds(LENGTHS[:1]), jnp.asarray(LENGTHS[:1])
    step = jax.jit(jax.value_and_grad(branches_loss, has_aux=True))
    (loss, _), gradient = step(model.branches, model, waveform, lengths, labels(model.config))
    found = sampled(np.asarray(gradient.kernel[...]))
    error = difference([loss, found], [np.asarray(wanted.loss), np.asarray(wanted.gradient)])
    return at_most(error, FLOAT32, "largest difference from float64")


def bfloat16_is_close(model: Hubert) -> Answer:
    """The last layer of a bfloat16 trunk, against float32 here."""
    kept = {"head": model.head, "branches": model.branches}
    short = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model).replace(**kept)
    found, wanted = (
        np.asarray(daisy_jax.encode(each, sounds(LENGTHS), LENGTHS).last_hidden, np.float64)
        for each in (short, model)
    )
    error = float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
    return at_most(error, SHORT, "relative error")


def exits_do_not_depend_on_the_batch(model: Hubert) -> Answer:
    """In a batch and alone, without padding: the same exits and features, and the same twice."""
    waveforms = sounds(LENGTHS)

    def run(rows: slice, threshold: Float[np.ndarray, " batch"] | None) -> Encoded:
        lengths = LENGTHS[rows]
        cut = waveforms[rows, : lengths.max()]
        rest = None if threshold is None else threshold[rows]
        return daisy_jax.encode(model, cut, lengths, threshold=rest)

    whole, threshold = slice(None), None
    if model.branches is not None:
        everywhere = run(whole, np.full(len(LENGTHS), -np.inf, np.float32))
        threshold = spread(np.asarray(everywhere.entropy))
    batch, again = run(whole, threshold), run(whole, threshold)
    alone = [run(slice(row, row + 1), threshold) for row in range(len(LENGTHS))]
    exits = [int(out.exit_layer[0]) for out in alone]
    layers = "layers " + " ".join(map(str, exits))
    if exits != np.asarray(batch.exit_layer).tolist():
        together = " ".join(map(str, np.asarray(batch.exit_layer)))
        return Answer(False, f"{layers} alone, but {together} in a batch")
    if not np.array_equal(batch.last_hidden, again.last_hidden):
        return Answer(False, "two runs of one program differ")
    pairs = zip(batch.last_hidden, alone, strict=True)
    error = max(difference(row[: out.num_frames[0]], out.last_hidden[0]) for row, out in pairs)
    return at_most(error, BATCHED, f"{layers}; two runs alike; largest difference")


def spread(entropy: Float[np.ndarray, "batch layers"]) -> Float[np.ndarray, " batch"]:
    """Thresholds that let utterances leave at layers from the first to the last.

    They lie in the middle between the smallest entropies up to a layer and up to the one before, at
    layers where these are so far apart that no rounding moves an exit.
    """
    count, depth = entropy.shape
    least = np.minimum.accumulate(entropy, axis=1)
    before = np.concatenate([np.full((count, 1), np.inf, np.float32), least[:, :-1]], axis=1)
    target = np.linspace(0, depth - 1, count)[:, None]
    away = np.where(before - least > CLEAR, np.abs(np.arange(depth) - target), np.inf)
    chosen = np.arange(count), np.argmin(away, axis=1)
    return (before[chosen] + least[chosen]) / 2


def leaving_early_saves_time(model: Hubert) -> Answer:
    """A quarter of the layers against all of them; at least half of what multiply-adds promise."""
    count, seconds = TIMED
    samples = round(seconds * daisy_jax.audio.SAMPLE_RATE)
    waveform = jnp.asarray(sounds(np.full(count, samples)))
    depth = model.config.num_layers
    shallow = max(1, depth // 4)

    def run(layer: int) -> float:
        allowed = np.arange(1, depth + 1) == layer
        threshold = None if model.branches is None else np.inf
        start = time.perf_counter()
        out = daisy_jax.encode(model, waveform, threshold=threshold, allowed=allowed)
        jax.block_until_ready(out.last_hidden)
        return time.perf_counter() - start

    for layer in (shallow, depth):  # compiled here
        run(layer)
    ratio = statistics.median(run(shallow) / run(depth) for _ in range(PAIRS))
    costs = [int(daisy_jax.multiply_adds(model.config, samples, n)) for n in (shallow, depth)]
    ideal = costs[0] / costs[1]
    most = (1 + ideal) / 2
    said = (
        f"layer {shallow} takes {ratio:.2f} of the time of layer {depth} (at most {most:.2f}; by "
        f"multiply-adds {ideal:.2f})"
    )
    return Answer(ratio <= most, said, ratio, most)


# ---------------------------------------------------------------- forms

Step = tuple[Callable[..., Arrays], list[Arrays], float]
"""A function, its arguments, and how far two forms may be apart."""


def numbers(*shape: int) -> Float[Array, "..."]:
    """Standard normal."""
    return jnp.asarray(np.random.RandomState(3).standard_normal(shape).astype(np.float32))


def call(module: Callable[..., Arrays], *arguments: Array) -> Arrays:
    """A module as an argument, so that programs do not hold its weights."""
    return module(*arguments)


def steps(small: Hubert) -> Mapping[str, Step]:
    """Every step that has several forms, at Base's width, in the type in which its forms differ."""
    rngs, rounded = nnx.Rngs(0), 2.0**-6  # a few roundings of bfloat16
    mask = jnp.arange(50)[None] < jnp.asarray([50, 20])[:, None]
    heads = numbers(3, 2, 50, BASE.num_heads, BASE.dim // BASE.num_heads).astype(jnp.bfloat16)
    encoder = FeatureEncoder(BASE, rngs=rngs)
    encoder = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), encoder)
    sound = jnp.asarray(sounds(np.full(2, 8_000)))
    branch = jax.tree.map(lambda leaf: leaf[0], Branches(1, BASE.dim, 100, rngs=rngs))
    everywhere = np.full(len(LENGTHS), -np.inf, np.float32)
    entropy = daisy_jax.encode(small, sounds(LENGTHS), LENGTHS, threshold=everywhere).entropy
    threshold = spread(np.asarray(entropy))

    def attended(query: Array, key: Array, value: Array) -> Array:
        return jnp.where(mask[..., None, None], attend(query, key, value, mask), 0)

    def leave(model: Hubert, waveform: Float[Array, "batch samples"]) -> Arrays:
        out = daisy_jax.encode(model, waveform, LENGTHS, threshold=threshold)
        return out.last_hidden, out.exit_layer

    hidden = numbers(2, 50, BASE.dim)
    return {
        "attention": (attended, list(heads), rounded),
        "positional_convolution": (call, [PositionalConvolution(BASE, rngs=rngs), hidden], FLOAT32),
        "front_end": (call, [encoder, sound, jnp.asarray([8_000, 8_000])], rounded),
        "branch": (call, [branch, hidden.astype(jnp.bfloat16)], FLOAT32),
        "layer": (leave, [small, jnp.asarray(sounds(LENGTHS))], FLOAT32),
        "lstm": (call, [BidirectionalLstm(32, 16, 2, rngs=rngs), hidden[..., :32], mask], FLOAT32),
    }


def forms_agree(
    step: str, function: Callable[..., Arrays], arguments: list[Arrays], limit: float
) -> Answer:
    """This platform's form of a step, and the one that unknown platforms get, against the CPU's."""

    def run() -> Arrays:
        jax.clear_caches()  # what was traced with another form
        return jax.jit(lambda *arguments: function(*arguments))(*arguments)

    found = {"here": run()}
    for form in (FORMS[step][ELSEWHERE], FORMS[step].get("cpu", FORMS[step][ELSEWHERE])):
        with one_form(step, form):
            found[form] = run()
    jax.clear_caches()
    wanted = found.pop(form)
    error = max(difference(each, wanted) for each in found.values())
    return at_most(error, limit, f"largest difference from {form}")
