"""A batch of waveforms some seconds at a time, without what is padding only.

A CPU's arrays stay small that way: memory that a program takes anew in each call costs it more time
than the loop does.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree, Shaped

PIECE_BYTES = 16 * 2**20
"""Of the largest array of a piece (measured). Smaller pieces gain more where the cores share a
cache, and lose where they do not, since in every turn these exchange the weights."""

Result = TypeVar("Result", bound=PyTree)


class Plan(NamedTuple):
    """How a batch is cut."""

    pieces: int
    """Of each row, equally long."""
    together: int
    """Pieces in one turn of the loop: several where rows are short."""
    turns: int


def plan(rows: int, row_bytes: int) -> Plan:
    """The fewest turns whose largest array is no larger than `PIECE_BYTES`, nearly equal ones.

    Args:
      rows: of the batch.
      row_bytes: of the largest array that is computed for a row as a whole.
    """
    pieces = max(1, math.ceil(row_bytes / PIECE_BYTES))
    most = max(1, PIECE_BYTES * pieces // max(1, row_bytes))
    turns = math.ceil(rows * pieces / most)
    return Plan(pieces, math.ceil(rows * pieces / max(1, turns)), turns)


def windows(
    waveform: Float[Array, "batch samples"], pieces: int, steps: int, hop: int, window: int
) -> Float[Array, "batch pieces piece_samples"]:
    """The samples that `steps` windows in a row see, piece by piece; zeros behind the end.

    Args:
      waveform: the batch.
      pieces: of each row.
      steps: windows in a piece.
      hop: samples from one window to the next.
      window: samples of each.
    """
    size = (steps - 1) * hop + window
    missing = (pieces - 1) * steps * hop + size - waveform.shape[1]
    padded = jnp.pad(waveform, ((0, 0), (0, max(0, missing))))
    starts = jnp.arange(pieces) * steps * hop
    return padded[:, starts[:, None] + jnp.arange(size)[None]]


def in_turns(
    function: Callable[..., Result],
    planned: Plan,
    wanted: Bool[Array, "batch pieces"],
    *arrays: PyTree[Shaped[Array, "batch pieces ..."]],
) -> Result:
    """Results of a function for all pieces; zeros where no piece of a turn is wanted.

    Args:
      function: of pytrees of arrays with a leading axis of pieces, to such a one.
      planned: how many pieces it gets at once.
      wanted: which pieces are needed.
      *arrays: the pieces.
    """
    count = wanted.size

    def grouped(array):
        array = array.reshape(count, *array.shape[2:])
        missing = planned.turns * planned.together - count
        array = jnp.pad(array, [(0, missing), *[(0, 0)] * (array.ndim - 1)])
        return array.reshape(planned.turns, planned.together, *array.shape[1:])

    def ungrouped(array):
        array = array.reshape(-1, *array.shape[2:])[:count]
        return array.reshape(*wanted.shape, *array.shape[1:])

    def none(*arrays):
        one, *_ = jax.tree.leaves(arrays)  # zeros like it differ between devices as it does
        return jax.tree.map(
            lambda result: jnp.zeros_like(one, shape=result.shape, dtype=result.dtype),
            jax.eval_shape(function, *arrays),
        )

    def turn(given):
        wanted, arrays = given
        return jax.lax.cond(jnp.any(wanted), function, none, *arrays)

    return jax.tree.map(ungrouped, jax.lax.map(turn, jax.tree.map(grouped, (wanted, arrays))))
