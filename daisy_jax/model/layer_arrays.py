"""The arrays of the transformer's layers: stacked, as a scan wants them, or each layer's apart.

A CPU that scans over stacked weights copies each layer's out of the stack before it multiplies, 28
MB a layer of HuBERT Base. Arrays that are apart are read where they lie.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from daisy_jax.model.transformer import TransformerLayer

Carry = TypeVar("Carry", bound=PyTree)
LEAST_BYTES = 4 << 20
"""Of one layer's arrays; below it a copy costs less than compiling every layer by itself."""


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["arrays"], meta_fields=["structure"]
)
@dataclasses.dataclass(frozen=True)
class LayersApart:
    """The layers one by one. Plain tuples: JAX takes modules apart far slower, at every call."""

    arrays: PyTree
    """A tuple for each layer, of its arrays in the order of `jax.tree.leaves`."""
    structure: Any
    """Of one layer, a `jax.tree_util.PyTreeDef`."""

    def __len__(self) -> int:
        return len(self.arrays)

    def __getitem__(self, index: int) -> TransformerLayer:
        """One layer, counted from 0."""
        return jax.tree.unflatten(self.structure, self.arrays[index])


Layers: TypeAlias = TransformerLayer | LayersApart
"""A stacked `TransformerLayer`, whose arrays have a leading axis of layers, or layers apart."""


def stacked(layers: Layers) -> TransformerLayer:
    """The same layers with all arrays along a leading axis."""
    if not isinstance(layers, LayersApart):
        return layers
    return jax.tree.unflatten(
        layers.structure, [jnp.stack(same) for same in zip(*layers.arrays, strict=True)]
    )


def apart(layers: Layers) -> LayersApart:
    """The same layers, one by one."""
    if isinstance(layers, LayersApart):
        return layers
    leaves, structure = jax.tree.flatten(layers)
    # With a leading axis as long as the layers, `tuple` cuts an array up.
    return LayersApart(tuple(zip(*map(tuple, leaves), strict=True)), structure)


def layer_bytes(layers: Layers) -> int:
    """Size of one layer's arrays."""
    if isinstance(layers, LayersApart):
        return sum(array.nbytes for array in layers.arrays[0])
    return sum(leaf.nbytes // len(leaf) for leaf in jax.tree.leaves(layers))


def first_layers(layers: Layers, count: int) -> Layers:
    """As many layers from the front."""
    if isinstance(layers, LayersApart):
        return dataclasses.replace(layers, arrays=layers.arrays[:count])
    return jax.tree.map(lambda leaf: leaf[:count], layers)


Stack = TypeVar("Stack", bound=PyTree)


def layer_at(stack: Stack, index: Int[Array, ""]) -> Stack:
    """What belongs to one layer, counted from 0, of arrays with a leading axis of layers."""
    return jax.tree.map(
        lambda array: jax.lax.dynamic_index_in_dim(array, index, keepdims=False), stack
    )


def over_layers(
    one_layer: Callable[[Carry, tuple], tuple[Carry, PyTree]],
    start: Carry,
    layers: Layers,
    *per_layer: PyTree,
) -> tuple[Carry, PyTree]:
    """Runs `one_layer` on every layer, as `jax.lax.scan` would.

    Args:
      one_layer: from what is carried and (layer, *what belongs to it) to what is carried on and
        what is kept.
      start: what is carried into the first layer.
      layers: stacked or apart.
      *per_layer: pytrees whose arrays have a leading axis of layers.

    Returns:
      what came out of the last layer, and what was kept, stacked along a leading axis.
    """
    if not isinstance(layers, LayersApart):
        return jax.lax.scan(one_layer, start, (layers, *per_layer))
    # A jit of its own, so that one layer is traced and lowered for all of them.
    compiled = jax.jit(one_layer)
    carry, kept = start, []
    for index in range(len(layers)):
        belongs = jax.tree.map(lambda array, index=index: array[index], per_layer)
        carry, out = compiled(carry, (layers[index], *belongs))
        kept.append(out)
    return carry, jax.tree.map(lambda *same: jnp.stack(same), *kept)


def over_reached_layers(
    one_layer: Callable[[Carry, tuple], tuple[Carry, PyTree]],
    start: Carry,
    layers: Layers,
    *per_layer: PyTree,
) -> tuple[Carry, PyTree]:
    """As `over_layers`, for a `one_layer` that runs its layer only under a condition.

    It gets a function that yields the layer. Stacked layers for which nobody calls it are not
    copied out of the stack.
    """
    if isinstance(layers, LayersApart):
        return over_layers(
            lambda carry, given: one_layer(carry, (lambda: given[0], *given[1:])),
            start,
            layers,
            *per_layer,
        )

    def by_number(carry, given):
        index, *belongs = given
        return one_layer(carry, (lambda: layer_at(layers, index), *belongs))

    count = len(jax.tree.leaves(layers)[0])
    return jax.lax.scan(by_number, start, (jnp.arange(count, dtype=jnp.int32), *per_layer))
