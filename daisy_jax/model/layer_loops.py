"""All loops over the layers: every utterance through all of them, to one, or each to its own."""

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from daisy_jax.exits import fires
from daisy_jax.model.criteria import Criterion
from daisy_jax.model.forms import run_form
from daisy_jax.model.hubert import Embedded, Hubert
from daisy_jax.model.layer_arrays import layer_at, over_layers, over_reached_layers
from daisy_jax.model.pooling import RunningWeights, normalize
from daisy_jax.model.slices import RunSlice, State, by_switch, in_loops
from daisy_jax.model.transformer import TransformerLayer

Keep = Literal["nothing", "blocks", "taps"]
"""What of every layer is kept."""


class Outcome(NamedTuple):
    """What came of a batch; padded frames hold garbage."""

    hidden: Float[Array, "batch frames dim"]
    """The block's output at each utterance's exit layer."""
    pooled: Float[Array, "batch frames dim"] | None
    """float32, eq. (4)."""
    blocks: Float[Array, "layers batch frames dim"] | None
    """What was to be kept of every layer; zero behind the exit."""
    score: Float[Array, "batch layers"]
    """float32, the criterion's; +inf where it was not evaluated."""
    exit_layer: Int[Array, " batch"]
    """int32, 1..L; 0 for an utterance without a frame."""
    forced: Bool[Array, " batch"]
    """Left at the deepest allowed layer because no score was below the threshold."""


def deepest_layer(allowed: Bool[Array, " layers"]) -> Int[Array, ""]:
    """Number of the deepest allowed layer, from 1."""
    return len(allowed) - jnp.argmax(allowed[::-1]).astype(jnp.int32)


def last_block(model: Hubert, embedded: Embedded) -> Float[Array, "batch frames dim"]:
    """The last block's output, garbage on padded frames. Differentiable."""

    def one_layer(hidden, per_layer):
        (layer,) = per_layer
        return layer(hidden, embedded.frame_mask)[0], None

    return over_layers(one_layer, embedded.hidden, model.layers)[0]


def tapped_layers(
    model: Hubert, embedded: Embedded
) -> tuple[Float[Array, "batch frames dim"], Float[Array, "layers batch frames dim"]]:
    """The last block's output, and the tap of every layer: what branches look at.

    Both are garbage on padded frames.
    """

    def one_layer(hidden, per_layer):
        (layer,) = per_layer
        block, ffn = layer(hidden, embedded.frame_mask)
        return block, ffn if model.config.tap == "ffn" else block

    return over_layers(one_layer, embedded.hidden, model.layers)


def full_depth(
    model: Hubert,
    embedded: Embedded,
    pooled: Float[Array, "batch frames dim"] | None,
    weights: RunningWeights | None,
    deepest: Int[Array, ""] | None,
    keep: Keep,
) -> Outcome:
    """Every utterance to the same layer, differentiable in reverse mode.

    `deepest` counts from 1. None is the last layer, and then no condition asks how deep it is.
    """

    def run_layer(layer, layer_weight, hidden, pooled):
        block, ffn = layer(hidden, embedded.frame_mask)
        tapped = ffn if model.config.tap == "ffn" else block
        if pooled is not None:
            pooled = layer_weight.keep * pooled + layer_weight.add * normalize(tapped)
        return block, pooled, {"nothing": None, "blocks": block, "taps": tapped}[keep]

    def skip_layer(layer, layer_weight, hidden, pooled):
        return hidden, pooled, None if keep == "nothing" else jnp.zeros_like(hidden)

    def one_layer(carry, per_layer):
        layer, number, layer_weight = per_layer
        if deepest is None:
            hidden, pooled, block = run_layer(layer, layer_weight, *carry)
        else:
            hidden, pooled, block = jax.lax.cond(
                number <= deepest, run_layer, skip_layer, layer, layer_weight, *carry
            )
        return (hidden, pooled), block

    numbers, weights = _per_layer(model, weights)
    (hidden, pooled), blocks = over_layers(
        one_layer, (embedded.hidden, pooled), model.layers, numbers, weights
    )
    has_frames = embedded.frame_mask[:, 0]
    last = jnp.int32(len(numbers)) if deepest is None else deepest
    score = jnp.full_like(has_frames, jnp.inf, jnp.float32, shape=(len(hidden), len(numbers)))
    return Outcome(hidden, pooled, blocks, score, jnp.where(has_frames, last, 0), has_frames)


def _per_layer(
    model: Hubert, weights: RunningWeights | None
) -> tuple[Int[Array, " layers"], RunningWeights | None]:
    """Numbers of the layers, from 1, and the part of the layer weights that belongs to them."""
    numbers = jnp.arange(1, model.config.num_layers + 1, dtype=jnp.int32)
    return numbers, jax.tree.map(lambda weight: weight[1:], weights)


def early_exit(
    model: Hubert,
    embedded: Embedded,
    pooled: Float[Array, "batch frames dim"] | None,
    weights: RunningWeights | None,
    threshold: Float[Array, " batch"],
    allowed: Bool[Array, " layers"],
    keep: Keep,
    criterion: Criterion,
) -> Outcome:
    """Each utterance to its own layer.

    The outer loop goes over layers. Before each, the rows that are still inside are packed at the
    front; the layer is then computed for about as many rows as these are, and not at all once
    everybody has left. Shapes are fixed, only what is run depends on the data: JAX compiles one
    program for all ways of leaving, and time follows the rows that are still inside.
    """
    hidden, frame_mask = embedded.hidden, embedded.frame_mask
    deepest = deepest_layer(allowed)

    def one_layer(carry, per_layer):
        hidden, pooled, inside, exit_layer, forced, remembered = carry
        layer, number, weight, may_leave = per_layer
        block = None if keep == "nothing" else jnp.zeros_like(hidden)
        state = State(hidden, pooled, block, jnp.full_like(threshold, jnp.inf), remembered)
        cut = functools.partial(
            _cut_layer, model, layer, number, frame_mask, inside, may_leave, weight, keep, criterion
        )
        count = jnp.sum(inside, dtype=jnp.int32)
        forms = {
            "loops": functools.partial(in_loops, cut),
            "switch": functools.partial(by_switch, cut),
        }
        state = run_form("layer", forms, count, state)
        free = inside & may_leave & fires(state.score, threshold)
        leaves = free | (inside & (number == deepest))
        carry = (
            state.hidden,
            state.pooled,
            inside & ~leaves,
            jnp.where(leaves, number, exit_layer),
            forced | (leaves & ~free),
            state.remembered,
        )
        return carry, (state.score, state.block)

    # Under shard_map a loop's state must vary over every device axis that its inputs vary over, and
    # zeros that are made here vary over none. jax.lax.pcast would say so, but wants the axes by
    # name, which only the caller of shard_map knows. To choose between equals changes no value,
    # and makes the state depend on all inputs.
    tie = (hidden[:, 0, 0].astype(jnp.float32) == threshold) & frame_mask[:, 0] & allowed[0]

    def tied(array):
        return jnp.where(jnp.expand_dims(tie, range(1, array.ndim)), array, array)

    hidden, pooled, inside, threshold, remembered = jax.tree.map(
        tied, (hidden, pooled, frame_mask[:, 0], threshold, criterion.start(len(frame_mask)))
    )
    nobody = jnp.zeros_like(inside)
    start = (hidden, pooled, inside, nobody.astype(jnp.int32), nobody, remembered)
    (hidden, pooled, _, exit_layer, forced, _), (scores, blocks) = over_reached_layers(
        one_layer, start, model.layers, *_per_layer(model, weights), allowed
    )
    return Outcome(hidden, pooled, blocks, scores.T, exit_layer, forced)


def _cut_layer(
    model: Hubert,
    cut: Callable[[], TransformerLayer],
    number: Int[Array, ""],
    frame_mask: Bool[Array, "batch frames"],
    inside: Bool[Array, " batch"],
    may_leave: Bool[Array, ""],
    weight: RunningWeights | None,
    keep: Keep,
    criterion: Criterion,
) -> RunSlice:
    """Layer `number` (from 1), to be run on slices of the rows that are inside, packed in front."""
    assert model.branches is not None  # what has a threshold has branches
    layer, branch = cut(), layer_at(model.branches, number - 1)
    order = jnp.argsort(~inside, stable=True)
    num_inside = jnp.sum(inside)

    def run_slice(size, first, ask, state):
        # Slots behind the last row inside point outside of the batch: nothing is written there.
        slots = first + jnp.arange(size)
        rows = jnp.where(slots < num_inside, order.at[slots].get(mode="clip"), len(inside))

        def take(array):
            return array.at[rows].get(mode="clip")

        def put(array, values):
            return array.at[rows].set(values, mode="drop")

        mask = take(frame_mask)
        out, ffn = layer(take(state.hidden), mask)
        tapped = ffn if model.config.tap == "ffn" else out

        before = jax.tree.map(take, (jnp.full_like(state.score, jnp.inf), state.remembered))

        def evaluate():
            return criterion(branch(tapped), mask, before[1])

        if ask:
            score, remembered = jax.lax.cond(may_leave, evaluate, lambda: before)
        else:
            score, remembered = jax.tree.map(
                lambda new, old: jnp.where(may_leave, new, old), evaluate(), before
            )
        pooled, block = state.pooled, state.block
        if pooled is not None and weight is not None:
            pooled = put(pooled, weight.keep * take(pooled) + weight.add * normalize(tapped))
        if block is not None:
            block = put(block, tapped if keep == "taps" else out)
        return State(
            put(state.hidden, out),
            pooled,
            block,
            put(state.score, score),
            jax.tree.map(put, state.remembered, remembered),
        )

    return run_slice
