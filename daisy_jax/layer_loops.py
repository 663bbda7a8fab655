"""The two loops over the layers: all utterances to one layer, or each to its own."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp

from daisy_jax.branches import utterance_entropy
from daisy_jax.hubert import Embedded, Hubert
from daisy_jax.pooling import RunningWeights, normalize

FRAMES_PER_SLICE = {"cpu": 512}
"""Frames that fill the device in one turn of the inner loop, by backend."""
FRAMES_PER_SLICE_ELSEWHERE = 4096

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
    deepest: jax.Array,
    keep: Keep,
) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
    """Every utterance to the same layer: a plain scan, differentiable in reverse mode."""

    def run_layer(layer, layer_weight, hidden, pooled):
        block, ffn = layer(hidden, embedded.frame_mask)
        tapped = ffn if model.config.tap == "ffn" else block
        if pooled is not None:
            pooled = layer_weight.keep * pooled + layer_weight.add * normalize(tapped)
        return block, pooled, {"nothing": None, "blocks": block, "taps": tapped}[keep]

    def skip_layer(layer, layer_weight, hidden, pooled):
        return hidden, pooled, None if keep == "nothing" else jnp.zeros_like(hidden)

    def one_layer(carry, per_layer):
        number, layer, layer_weight = per_layer
        hidden, pooled, block = jax.lax.cond(
            number <= deepest, run_layer, skip_layer, layer, layer_weight, *carry
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


def _slice_sizes(batch: int, frames: int) -> tuple[int, ...]:
    """Rows of the slices, large ones first; smaller ones take what does not fill a large one.

    On a CPU the last ones hold one row, so that nothing is computed in vain. Elsewhere one size
    serves: a few empty rows cost less there than many small steps.
    """
    backend = jax.default_backend()
    full = FRAMES_PER_SLICE.get(backend, FRAMES_PER_SLICE_ELSEWHERE)
    rows = min(batch, max(1, full // frames))
    return (rows, 1) if backend == "cpu" and rows > 1 else (rows,)


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

    The outer scan goes over layers. Before each, the rows that are still inside are brought to the
    front of `order`; the inner loops compute the layer for as many slices of it as hold them, none
    at all once everybody has left. Shapes are fixed, only trip counts depend on the data.
    """
    hidden, frame_mask = embedded.hidden, embedded.frame_mask
    batch = hidden.shape[0]
    deepest = deepest_layer(allowed)
    slice_sizes = _slice_sizes(*frame_mask.shape)
    slots = jnp.arange(batch + slice_sizes[-1] - 1)  # the last slice may begin at the last row

    def one_layer(carry, per_layer):
        hidden, pooled, inside, exit_layer, forced = carry
        number, weight, may_leave = per_layer
        entropy = jnp.full_like(threshold, jnp.inf)
        block = None if keep == "nothing" else jnp.zeros_like(hidden)
        hidden, pooled, block, entropy = jax.lax.cond(
            jnp.any(inside),
            functools.partial(run_layer, number, weight, may_leave, inside),
            lambda *unchanged: unchanged,
            *(hidden, pooled, block, entropy),
        )
        fires = inside & may_leave & (entropy < threshold)
        leaves = fires | (inside & (number == deepest))
        carry = (
            hidden,
            pooled,
            inside & ~leaves,
            jnp.where(leaves, number, exit_layer),
            forced | (leaves & ~fires),
        )
        return carry, (entropy, block)

    def run_layer(number, weight, may_leave, inside, *state):
        # Cut out of the stacks here, so that layers that nobody reaches are not even copied.
        layer, branch = jax.tree.map(
            lambda leaf: jax.lax.dynamic_index_in_dim(leaf, number - 1, keepdims=False),
            (model.layers, model.branches),
        )
        order = jnp.argsort(~inside, stable=True)
        num_inside = jnp.sum(inside)
        # Slots behind the last row inside point outside of the batch: nothing is written there.
        order = jnp.where(slots < num_inside, order.at[slots].get(mode="clip"), batch)

        def one_slice(slice_rows, state):
            first, hidden, pooled, block, entropy = state
            rows = jax.lax.dynamic_slice_in_dim(order, first, slice_rows)

            def take(array):
                return array.at[rows].get(mode="clip")

            def put(array, values):
                return array.at[rows].set(values, mode="drop")

            mask = take(frame_mask)
            out, ffn = layer(take(hidden), mask)
            tapped = ffn if model.config.tap == "ffn" else out
            row_entropy = jax.lax.cond(
                may_leave,
                lambda: utterance_entropy(branch(tapped), mask),
                lambda: jnp.full_like(take(entropy), jnp.inf),
            )
            if pooled is not None:
                pooled = put(pooled, weight.keep * take(pooled) + weight.add * normalize(tapped))
            if block is not None:
                block = put(block, tapped if keep == "taps" else out)
            return (
                first + slice_rows,
                put(hidden, out),
                pooled,
                block,
                put(entropy, row_entropy),
            )

        state = (jnp.zeros_like(num_inside), *state)
        for size in slice_sizes:
            least = 1 if size == slice_sizes[-1] else size  # rows that a slice is run for
            state = jax.lax.while_loop(
                lambda state, least=least: state[0] + least <= num_inside,
                functools.partial(one_slice, size),
                state,
            )
        return state[1:]

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
