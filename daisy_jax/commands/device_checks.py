"""What `daisy-jax check` looks at: one function a question, each with its answer in one line.

References were computed in float64 numpy (`tests/make_check_references.py`) from weights and sounds
that numpy's legacy generator gives, whose numbers are the same everywhere and for good.
"""

import dataclasses
import functools
import pathlib
import statistics
import time
import zlib
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float64, Int, PyTree

import daisy_jax
from daisy_jax import Encoded, Hubert, HubertConfig
from daisy_jax.accelerator import trunk_dtype
from daisy_jax.checkpoints import fill, named_leaves
from daisy_jax.model.branches_loss import branches_loss
from daisy_jax.model.hubert import arranged
from daisy_jax.whole_files import read_json

Lengths: TypeAlias = Int[np.ndarray, " batch"]
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
MANY = np.tile(LENGTHS, 24)
"""So many that an accelerator, too, packs those that are still inside into smaller slices."""
ROWS, ROWS_ELSEWHERE, SECONDS = 2, 16, 5.0
"""Utterances that are timed, on CPUs and elsewhere, and the length of each."""
LEAST_DEPTH = 4
"""Layers of a model whose time says something."""
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


@functools.cache
def random_model(config: HubertConfig) -> Hubert:
    """Weights that never change, each by its own name; branches are surer, the deeper they sit."""
    empty = nnx.eval_shape(lambda: Hubert(config, rngs=nnx.Rngs(0)))
    tensors = {}
    for name, leaf in named_leaves(empty).items():
        rng = np.random.RandomState(zlib.crc32(name.encode()))
        drawn = rng.standard_normal(leaf.shape).astype(np.float32)
        if "kernel" not in name:
            tensors[name] = jnp.asarray(0.1 * drawn + np.float32("scale" in name))
            continue
        stacked = name.startswith(("layers.", "branches."))
        inputs = leaf.shape[-2] if stacked else np.prod(leaf.shape[:-1])
        gain = np.full(config.num_layers, np.sqrt(2), np.float32)
        if name.startswith("branches."):
            gain = np.linspace(1, 4, config.num_layers, dtype=np.float32)
        gain = gain[:, None, None] if stacked else gain[0]
        tensors[name] = jnp.asarray(drawn * gain / np.float32(np.sqrt(inputs)))
    return arranged(fill(empty, tensors))


def sounds(lengths: Lengths) -> Float[np.ndarray, "batch samples"]:
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
    wanted_arrays = [np.asarray(wanted.hidden), np.asarray(wanted.entropy)]
    error = difference([hidden, out.entropy[0]], wanted_arrays)
    return at_most(error, FLOAT32, "largest difference from float64")


def gradients_are_exact(model: Hubert, wanted: Reference) -> Answer:
    """Loss and gradient of the branches in a step of stage 1, against float64."""
    waveform, lengths = sounds(LENGTHS[:1]), jnp.asarray(LENGTHS[:1])
    step = jax.jit(jax.value_and_grad(branches_loss, has_aux=True))
    (loss, _), gradient = step(model.branches, model, waveform, lengths, labels(model.config))
    found = sampled(np.asarray(gradient.kernel[...]))
    error = difference([loss, found], [np.asarray(wanted.loss), np.asarray(wanted.gradient)])
    return at_most(error, FLOAT32, "largest difference from float64")


def half_precision_is_close(model: Hubert) -> Answer:
    """The last layer of a trunk in the short type that this device takes, against float32 here."""
    name = trunk_dtype(jax.devices()[0])
    dtype = jnp.dtype("bfloat16" if name == "float32" else name)
    kept = {"head": model.head, "branches": model.branches}
    short = jax.tree.map(lambda leaf: leaf.astype(dtype), model).replace(**kept)

    def last_layer(model: Hubert) -> Float64[np.ndarray, "batch frames dim"]:
        out = daisy_jax.encode(model, sounds(LENGTHS), LENGTHS)
        hidden = daisy_jax.final_norm(model, out.last_hidden)
        return np.asarray(hidden, np.float64)

    found, wanted = last_layer(short), last_layer(model)
    error = float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
    return at_most(error, SHORT, f"relative error of {dtype.name}")


def exits_do_not_depend_on_the_batch(model: Hubert, lengths: Lengths = LENGTHS) -> Answer:
    """In a batch and alone, without padding: the same exits and features, and the same twice."""
    waveforms = sounds(lengths)

    def run(rows: slice, threshold: Float[np.ndarray, " batch"] | None) -> Encoded:
        cut = waveforms[rows, : lengths[rows].max()]
        rest = None if threshold is None else threshold[rows]
        return daisy_jax.encode(model, cut, lengths[rows], threshold=rest)

    whole, threshold = slice(None), None
    if model.branches is not None:
        everywhere = run(whole, np.full(len(lengths), -np.inf, np.float32))
        threshold = spread(np.asarray(everywhere.entropy))
    batch, again = run(whole, threshold), run(whole, threshold)
    rows = np.linspace(0, len(lengths) - 1, len(LENGTHS)).astype(int).tolist()
    alone = [run(slice(row, row + 1), threshold) for row in rows]
    exits = [int(out.exit_layer[0]) for out in alone]
    together = [int(batch.exit_layer[row]) for row in rows]
    layers = "layers " + " ".join(map(str, exits))
    if exits != together:
        return Answer(False, f"{layers} alone, but {' '.join(map(str, together))} in a batch")
    twice = difference(again.last_hidden, batch.last_hidden)
    if not twice <= BATCHED:
        return Answer(False, f"two runs of one program differ by {twice:.1e}", twice, BATCHED)
    found = [
        batch.last_hidden[row, : int(out.num_frames[0])]
        for row, out in zip(rows, alone, strict=True)
    ]
    error = difference(found, [out.last_hidden[0] for out in alone])
    alike = "two runs alike" if twice == 0 else f"two runs differ by {twice:.1e}"
    return at_most(error, BATCHED, f"{layers}; {alike}; largest difference")


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
    depth = model.config.num_layers
    if depth < LEAST_DEPTH:
        return Answer(True, f"not asked of a model of {depth} layers")
    samples = round(SECONDS * daisy_jax.audio.SAMPLE_RATE)
    count = ROWS if jax.default_backend() == "cpu" else ROWS_ELSEWHERE
    waveform = jnp.asarray(sounds(np.full(count, samples, np.int32)))
    shallow = depth // 4

    @jax.jit
    def encoded(model: Hubert, waveform: Array, allowed: Array) -> Array:
        threshold = None if model.branches is None else np.inf
        out = daisy_jax.encode(model, waveform, threshold=threshold, allowed=allowed)
        return out.last_hidden

    def run(layer: int) -> float:
        allowed = jnp.asarray(np.arange(1, depth + 1) == layer)
        start = time.perf_counter()
        jax.block_until_ready(encoded(model, waveform, allowed))
        return time.perf_counter() - start

    run(depth)  # compiled here
    ratio = statistics.median(run(shallow) / run(depth) for _ in range(PAIRS))
    costs = [int(daisy_jax.multiply_adds(model.config, samples, n)) for n in (shallow, depth)]
    ideal = costs[0] / costs[1]
    most = (1 + ideal) / 2
    said = (
        f"layer {shallow} takes {ratio:.2f} of the time of layer {depth} (at most {most:.2f}; by "
        f"multiply-adds {ideal:.2f})"
    )
    return Answer(ratio <= most, said, ratio, most)
