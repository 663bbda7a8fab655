"""The two loops over the layers: all utterances to one layer, or each to its own."""

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from daisy_jax.model.branches import utterance_entropy
from daisy_jax.model.forms import run_form
from daisy_jax.model.hubert import Embedded, Hubert
from daisy_jax.model.pooling import RunningWeights, normalize

FRAMES_PER_SLICE = 512
"""Frames that fill a CPU in one turn of the inner loop (measured)."""
LEAST_FRAMES = 1024
"""Frames below which a GPU or TPU computes a layer hardly faster (estimated;
benchmarks/first_gpu.py decides)."""

Keep = Literal["nothing", "blocks", "taps"]
"""What of every layer is kept."""


def deepest_layer(allowed: jax.Array) -> jax.Array:
    """Number of the deepest allowed layer, from 1."""
    return len(allowed) - jnp.argmax(allowed[::-1]).astype(jnp.int32)


def full_depth(
    model: Hubert,
    embedded: Embedded,
    pooled: jax.Array | None,
    weights: RunningWeights | None,
    deepest: jax.Array | None,
    keep: Keep,
) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
    """Every utterance to the same layer: a plain scan, differentiable in reverse mode.

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
        number, *arguments = per_layer
        if deepest is None:
            hidden, pooled, block = run_layer(*arguments, *carry)
        else:
            hidden, pooled, block = jax.lax.cond(
                number <= deepest, run_layer, skip_layer, *arguments, *carry
            )
        return (hidden, pooled), block

    numbers, weights = _per_layer(model, weights)
    (hidden, pooled), blocks = jax.lax.scan(
        one_layer, (embedded.hidden, pooled), (numbers, model.layers, weights)
    )
    return hidden, pooled, blocks


def _per_layer(model: Hubert, weights: RunningWeights | None) -> tuple:
    """Numbers of the layers, from 1, and the part of the layer weights that belongs to them."""
    numbers = jnp.arange(1, model.config.num_layers + 1, dtype=jnp.int32)
    return numbers, jax.tree.map(lambda weight: weight[1:], weights)


class _State(NamedTuple):
    """What a layer changes of a batch."""

    hidden: jax.Array
    """[batch, frames, dim]"""
    pooled: jax.Array | None
    """float32 [batch, frames, dim]"""
    block: jax.Array | None
    """[batch, frames, dim], what is kept of this layer; zero where it was not computed."""
    entropy: jax.Array
    """float32 [batch], of this layer; +inf where it was not computed."""


RunSlice = Callable[[int, jax.Array | int, bool, _State], _State]
"""Runs a layer on some slots of the packed batch: how many, the first of them, whether the branch
is left out where nobody may leave, and the state."""


def early_exit(
    model: Hubert,
    embedded: Embedded,
    pooled: jax.Array | None,
    weights: RunningWeights | None,
    threshold: jax.Array,
    allowed: jax.Array,
    keep: Keep,
) -> tuple:
    """Each utterance to its own layer.

    The outer scan goes over layers. Before each, the rows that are still inside are packed at the
    front; the layer is then computed for about as many rows as these are, and not at all once
    everybody has left. Shapes are fixed, only what is run depends on the data.
    """
    hidden, frame_mask = embedded.hidden, embedded.frame_mask
    deepest = deepest_layer(allowed)

    def one_layer(carry, per_layer):
        hidden, pooled, inside, exit_layer, forced = carry
        number, weight, may_leave = per_layer
        block = None if keep == "nothing" else jnp.zeros_like(hidden)
        state = _State(hidden, pooled, block, jnp.full_like(threshold, jnp.inf))
        cut = functools.partial(
            _cut_layer, model, number, frame_mask, inside, may_leave, weight, keep
        )
        count = jnp.sum(inside, dtype=jnp.int32)
        forms = {
            "loops": functools.partial(_in_loops, cut),
            "switch": functools.partial(_by_switch, cut),
        }
        state = run_form("layer", forms, count, state)
        fires = inside & may_leave & (state.entropy < threshold)
        leaves = fires | (inside & (number == deepest))
        carry = (
            state.hidden,
            state.pooled,
            inside & ~leaves,
            jnp.where(leaves, number, exit_layer),
            forced | (leaves & ~fires),
        )
        return carry, (state.entropy, state.block)

    # Under shard_map a loop's state must vary over every device axis that its inputs vary over.
    # To choose between equals changes no value, but makes the state depend on all inputs.
    tie = (hidden[:, 0, 0].astype(jnp.float32) == threshold) & frame_mask[:, 0] & allowed[0]

    def tied(array):
        return jnp.where(jnp.expand_dims(tie, range(1, array.ndim)), array, array)

    hidden, pooled, inside, threshold = jax.tree.map(
        tied, (hidden, pooled, frame_mask[:, 0], threshold)
    )
    start = (hidden, pooled, inside, jnp.zeros_like(inside, jnp.int32), jnp.zeros_like(inside))
    (hidden, pooled, _, exit_layer, forced), (entropy, blocks) = jax.lax.scan(
        one_layer, start, (*_per_layer(model, weights), allowed)
    )
    return hidden, pooled, blocks, entropy.T, exit_layer, forced


def _cut_layer(
    model: Hubert,
    number: jax.Array,
    frame_mask: jax.Array,
    inside: jax.Array,
    may_leave: jax.Array,
    weight: RunningWeights | None,
    keep: Keep,
) -> RunSlice:
    """Layer `number` (from 1), to be run on slices of the rows that are inside, packed in front."""
    layer, branch = jax.tree.map(
        lambda leaf: jax.lax.dynamic_index_in_dim(leaf, number - 1, keepdims=False),
        (model.layers, model.branches),
    )
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

        def evaluate():
            return utterance_entropy(branch(tapped), mask)

        nothing = take(jnp.full_like(state.entropy, jnp.inf))
        if ask:
            entropy = jax.lax.cond(may_leave, evaluate, lambda: nothing)
        else:
            entropy = jnp.where(may_leave, evaluate(), nothing)
        pooled, block = state.pooled, state.block
        if pooled is not None and weight is not None:
            pooled = put(pooled, weight.keep * take(pooled) + weight.add * normalize(tapped))
        if block is not None:
            block = put(block, tapped if keep == "taps" else out)
        return _State(put(state.hidden, out), pooled, block, put(state.entropy, entropy))

    return run_slice


# Both forms cut the layer out of the stacks where it is sure to be run: layers that nobody reaches
# are not even copied.


def _in_loops(cut: Callable[[], RunSlice], count: jax.Array, state: _State) -> _State:
    """As many slices as the rows need; the last ones hold one row, so that none is run in vain."""
    batch, frames = state.hidden.shape[:2]
    sizes = _loop_sizes(batch, frames)

    def run_loops(state):
        run_slice = cut()
        progress = (jnp.zeros_like(count), state)
        for size in sizes:
            progress = jax.lax.while_loop(
                lambda progress, size=size: progress[0] + size <= count,
                lambda progress, size=size: (
                    progress[0] + size,
                    run_slice(size, progress[0], True, progress[1]),
                ),
                progress,
            )
        return progress[1]

    return jax.lax.cond(count > 0, run_loops, lambda unchanged: unchanged, state)


def _loop_sizes(batch: int, frames: int) -> tuple[int, ...]:
    """Rows of the slices, large ones first; smaller ones take what does not fill a large one."""
    rows = min(batch, max(1, FRAMES_PER_SLICE // frames))
    return (rows, 1) if rows > 1 else (rows,)


def _by_switch(cut: Callable[[], RunSlice], count: jax.Array, state: _State) -> _State:
    """One slice, of the smallest size that holds all rows: one question to the host a layer.

    Some rows are computed in vain; a small layer costs an accelerator less than its host's answer.
    """
    sizes = _switch_sizes(*state.hidden.shape[:2])

    def all_in(size):
        return lambda state: cut()(size, 0, False, state)

    # Each size that is too small, and zero among them, moves the choice on by one.
    chosen = jnp.sum(_largest(count) > jnp.array((0, *sizes[:-1])), dtype=jnp.int32)
    return jax.lax.switch(chosen, [lambda unchanged: unchanged, *map(all_in, sizes)], state)


def _switch_sizes(batch: int, frames: int) -> tuple[int, ...]:
    """Rows of the slices, small ones first: the batch and its halves, while they fill a device."""
    sizes = [batch]
    while sizes[0] > 1 and -(-sizes[0] // 2) * frames >= LEAST_FRAMES:
        sizes.insert(0, -(-sizes[0] // 2))
    return tuple(sizes)


@jax.custom_batching.custom_vmap
def _largest(count: jax.Array) -> jax.Array:
    """The count itself; under vmap the largest of all, the same for all.

    A switch by an index that differs under vmap becomes a choice between the results of all its
    branches, so that nothing would be saved. With one index it stays a switch.
    """
    return count


@_largest.def_vmap
def _largest_of_all(axis_size: int, in_batched: list[bool], counts: jax.Array):
    del axis_size
    return _largest(jnp.max(counts, axis=0) if in_batched[0] else counts), False
