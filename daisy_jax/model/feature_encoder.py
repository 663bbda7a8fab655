"""Waveform to frames: the seven convolutions in front of the transformer."""

import functools
import math
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AxisType
from jaxtyping import Array, Bool, Float, Int

from daisy_jax.audio import CONV_KERNELS, CONV_STRIDES, FRAME_HOP, FRAME_WINDOW, frame_count
from daisy_jax.model.config import HubertConfig
from daisy_jax.model.forms import run_form
from daisy_jax.model.gelu import gelu
from daisy_jax.model.pieces import Plan, in_turns, plan, windows

EPSILON = 1e-5  # added to variances, everywhere in HuBERT

Convolve: TypeAlias = Callable[
    [nnx.Conv, int, Float[Array, "batch time channels"]], Float[Array, "batch steps conv_dim"]
]
"""A convolution over time without padding, its stride, and what it is computed for."""
Moments: TypeAlias = tuple[Float[Array, "batch 1 conv_dim"], Float[Array, "batch 1 conv_dim"]]
"""Mean and variance."""


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
        self,
        x: Float[Array, "batch time dim"],
        mean: Float[Array, "batch 1 dim"],
        variance: Float[Array, "batch 1 dim"],
    ) -> Float[Array, "batch time dim"]:
        """Normalizes by the moments of the valid time steps; padding becomes garbage."""
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
        """Features of waveforms whose first `lengths` samples are valid; garbage behind those."""
        forms = {
            "in_pieces": _in_pieces,
            "one_dimensional": functools.partial(_whole, convolve=_one_dimensional),
            "two_dimensional": functools.partial(_whole, convolve=_two_dimensional),
        }
        waveform = waveform.astype(self.convolutions[0].kernel[...].dtype)
        return run_form("front_end", forms, self, waveform, lengths)

    def first(
        self, waveform: Float[Array, "batch samples"], convolve: Convolve
    ) -> Float[Array, "batch steps conv_dim"]:
        """The first convolution's output, before its normalization."""
        return convolve(self.convolutions[0], CONV_STRIDES[0], waveform[..., None])

    def behind_first(
        self, x: Float[Array, "batch steps conv_dim"], moments: Moments | None, convolve: Convolve
    ) -> Float[Array, "batch frames conv_dim"]:
        """Everything behind the first convolution; a group norm takes the moments of it."""
        for i, convolution in enumerate(self.convolutions):
            if i > 0:
                x = convolve(convolution, CONV_STRIDES[i], x)
            if self.conv_norm == "layer":
                x = self.norms[i](x)
            elif moments is not None and i == 0:
                x = self.group_norm(x, *moments)
            x = gelu(x)
        return x


def _whole(
    encoder: FeatureEncoder,
    waveform: Float[Array, "batch samples"],
    lengths: Int[Array, " batch"],
    convolve: Convolve,
) -> Float[Array, "batch frames conv_dim"]:
    """All steps of a convolution at once."""
    first = encoder.first(waveform, convolve)
    moments = None
    if encoder.conv_norm == "group":
        moments = masked_moments(first, valid_positions(first.shape[1], _first_steps(lengths)))
    return encoder.behind_first(first, moments, convolve)


def _in_pieces(
    encoder: FeatureEncoder, waveform: Float[Array, "batch samples"], lengths: Int[Array, " batch"]
) -> Float[Array, "batch frames conv_dim"]:
    """Some seconds at a time, in all of a CPU's cores, and no turn for padding."""
    kernel = encoder.convolutions[0].kernel[...]
    steps = frame_count(waveform.shape[1]) * FRAME_HOP // CONV_STRIDES[0]
    planned = plan(len(waveform), steps * kernel.shape[-1] * kernel.itemsize)
    # A loop over rows that an Explicit mesh has spread would have to gather them first.
    spread = AxisType.Explicit in jax.typeof(waveform).sharding.mesh.axis_types
    if planned.turns <= 1 or spread:
        return _whole(encoder, waveform, lengths, _one_dimensional)
    return _piece_by_piece(planned, encoder, waveform, lengths)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _piece_by_piece(
    planned: Plan,
    encoder: FeatureEncoder,
    waveform: Float[Array, "batch samples"],
    lengths: Int[Array, " batch"],
) -> Float[Array, "batch frames conv_dim"]:
    rows, frames = len(waveform), frame_count(waveform.shape[1])
    each = math.ceil(frames / planned.pieces)
    parts = windows(waveform, planned.pieces, each, FRAME_HOP, FRAME_WINDOW)
    wanted = jnp.arange(planned.pieces)[None] * each < frame_count(lengths)[:, None]
    moments = None
    if encoder.conv_norm == "group":
        moments = _moments_in_pieces(encoder, waveform, lengths, planned)
        moments = jax.tree.map(lambda each: jnp.repeat(each[:, None], planned.pieces, 1), moments)

    def features(parts, moments):
        first = encoder.first(parts, _one_dimensional)
        return encoder.behind_first(first, moments, _one_dimensional)

    out = in_turns(features, planned, wanted, parts, moments)
    return out.reshape(rows, planned.pieces * each, -1)[:, :frames]


@_piece_by_piece.defjvp
def _(planned, primals, tangents):
    # All at once: XLA's gradients of convolutions in a loop take a CPU many times as long.
    del planned
    return jax.jvp(functools.partial(_whole, convolve=_one_dimensional), primals, tangents)


def _moments_in_pieces(
    encoder: FeatureEncoder,
    waveform: Float[Array, "batch samples"],
    lengths: Int[Array, " batch"],
    planned: Plan,
) -> Moments:
    """Moments of the first convolution's valid steps, from those of the pieces.

    Source: Chan, Golub and LeVeque 1983, Algorithms for computing the sample variance.
    """
    kernel, stride = CONV_KERNELS[0], CONV_STRIDES[0]
    each = math.ceil(_first_steps(waveform.shape[1]) / planned.pieces)
    parts = windows(waveform, planned.pieces, each, stride, kernel)
    counts = _first_steps(lengths)[:, None] - jnp.arange(planned.pieces)[None] * each
    counts = counts.clip(0, each)

    def moments(parts, counts):
        first = encoder.first(parts, _one_dimensional)
        return masked_moments(first, valid_positions(each, counts))

    means, variances = in_turns(moments, planned, counts > 0, parts, counts)
    shares = counts / jnp.maximum(jnp.sum(counts, axis=1, keepdims=True), 1)
    shares = shares.astype(jnp.float32)[..., None, None]
    mean = jnp.sum(shares * means, axis=1)
    variances = variances + (means - mean[:, None]) ** 2
    return mean, jnp.sum(shares * variances, axis=1)


def _first_steps(samples):
    """Steps of the first convolution."""
    return (samples - CONV_KERNELS[0]) // CONV_STRIDES[0] + 1


def _one_dimensional(convolution, stride, x):
    del stride  # as the convolution has it
    return convolution(x)


def _two_dimensional(convolution, stride, x):
    """With a height of one."""
    kernel = convolution.kernel[...]
    out = jax.lax.conv_general_dilated(
        x[:, None],
        kernel[None],
        (1, stride),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )[:, 0]
    return out if convolution.bias is None else out + convolution.bias[...][None, None]
