"""Probes: how well a linear classifier finds given frame labels in each layer's output.

A probe sees one frame of one layer. What it reaches is what a linear layer on top of frozen
features would reach (Alain and Bengio, 2017, "Understanding intermediate layers using linear
classifier probes").
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

import daisy_jax
from daisy_jax import InputError
from daisy_jax.data.batches import FrameLabels
from daisy_jax.data.corpus import Corpus
from daisy_jax.features.label_sources import (
    Labelled,
    labelled_batches,
    labelled_frames,
    open_labels,
)
from daisy_jax.model.hubert import Hubert, embed
from daisy_jax.model.layer_loops import full_depth
from daisy_jax.reporting import followed

STEPS, ROWS, RATE = 2_000, 2_048, 1e-2
"""Of the probes' training: steps, frames in each, and Adam's peak rate."""


class Probes(NamedTuple):
    """A linear classifier for each layer, 0 being what enters the first one."""

    mean: Float[Array, "items dim"]
    """Of the training frames; features are standardised by it."""
    deviation: Float[Array, "items dim"]
    kernel: Float[Array, "items dim classes"]
    bias: Float[Array, "items classes"]


class Hits(NamedTuple):
    """What probes did to a corpus."""

    names: list[str]
    """Utterances."""
    right: Int[np.ndarray, "utterances items"]
    """Frames whose label was found."""
    frames: Int[np.ndarray, " utterances"]
    """Frames with a label."""
    entropy: Float32[np.ndarray, "utterances layers"]
    """Mean entropies of the model's branches, nats; [utterances, 0] if nobody asked for them."""


@jax.jit
def outputs(
    model: Hubert, waveform: Float[Array, "batch samples"], lengths: Int[Array, " batch"]
) -> Float[Array, "items batch frames dim"]:
    """What enters the first layer, and every block's output; garbage on padded frames."""
    embedded = embed(model, waveform, lengths)
    blocks = full_depth(model, embedded, None, None, None, "blocks").blocks
    assert blocks is not None  # they were asked for
    return jnp.concatenate([embedded.hidden[None], blocks])


def fit_probes(model: Hubert, labelled: Labelled, frames: int, seed: int) -> Probes:
    """Trains probes on about so many frames with a label, drawn evenly.

    Raises:
      InputError: there are no frames with a label.
    """
    total = labelled_frames(labelled)
    if not total:
        raise InputError("--labels: no frame of the training speech has a label that counts")
    share, rng = min(1.0, frames / total), np.random.default_rng(seed)
    features, classes = [], []
    for _, batch in labelled_batches(labelled):
        rows, times = np.nonzero(
            (batch["labels"] >= 0) & (rng.random(batch["labels"].shape) < share)
        )
        out = outputs(model, batch["waveform"], batch["lengths"])
        features.append(np.asarray(out[:, rows, times], np.float16))
        classes.append(batch["labels"][rows, times])
    x, y = np.concatenate(features, axis=1), np.concatenate(classes)
    return _fitted(x, y, len(labelled.classes), seed)


def _fitted(
    x: Float[np.ndarray, "items frames dim"], y: Int[np.ndarray, " frames"], classes: int, seed: int
) -> Probes:
    """Softmax regression for all items at once, by Adam with a rate that falls to zero."""
    import optax

    mean = np.stack([item.astype(np.float32).mean(axis=0) for item in x])
    deviation = np.stack([item.astype(np.float32).std(axis=0) for item in x]) + 1e-5
    items, count, dim = x.shape
    start = Probes(
        jnp.asarray(mean),
        jnp.asarray(deviation),
        jnp.zeros((items, dim, classes)),
        jnp.zeros((items, classes)),
    )
    optimizer = optax.adam(lambda step: RATE * (1 - jnp.asarray(step, jnp.float32) / STEPS))

    def loss(weights, probes, features, labels):
        kernel, bias = weights
        scores = logits(probes._replace(kernel=kernel, bias=bias), features)
        each = optax.softmax_cross_entropy_with_integer_labels(scores, labels[None])
        return jnp.sum(jnp.mean(each, axis=1))  # of items that share nothing

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, features, labels):
        weights, optimizer_state = state
        gradient = jax.grad(loss)(weights, start, features, labels)
        updates, optimizer_state = optimizer.update(gradient, optimizer_state)
        return optax.apply_updates(weights, updates), optimizer_state

    weights = (start.kernel, start.bias)
    state = (weights, optimizer.init(weights))
    rng = np.random.default_rng([seed, 1])
    for _ in followed(range(STEPS), "probes"):
        drawn = rng.integers(count, size=min(ROWS, count))
        state = step(state, x[:, drawn].astype(np.float32), y[drawn])
    kernel, bias = state[0]
    return start._replace(kernel=kernel, bias=bias)


def logits(
    probes: Probes, features: Float[Array, "items frames dim"]
) -> Float[Array, "items frames classes"]:
    """What each probe says of its layer's frames."""
    scaled = (features - probes.mean[:, None]) / probes.deviation[:, None]
    return jnp.einsum("ifd,idc->ifc", scaled, probes.kernel) + probes.bias[:, None]


def probe_hits(
    model: Hubert, probes: Probes, labelled: Labelled, *, entropies: bool = False
) -> Hits:
    """Counts the frames whose label each probe finds. Frames without a label do not count.

    With `entropies`, for which the model must have branches, its layers are computed twice.
    """

    @jax.jit
    def count(model, probes, waveform, lengths, labels):
        def one_row(features, labels):
            found = jnp.argmax(logits(probes, features), axis=-1)
            return jnp.sum((found == labels[None]) & (labels >= 0)[None], axis=1, dtype=jnp.int32)

        out = outputs(model, waveform, lengths)
        return jax.lax.map(lambda row: one_row(*row), (jnp.swapaxes(out, 0, 1), labels))

    items = len(probes.mean)
    right = np.zeros((len(labelled.corpus.names), items), np.int64)
    frames = np.zeros(len(labelled.corpus.names), np.int64)
    layers = model.config.num_layers if entropies else 0
    entropy = np.zeros((len(labelled.corpus.names), layers), np.float32)
    for numbers, batch in labelled_batches(labelled):
        hits = count(model, probes, **batch)
        right[numbers] = np.asarray(hits)[: len(numbers)]
        frames[numbers] = np.sum(batch["labels"] >= 0, axis=1)[: len(numbers)]
        if entropies:
            out = daisy_jax.encode(model, batch["waveform"], batch["lengths"], threshold=-np.inf)
            entropy[numbers] = np.asarray(out.entropy)[: len(numbers)]
    return Hits(list(labelled.corpus.names), right, frames, entropy)


def probe_labels(
    source: str,
    corpus: Corpus,
    tier: str,
    *,
    ignored: Sequence[str] = (),
    of: Labelled | None = None,
) -> Labelled:
    """Labels as `open_labels` finds them, of which some do not count.

    Args:
      source: where they are.
      corpus: whose frames they are.
      tier: of TextGrids.
      ignored: classes that do not count, such as silence.
      of: other labels; these ones get their numbers, and classes that they lack do not count.
    """
    found = open_labels(source, corpus, tier)
    classes = tuple(name for name in found.classes if name not in ignored)
    classes = classes if of is None else of.classes
    numbers = {name: number for number, name in enumerate(classes)}
    renumbered = [numbers.get(name, -1) for name in found.classes]
    return Labelled(found.corpus, _Renumbered(found.labels, renumbered), classes)


class _Renumbered:
    """Labels under other numbers."""

    def __init__(self, labels: FrameLabels, numbers: list[int]):
        self._labels, self._numbers = labels, np.asarray([*numbers, -1], np.int32)

    def read(self, index: int, frames: slice) -> Int[np.ndarray, " frames"]:
        """As for all `FrameLabels`."""
        return self._numbers[self._labels.read(index, frames)]  # -1 stays -1
