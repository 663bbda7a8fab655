"""Enhancement and separation: BLSTM layers over features predict masks on the input's spectrum."""

import dataclasses
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx

from daisy_jax import audio
from daisy_jax.errors import InputError
from daisy_jax.tasks.losses import best_permutation
from daisy_jax.tasks.lstm import BidirectionalLstm
from daisy_jax.tasks.spectra import Stft


@dataclasses.dataclass(frozen=True)
class MaskSettings:
    """Size of the head, its spectra and its loss."""

    units: int
    """Of each direction."""
    layers: int
    dropout: float
    """Behind each BLSTM layer, in training."""
    stft: Stft
    activation: Literal["relu", "sigmoid"]
    """What makes masks out of the last layer's outputs."""
    target: Literal["magnitude", "phase"]
    """Magnitude of the source's spectrum, or the part of it that is in phase with the input's,
    where that is positive (NPSM)."""
    scale: Literal["linear", "log1p"]
    """In what magnitudes of input and source are given; masks apply to them there."""
    distance: Literal["squared", "absolute"]

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            known, value = get_args(field.type), getattr(self, field.name)
            if known and value not in known:
                raise InputError(f"{field.name} is {value!r}; it must be {' or '.join(known)}")
        if audio.FRAME_HOP % self.stft.hop:
            raise InputError(
                f"the spectrum's hop is {self.stft.hop}; it must divide {audio.FRAME_HOP}, the "
                "samples between two frames of HuBERT"
            )


class MaskHead(nnx.Module):
    """BLSTM layers, linear to one mask a source."""

    def __init__(self, dim: int, sources: int, settings: MaskSettings, *, rngs: nnx.Rngs):
        self.lstm = BidirectionalLstm(
            dim, settings.units, settings.layers, settings.dropout, rngs=rngs
        )
        self.output = nnx.Linear(2 * settings.units, sources * settings.stft.bins, rngs=rngs)
        self.settings = settings

    def __call__(
        self,
        features: jax.Array,
        num_frames: jax.Array,
        lengths: jax.Array,
        spectrum_frames: int,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Masks on the input's spectrum.

        Args:
          features: float32 [batch, frames, dim].
          num_frames: int [batch], valid frames.
          lengths: int [batch], samples.
          spectrum_frames: width of the input's spectrum.
          key: of dropout; None: evaluation.

        Returns:
          float32 [batch, sources, spectrum_frames, bins]. A centred spectrum has a frame or two
          more than HuBERT; their features are zero.
        """
        valid = jnp.arange(features.shape[1])[None] < num_frames[:, None]
        features = jnp.where(valid[..., None], features, 0)
        features = jnp.repeat(features, audio.FRAME_HOP // self.settings.stft.hop, axis=1)
        missing = max(spectrum_frames - features.shape[1], 0)
        features = jnp.pad(features, ((0, 0), (0, missing), (0, 0)))[:, :spectrum_frames]
        frames = self.settings.stft.frames(lengths)
        mask = jnp.arange(spectrum_frames)[None] < frames[:, None]
        hidden = self.lstm(features, mask, key)
        if key is not None:
            hidden = self.lstm.drop(hidden, jax.random.fold_in(key, 0))
        scores = self.output(hidden)
        scores = scores.reshape(*scores.shape[:2], -1, self.settings.stft.bins)
        activation = jax.nn.relu if self.settings.activation == "relu" else jax.nn.sigmoid
        return jnp.moveaxis(activation(scores), 2, 1)


def mask_loss(
    head: MaskHead,
    features: jax.Array,
    num_frames: jax.Array,
    mixture: jax.Array,
    sources: jax.Array,
    lengths: jax.Array,
    key: jax.Array | None,
) -> jax.Array:
    """Distance between masked and true magnitudes, over the best assignment of the sources.

    Args:
      head: the head.
      features: float32 [batch, frames, dim].
      num_frames: int [batch].
      mixture: float [batch, samples], the input.
      sources: float [batch, sources, samples].
      lengths: int [batch], samples; rows without any do not count.
      key: of dropout; None: evaluation.

    Returns:
      float32 scalar: the mean over utterances of each one's mean over sources and frames, summed
      over bins.

    Source: utterance-level permutation invariant training, Kolbaek et al. 2017; the scale, which
    decides what clipping does, is s3prl's.
    """
    settings, batch = head.settings, len(mixture)
    spectrum = settings.stft.forward(mixture, lengths)
    flat = sources.reshape(-1, sources.shape[-1])
    true = settings.stft.forward(flat, jnp.repeat(lengths, sources.shape[1]))
    true = true.reshape(batch, -1, *spectrum.shape[1:])
    magnitude = jnp.abs(spectrum)
    if settings.target == "phase":
        # |S| cos(phase of S - phase of Y), without a quotient for silence's sake
        aligned = jnp.real(true * jnp.conj(spectrum)[:, None])
        target = jnp.maximum(aligned, 0) / jnp.maximum(magnitude, 1e-8)[:, None]
    else:
        target = jnp.abs(true)
    if settings.scale == "log1p":
        magnitude, target = jnp.log1p(magnitude), jnp.log1p(target)
    masks = head(features, num_frames, lengths, spectrum.shape[1], key)
    estimate = masks * magnitude[:, None]
    # Of each estimate (second axis) to each target (third): [batch, sources, sources]
    difference = estimate[:, :, None] - target[:, None]
    distance = difference**2 if settings.distance == "squared" else jnp.abs(difference)
    frames = settings.stft.frames(lengths)
    inside = (jnp.arange(spectrum.shape[1])[None] < frames[:, None])[:, None, None, :, None]
    total = jnp.sum(jnp.where(inside, distance, 0), axis=(-2, -1))
    means = total / frames.astype(jnp.float32)[:, None, None]
    losses = -best_permutation(-means)[0]
    there = lengths > 0
    return jnp.sum(jnp.where(there, losses, 0)) / jnp.maximum(jnp.sum(there), 1).astype(jnp.float32)


def separate(
    head: MaskHead,
    features: jax.Array,
    num_frames: jax.Array,
    mixture: jax.Array,
    lengths: jax.Array,
) -> jax.Array:
    """The sources' waveforms, with the input's phase: float32 [batch, sources, samples]."""
    stft = head.settings.stft
    spectrum = stft.forward(mixture, lengths)
    masks = head(features, num_frames, lengths, spectrum.shape[1])
    batch, sources = masks.shape[:2]
    masked = (masks.astype(spectrum.dtype) * spectrum[:, None]).reshape(
        batch * sources, *spectrum.shape[1:]
    )
    waveforms = stft.inverse(masked, jnp.repeat(lengths, sources), mixture.shape[1])
    return waveforms.reshape(batch, sources, -1)
