"""The transformer's parts: positional convolution, attention, one layer."""

import jax
import jax.numpy as jnp
from flax import nnx

from daisy_jax.attention import attend
from daisy_jax.config import HubertConfig
from daisy_jax.feature_encoder import layer_norm

# Small residual branches at the start let a deep post-LN stack train without a long warm-up.
RESIDUAL_INIT = nnx.initializers.variance_scaling(0.09, "fan_in", "truncated_normal")


class PositionalConvolution(nnx.Module):
    """A grouped convolution over time whose output, through GELU, is added to its input.

    For an even number of taps the window of frame t begins taps / 2 frames before it.
    """

    def __init__(self, config: HubertConfig, *, rngs: nnx.Rngs):
        taps = config.pos_conv_kernel
        self.convolution = nnx.Conv(
            config.dim,
            config.dim,
            taps,
            padding=[(taps // 2, (taps - 1) // 2)],
            feature_group_count=config.pos_conv_groups,
            kernel_init=nnx.initializers.normal((4 / (taps * config.dim)) ** 0.5),
            rngs=rngs,
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """X is [batch, frames, dim], zero on padded frames."""
        return x + jax.nn.gelu(self.convolution(x), approximate=False)


class SelfAttention(nnx.Module):
    """Multi-head attention in which no frame looks at padding; softmax in float32."""

    def __init__(self, config: HubertConfig, *, rngs: nnx.Rngs):
        self.num_heads = config.num_heads
        self.qkv = nnx.Linear(config.dim, 3 * config.dim, rngs=rngs)
        self.out = nnx.Linear(config.dim, config.dim, kernel_init=RESIDUAL_INIT, rngs=rngs)

    def __call__(self, x: jax.Array, frame_mask: jax.Array) -> jax.Array:
        """X is [batch, frames, dim], frame_mask bool [batch, frames]."""
        batch, frames, dim = x.shape
        qkv = self.qkv(x).reshape(batch, frames, 3, self.num_heads, dim // self.num_heads)
        query, key, value = jnp.moveaxis(qkv, 2, 0)
        return self.out(attend(query, key, value, frame_mask).reshape(batch, frames, dim))


class FeedForward(nnx.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, config: HubertConfig, *, rngs: nnx.Rngs):
        self.up = nnx.Linear(config.dim, config.ffn_dim, rngs=rngs)
        self.down = nnx.Linear(config.ffn_dim, config.dim, kernel_init=RESIDUAL_INIT, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """X is [..., dim]."""
        return self.down(jax.nn.gelu(self.up(x), approximate=False))


class TransformerLayer(nnx.Module):
    """One block: attention and feed-forward network, with LayerNorms behind or in front of them."""

    def __init__(self, config: HubertConfig, *, rngs: nnx.Rngs):
        self.norm_first = config.norm_first
        self.attention = SelfAttention(config, rngs=rngs)
        self.attention_norm = layer_norm(config.dim, rngs)
        self.ffn = FeedForward(config, rngs=rngs)
        self.ffn_norm = layer_norm(config.dim, rngs)

    def __call__(self, x: jax.Array, frame_mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The block's output and its feed-forward network's output for x [batch, frames, dim].

        The second is taken before the residual sum. Padded frames hold garbage afterwards.
        """
        if self.norm_first:
            x = x + self.attention(self.attention_norm(x), frame_mask)
            ffn = self.ffn(self.ffn_norm(x))
            return x + ffn, ffn
        x = self.attention_norm(x + self.attention(x, frame_mask))
        ffn = self.ffn(x)
        return self.ffn_norm(x + ffn), ffn
