"""Models with random weights whose utterances leave wherever they are told to, for timing."""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

import daisy_jax
from daisy_jax.model.hubert import arranged, dtype_computed

EXITS = (2, 3, 3, 4, 4, 5, 5, 6, 6, 6, 7, 7, 8, 8, 10, 12)  # 6 on average, of 12 layers


class Forced:
    """A model with random weights whose utterances leave wherever they are told to.

    Args:
      size: of the architecture, or one with branches.
      dtype: of the trunk's weights.
    """

    def __init__(self, size: Literal["tiny", "base", "large"] | daisy_jax.HubertConfig, dtype: str):
        if isinstance(size, daisy_jax.HubertConfig):
            config = size
        elif size == "tiny":
            config = daisy_jax.load().config
        else:
            config = getattr(daisy_jax.HubertConfig, size)(num_classes=504)
        model = jax.jit(lambda: daisy_jax.Hubert(config, rngs=nnx.Rngs(0)))()
        computed = dtype_computed(jnp.dtype(dtype))
        model = jax.tree.map(lambda leaf: leaf.astype(dtype).astype(computed), arranged(model))
        # Branches whose entropy depends on the layer alone and falls with depth: an utterance's own
        # threshold then decides where it leaves.
        self.layers = config.num_layers
        branches = jax.tree.map(lambda leaf: jnp.zeros_like(leaf, jnp.float32), model.branches)
        steps = jnp.linspace(1, 12, self.layers)
        branches.bias = nnx.Param(branches.bias[...].at[:, 0].set(steps))
        self.model = model.replace(branches=branches)
        silence = np.zeros((1, 400), np.float32)
        entropy = np.asarray(daisy_jax.encode(self.model, silence, threshold=-np.inf).entropy)[0]
        self._between = np.concatenate([[np.inf], (entropy[:-1] + entropy[1:]) / 2, [-np.inf]])

    def thresholds(self, exits: Sequence[int]) -> Float[np.ndarray, " batch"]:
        """Thresholds, float32, with which utterances leave at `exits`, from 1."""
        # Above the layer's own entropy and below the one before it.
        return np.asarray([self._between[k - 1] for k in exits], np.float32)

    def spread(self, batch: int) -> list[int]:
        """Exits of a batch, spread around the middle of the model: 2 to 12 of 12 layers."""
        # Every so many of the list, beginning in the middle of a stride, and round again.
        stride = max(1, len(EXITS) // batch)
        chosen = [EXITS[(stride // 2 + stride * i) % len(EXITS)] for i in range(batch)]
        return [max(1, round(k * self.layers / 12)) for k in chosen]
