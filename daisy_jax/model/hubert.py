"""The model: front end, projection, stacked transformer layers, and two kinds of classifiers."""

import copy
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Integer

from daisy_jax import audio
from daisy_jax.errors import InputError
from daisy_jax.exits import Calibration
from daisy_jax.model.branches import Branches
from daisy_jax.model.config import HubertConfig
from daisy_jax.model.feature_encoder import (
    FeatureEncoder,
    layer_norm,
    normalize_waveform,
    valid_positions,
)
from daisy_jax.model.forms import ELSEWHERE, FORMS
from daisy_jax.model.layer_arrays import (
    LEAST_BYTES,
    Layers,
    LayersApart,
    apart,
    layer_bytes,
    stacked,
)
from daisy_jax.model.transformer import PositionalConvolution, TransformerLayer

HIGHEST = jax.lax.Precision.HIGHEST
DATA = ("layers", "head", "branches")
"""Parts that hold arrays though they are no module of NNX, or None."""


class Head(nnx.Module):
    """HuBERT's own prediction head: a projection and one embedding for each frame label."""

    def __init__(self, config: HubertConfig, *, rngs: nnx.Rngs):
        self.projection = nnx.Linear(config.dim, config.head_dim, precision=HIGHEST, rngs=rngs)
        shape = (config.num_clusters, config.head_dim)
        self.label_embeddings = nnx.Param(nnx.initializers.uniform(1.0)(rngs.params(), shape))

    def __call__(self, hidden: Float[Array, "*rows dim"]) -> Float[Array, "*rows clusters"]:
        """Scores, float32: cosine similarity with each label's embedding, over 0.1.

        Always float32 products at the highest precision, as the branches': labels must not depend
        on the accelerator.
        """
        projected = self.projection(hidden.astype(jnp.float32)).astype(jnp.float32)
        embeddings = _unit(self.label_embeddings[...].astype(jnp.float32))
        return jnp.matmul(_unit(projected), embeddings.T, precision=HIGHEST) / 0.1


def _unit(x: Float[Array, "*rows dim"]) -> Float[Array, "*rows dim"]:
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-16))


class Hubert(nnx.Module):
    """HuBERT with optional prediction head and early-exit branches.

    An immutable pytree: pass it through `jax.jit`, `jax.vmap` and the like as it is. `layers` holds
    all transformer layers stacked along a leading axis, or each by itself, which a CPU computes
    faster: `load` decides by the device, `arranged` changes it. Parts that a model lacks are None.
    """

    def __init__(self, config: HubertConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.feature_encoder = FeatureEncoder(config, rngs=rngs)
        self.feature_norm = layer_norm(config.conv_dim, rngs)
        self.feature_projection = nnx.Linear(config.conv_dim, config.dim, rngs=rngs)
        self.mask_embedding = nnx.Param(nnx.initializers.uniform(1.0)(rngs.params(), (config.dim,)))
        self.positional_convolution = PositionalConvolution(config, rngs=rngs)
        self.encoder_norm = layer_norm(config.dim, rngs)
        self.layers: Layers = nnx.data(
            nnx.vmap(lambda layer_rngs: TransformerLayer(config, rngs=layer_rngs))(
                rngs.split(config.num_layers)
            )
        )
        self.head = nnx.data(Head(config, rngs=rngs) if config.num_clusters else None)
        self.branches = nnx.data(
            Branches(config.num_layers, config.dim, config.num_classes, rngs=rngs)
            if config.num_classes
            else None
        )
        self.calibration: Calibration | None = None

    def replace(
        self, **parts: HubertConfig | nnx.Module | LayersApart | nnx.Param | Calibration | None
    ) -> "Hubert":
        """A copy with some of its attributes exchanged; everything else is shared."""
        changed = copy.copy(self)
        for name, part in parts.items():
            if name not in vars(self):
                raise AttributeError(f"a Hubert has no part named {name!r}")
            setattr(changed, name, nnx.data(part) if name in DATA else part)
        return changed


def arranged(model: Hubert) -> Hubert:
    """The model with its layers stacked or apart, as the default device computes them faster."""
    row = FORMS["layer_arrays"]
    form = row.get(jax.default_backend(), row[ELSEWHERE])
    large = layer_bytes(model.layers) >= LEAST_BYTES
    return model.replace(layers=(apart if form == "apart" and large else stacked)(model.layers))


def dtype_computed(stored: jnp.dtype) -> jnp.dtype:
    """What the default device computes in, where weights of a trunk are rounded to `stored`.

    XLA multiplies 16-bit numbers on a CPU by way of float32, layer by layer and call by call, which
    is slower than float32 and no more exact.
    """
    return jnp.dtype(jnp.float32) if jax.default_backend() == "cpu" else stored


class Embedded(NamedTuple):
    """What enters the transformer."""

    projected: Float[Array, "batch frames dim"]
    """Projected front-end features, zero on padded frames."""
    hidden: Float[Array, "batch frames dim"]
    """The first layer's input, zero on padded frames."""
    frame_mask: Bool[Array, "batch frames"]
    """True on valid frames."""


def embed(
    model: Hubert,
    waveform: Float[Array | np.ndarray, "batch samples"],
    lengths: Integer[Array | np.ndarray, " batch"],
    masked: Bool[Array, "batch frames"] | None = None,
) -> Embedded:
    """Everything in front of the first transformer layer.

    Args:
      model: any HuBERT.
      waveform: 16 kHz; what lies behind `lengths` is ignored.
      lengths: true sample counts.
      masked: frames that are replaced by the mask embedding (pretraining).
    """
    lengths = jnp.minimum(jnp.asarray(lengths, jnp.int32), waveform.shape[1])
    waveform = jnp.asarray(waveform)
    if model.config.normalize_input:
        waveform = normalize_waveform(waveform, lengths, model.config.normalize_epsilon)
    else:
        waveform = jnp.where(valid_positions(waveform.shape[1], lengths), waveform, 0)
    features = model.feature_encoder(waveform, lengths)
    frame_mask = valid_positions(features.shape[1], audio.frame_count(lengths))
    # Zero padding here, so that the positional convolution sees what it sees at a true end.
    projected = model.feature_projection(model.feature_norm(features))
    projected = jnp.where(frame_mask[..., None], projected, 0)
    hidden = projected
    if masked is not None:
        masked = (masked & frame_mask)[..., None]
        embedding = model.mask_embedding[...].astype(hidden.dtype)[None, None]
        hidden = jnp.where(masked, embedding, hidden)
    hidden = model.positional_convolution(hidden)
    if not model.config.norm_first:
        hidden = model.encoder_norm(hidden)
    return Embedded(projected, jnp.where(frame_mask[..., None], hidden, 0), frame_mask)


def final_norm(model: Hubert, hidden: Float[Array, "*rows dim"]) -> Float[Array, "*rows dim"]:
    """The final LayerNorm of pre-LN models on the last block's output; others are left as they are.

    Padded frames of pre-LN models become the norm's bias.
    """
    return model.encoder_norm(hidden) if model.config.norm_first else hidden


def require_head(model: Hubert) -> Head:
    """The prediction head; an InputError that names the ways out if the model has none."""
    if model.head is None:
        raise InputError(
            "this model has no HuBERT prediction head, so it cannot label frames; convert it again "
            "with --head-from and a fairseq or s3prl checkpoint of the same model, which has one; "
            "or train on stored labels (train/labels.py, then --labels)"
        )
    return model.head
