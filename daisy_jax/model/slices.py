"""How many rows of a packed batch a layer is computed for: the two forms, and their sizes."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree, Shaped

FRAMES_PER_SLICE = 512
"""Frames that fill a CPU in one turn of the inner loop (measured)."""
LEAST_FRAMES = 1024
"""Frames below which a GPU or TPU computes a layer hardly faster (estimated;
benchmarks/first_gpu.py decides)."""


class State(NamedTuple):
    """What a layer changes of a batch."""

    hidden: Float[Array, "batch frames dim"]
    """The last block's output, or the transformer's input."""
    pooled: Float[Array, "batch frames dim"] | None
    """float32, eq. (4) so far."""
    block: Float[Array, "batch frames dim"] | None
    """What is kept of this layer; zero where it was not computed."""
    score: Float[Array, " batch"]
    """float32, the criterion's at this layer; +inf where it was not computed."""
    remembered: PyTree[Shaped[Array, "batch ..."]]
    """The criterion's."""


RunSlice = Callable[[int, Int[Array, ""] | int, bool, State], State]
"""Runs a layer on some slots of the packed batch: how many, the first of them, whether the branch
is left out where nobody may leave, and the state."""


# Both forms cut the layer out of the stacks where it is sure to be run: layers that nobody reaches
# are not even copied.


def in_loops(cut: Callable[[], RunSlice], count: Int[Array, ""], state: State) -> State:
    """As many slices as the rows need; the last ones hold one row, so that none is run in vain."""
    batch, frames = state.hidden.shape[:2]
    sizes = loop_sizes(batch, frames)

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


def loop_sizes(batch: int, frames: int) -> tuple[int, ...]:
    """Rows of the slices, large ones first; smaller ones take what does not fill a large one."""
    rows = min(batch, max(1, FRAMES_PER_SLICE // frames))
    return (rows, 1) if rows > 1 else (rows,)


def by_switch(cut: Callable[[], RunSlice], count: Int[Array, ""], state: State) -> State:
    """One slice, of the smallest size that holds all rows: one question to the host a layer.

    Some rows are computed in vain; a small layer costs an accelerator less than its host's answer.
    """
    sizes = switch_sizes(*state.hidden.shape[:2])

    def all_in(size):
        return lambda state: cut()(size, 0, False, state)

    # Each size that is too small, and zero among them, moves the choice on by one.
    chosen = jnp.sum(_largest(count) > jnp.array((0, *sizes[:-1])), dtype=jnp.int32)
    return jax.lax.switch(chosen, [lambda unchanged: unchanged, *map(all_in, sizes)], state)


def switch_sizes(batch: int, frames: int) -> tuple[int, ...]:
    """Rows of the slices, small ones first: the batch and its halves, while they fill a device."""
    sizes = [batch]
    while sizes[0] > 1 and -(-sizes[0] // 2) * frames >= LEAST_FRAMES:
        sizes.insert(0, -(-sizes[0] // 2))
    return tuple(sizes)


@jax.custom_batching.custom_vmap
def _largest(count: Int[Array, ""]) -> Int[Array, ""]:
    """The count itself; under vmap the largest of all, the same for all.

    A switch by an index that differs under vmap becomes a choice between the results of all its
    branches, so that nothing would be saved. With one index it stays a switch.
    """
    return count


@_largest.def_vmap
def _largest_of_all(axis_size: int, in_batched: list[bool], counts: Int[Array, "..."]):
    del axis_size
    return _largest(jnp.max(counts, axis=0) if in_batched[0] else counts), False
