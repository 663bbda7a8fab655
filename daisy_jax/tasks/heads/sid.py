"""Speaker identification: projected features, their mean over time, one class a speaker."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx


@dataclasses.dataclass(frozen=True)
class SidSettings:
    """Size of the head."""

    projection: int


class SidHead(nnx.Module):
    """Linear, mean over the utterance, linear to the speakers."""

    def __init__(self, dim: int, speakers: int, settings: SidSettings, *, rngs: nnx.Rngs):
        self.projection = nnx.Linear(dim, settings.projection, rngs=rngs)
        self.output = nnx.Linear(settings.projection, speakers, rngs=rngs)

    def __call__(self, features: jax.Array, num_frames: jax.Array) -> jax.Array:
        """From float32 [batch, frames, dim] and valid frames int [batch] to [batch, speakers]."""
        mask = jnp.arange(features.shape[1])[None] < num_frames[:, None]
        projected = jnp.where(mask[..., None], self.projection(features), 0)
        count = jnp.maximum(num_frames, 1).astype(projected.dtype)
        return self.output(jnp.sum(projected, axis=1) / count[:, None])


def sid_loss(
    head: SidHead, features: jax.Array, num_frames: jax.Array, speaker: jax.Array
) -> jax.Array:
    """Mean cross entropy, nats, of speakers int [batch]; empty rows do not count."""
    log_probs = jax.nn.log_softmax(head(features, num_frames))
    losses = -jnp.take_along_axis(log_probs, speaker[:, None], axis=-1)[:, 0]
    there = num_frames > 0
    return jnp.sum(jnp.where(there, losses, 0)) / jnp.maximum(jnp.sum(there), 1).astype(jnp.float32)
