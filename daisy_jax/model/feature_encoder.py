"""Waveform to frames: the seven convolutions in front of the transformer."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from daisy_jax.audio import CONV_KERNELS, CONV_STRIDES
from daisy_jax.model.config import HubertConfig
from daisy_jax.model.forms import run_form

EPSILON = 1e-5  # added to variances, everywhere in HuBERT


def layer_norm(dim: int, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Affine LayerNorm as torch computes it: the variance in a second pass, epsilon 1e-5."""
    return nnx.LayerNorm(dim, epsilon=EPSILON, use_fast_variance=False, rngs=rngs)


def valid_positions(size: int, counts: Int[Array, " batch"]) -> Bool[Array, "batch {size}"]:
    """True for the first `counts` positions of each row."""
    return jnp.arange(size)[None] < counts[:, None]


def masked_moments(
    x: Float[Array, "batch time *channels"], mask: Bool[Array, "batch time"]
) -> tuple[Float[Array, "batch 1 *channels"], Float[Array, "batch 1 *channels"]]:
    """Mean and variance of x over the positions in `mask`.

    Two passes in float32; (0, 0) where a row has no valid position.
    """
    x = x.astype(jnp.float32)
    mask = mask.reshape(mask.shape + (1,) * (x.ndim - 2))
    count = jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1).astype(jnp.float32)
    mean = jnp.sum(jnp.where(mask, x, 0), axis=1, keepdims=True) / count
    deviation = jnp.where(mask, x - mean, 0)
    return mean, jnp.sum(deviation * deviation, axis=1, keepdims=True) / count


def normalize_waveform(
    waveform: Float[Array, "batch samples"], lengths: Int[Array, " batch"], epsilon: float
) -> Float[Array, "batch samples"]:
    """Zero mean and unit variance over the valid samples of each row; zeros behind them.

    Sources: fairseq's `task.normalize`, a LayerNorm over one unpadded waveform, epsilon 1e-5;
    `Wav2Vec2FeatureExtractor` of transformers, epsilon 1e-7.
    """
    mask = valid_positions(waveform.shape[1], lengths)
    # A first mean takes a recording's offset away, whose rounding would depend on the width.
    centred = jnp.where(mask, waveform - masked_moments(waveform, mask)[0], 0)
    mean, variance = masked_moments(centred, mask)
    return jnp.where(mask, (centred - mean) * jax.lax.rsqrt(variance + epsilon), 0)


class MaskedGroupNorm(nnx.Module):
    """GroupNorm with one channel a group: statistics over the valid time steps of each channel."""

    def __init__(self, dim: int):
        self.scale = nnx.Param(jnp.ones(dim))
        self.bias = nnx.Param(jnp.zeros(dim))

    def __call__(
        self, x: Float[Array, "batch time dim"], mask: Bool[Array, "batch time"]
    ) -> Float[Array, "batch time dim"]:
        """Normalizes by the valid time steps; padding becomes garbage."""
        mean, variance = masked_moments(x, mask)
        gain = self.scale[...].astype(jnp.float32)[None, None]
        bias = self.bias[...].astype(jnp.float32)[None, None]
        scale = jax.lax.rsqrt(variance + EPSILON) * gain
        return (x.astype(jnp.float32) * scale + (bias - mean * scale)).astype(x.dtype)


class FeatureEncoder(nnx.Module):
    """Seven strided convolutions without padding: 400 samples see each frame, 320 lie between two.

    What a valid frame holds depends on valid samples only: the convolutions do not reach behind
    the end, and the statistics of the group norm leave the padding out.
    """

    def __init__(self, config: HubertConfig, *, rngs: nnx.Rngs):
        sizes = zip([1] + [config.conv_dim] * 6, CONV_KERNELS, CONV_STRIDES, strict=True)
        self.convolutions = nnx.List(
            nnx.Conv(
                channels,
                config.conv_dim,
                kernel,
                stride,
                padding="VALID",
                use_bias=config.conv_bias,
                kernel_init=nnx.initializers.he_normal(),
                rngs=rngs,
            )
            for channels, kernel, stride in sizes
        )
        if config.conv_norm == "group":
            self.group_norm = MaskedGroupNorm(config.conv_dim)
        else:
            self.norms = nnx.List(layer_norm(config.conv_dim, rngs) for _ in CONV_KERNELS)
        self.conv_norm = config.conv_norm

    def __call__(
        self, waveform: Float[Array, "batch samples"], lengths: Int[Array, " batch"]
    ) -> Float[Array, "batch frames conv_dim"]:
        """Features of waveforms whose first `lengths` samples are valid."""
        x = waveform[..., None].astype(self.convolutions[0].kernel[...].dtype)
        for i, convolution in enumerate(self.convolutions):
            x = _convolved(convolution, CONV_STRIDES[i], x)
            if self.conv_norm == "layer":
                x = self.norms[i](x)
            elif i == 0:
                steps = (lengths - CONV_KERNELS[0]) // CONV_STRIDES[0] + 1
                x = self.group_norm(x, valid_positions(x.shape[1], steps))
            x = jax.nn.gelu(x, approximate=False)
        return x


def _convolved(
    convolution: nnx.Conv, stride: int, x: Float[Array, "batch time channels"]
) -> Float[Array, "batch steps conv_dim"]:
    """A strided convolution over time, without padding."""

    def with_height_one(x):
        kernel = convolution.kernel[...]
        out = jax.lax.conv_general_dilated(
            x[:, None],
            kernel[None],
            (1, stride),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )[:, 0]
        return out if convolution.bias is None else out + convolution.bias[...][None, None]

    forms = {"one_dimensional": convolution, "two_dimensional": with_height_one}
    return run_form("front_end", forms, x)
