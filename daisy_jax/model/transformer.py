"""The transformer's parts: positional convolution, attention, one layer."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from daisy_jax.model.attention import attend
from daisy_jax.model.config import HubertConfig
from daisy_jax.model.feature_encoder import layer_norm
from daisy_jax.model.forms import run_form
from daisy_jax.model.gelu import gelu

# Small residual branches at the start let a deep post-LN stack train without a long warm-up.
RESIDUAL_INIT = nnx.initializers.variance_scaling(0.09, "fan_in", "truncated_normal")


FRAMES_PER_BLOCK = 8
"""Frames that one row of the positional convolution's product computes. It reads
`pos_conv_kernel` + 7 frames for them, so that one product in eighteen is in vain for 128 taps."""


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

    def __call__(self, x: Float[Array, "batch frames dim"]) -> Float[Array, "batch frames dim"]:
        """X is zero on padded frames."""
        forms = {"convolution": self.convolution, "blocks": self._by_blocks}
        return x + gelu(run_form("positional_convolution", forms, x))

    def _by_blocks(self, x: Float[Array, "batch frames dim"]) -> Float[Array, "batch frames dim"]:
        layer = self.convolution
        out = grouped_convolution_by_blocks(x, layer.kernel[...], layer.feature_group_count)
        return out if layer.bias is None else out + layer.bias[...][None, None]


# What the product reads is x seventeen times over; a gradient cuts it out of x again.
@functools.partial(jax.checkpoint, static_argnums=2)
def grouped_convolution_by_blocks(
    x: Float[Array, "batch frames dim"], kernel: Float[Array, "taps width dim"], groups: int
) -> Float[Array, "batch frames dim"]:
    """The positional convolution without bias, as one product of matrices a group.

    Eight neighbouring frames are computed from all frames that one of them sees, by a matrix that
    holds the kernel eight times, each time one frame further down.

    Args:
      x: what is convolved, zero on padded frames.
      kernel: as `nnx.Conv` has it; its width is dim / groups.
      groups: groups of channels that see only each other.
    """
    (batch, frames, dim), (taps, width, _) = x.shape, kernel.shape
    block = FRAMES_PER_BLOCK
    blocks = -(-frames // block)
    seen = -(-(taps + block - 1) // block)  # blocks of input that a block of output sees

    # One axis is split or joined at a time: more is too much for a mesh with Explicit axes.
    # [groups, batch, blocks, seen * block * width]: for each block what it sees.
    left, size = taps // 2, (blocks + seen - 1) * block
    x = jnp.pad(x, ((0, 0), (left, size - frames - left), (0, 0)))
    x = x.reshape(batch, size // block, block, dim)
    x = x.reshape(batch, size // block, block, groups, width)
    x = jnp.moveaxis(x, 3, 0).reshape(groups, batch, size // block, block * width)
    windows = jnp.concatenate([x[:, :, first : first + blocks] for first in range(seen)], axis=-1)

    # [groups, seen * block * width, block * width]: frame p of a block sees taps p frames later.
    kernel = jnp.pad(kernel, ((block - 1, seen * block - taps), (0, 0), (0, 0)))
    shifted = [
        kernel[block - 1 - place : block - 1 - place + seen * block] for place in range(block)
    ]
    matrix = jnp.stack(shifted).reshape(block, seen * block, width, groups, width)
    matrix = jnp.transpose(matrix, (3, 1, 2, 0, 4)).reshape(groups, -1, block * width)

    out = jnp.einsum("gbni,gio->gbno", windows, matrix)
    out = jnp.moveaxis(out.reshape(groups, batch, blocks, block, width), 0, 3)
    out = out.reshape(batch, blocks, block, dim).reshape(batch, blocks * block, dim)
    return out[:, :frames]


class SelfAttention(nnx.Module):
    """Multi-head attention in which no frame looks at padding; softmax in float32."""

    def __init__(self, config: HubertConfig, *, rngs: nnx.Rngs):
        self.num_heads = config.num_heads
        self.qkv = nnx.Linear(config.dim, 3 * config.dim, rngs=rngs)
        self.out = nnx.Linear(config.dim, config.dim, kernel_init=RESIDUAL_INIT, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch frames dim"], frame_mask: Bool[Array, "batch frames"]
    ) -> Float[Array, "batch frames dim"]:
        """Padded frames get garbage."""
        batch, frames, dim = x.shape
        qkv = self.qkv(x).reshape(batch, frames, 3, self.num_heads, dim // self.num_heads)
        return self.out(attend(qkv, frame_mask).reshape(batch, frames, dim))


class FeedForward(nnx.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, config: HubertConfig, *, rngs: nnx.Rngs):
        self.up = nnx.Linear(config.dim, config.ffn_dim, rngs=rngs)
        self.down = nnx.Linear(config.ffn_dim, config.dim, kernel_init=RESIDUAL_INIT, rngs=rngs)

    def __call__(self, x: Float[Array, "*rows dim"]) -> Float[Array, "*rows dim"]:
        """Applied to each frame by itself."""
        return self.down(gelu(self.up(x)))


class TransformerLayer(nnx.Module):
    """One block: attention and feed-forward network, with LayerNorms behind or in front of them."""

    def __init__(self, config: HubertConfig, *, rngs: nnx.Rngs):
        self.norm_first = config.norm_first
        self.attention = SelfAttention(config, rngs=rngs)
        self.attention_norm = layer_norm(config.dim, rngs)
        self.ffn = FeedForward(config, rngs=rngs)
        self.ffn_norm = layer_norm(config.dim, rngs)

    def __call__(
        self, x: Float[Array, "batch frames dim"], frame_mask: Bool[Array, "batch frames"]
    ) -> tuple[Float[Array, "batch frames dim"], Float[Array, "batch frames dim"]]:
        """The block's output and its feed-forward network's output.

        The second is taken before the residual sum. Padded frames hold garbage afterwards.
        """
        if self.norm_first:
            x = x + self.attention(self.attention_norm(x), frame_mask)
            ffn = self.ffn(self.ffn_norm(x))
            return x + ffn, ffn
        x = self.attention_norm(x + self.attention(x, frame_mask))
        ffn = self.ffn(x)
        return self.ffn_norm(x + ffn), ffn
