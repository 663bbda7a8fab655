"""SpecAugment on features: warping in time, masked channels, masked spans of time."""

import dataclasses
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from daisy_jax.tasks.losses import Counts, Features

Row: TypeAlias = Float[Array, "frames dim"]


@dataclasses.dataclass(frozen=True)
class SpecAugment:
    """What is done to each utterance's features in training.

    Source: Park et al. 2019; linear interpolation in the place of the image warp.
    """

    warp: int = 5
    """Largest shift of the warp's centre, frames; 0: no warp."""
    channel_masks: int = 4
    channel_width: int = 50
    """Largest width of a channel mask."""
    time_masks: int = 2
    time_width: int = 40
    """Largest width of a time mask, frames; never more than the utterance has."""

    def __call__(self, features: Features, num_frames: Counts, key: Key[Array, ""]) -> Features:
        """Augments features of so many valid frames; each row is drawn apart."""
        keys = jax.random.split(key, features.shape[0])
        return jax.vmap(self._one)(features, num_frames, keys)

    def _one(self, features: Row, num_frames: Int[Array, ""], key: Key[Array, ""]) -> Row:
        warp_key, channel_key, time_key = jax.random.split(key, 3)
        frames, dim = features.shape
        if self.warp:
            features = self._warped(features, num_frames, warp_key)
        channels = spans(channel_key, self.channel_masks, self.channel_width, dim, dim)
        times = spans(time_key, self.time_masks, self.time_width, num_frames, frames)
        return jnp.where(channels[None] | times[:, None], 0, features)

    def _warped(self, features: Row, num_frames: Int[Array, ""], key: Key[Array, ""]) -> Row:
        """Moves one frame by up to `warp`; what lies before and behind it is stretched evenly."""
        centre_key, shift_key = jax.random.split(key)
        last = (num_frames - 1).astype(jnp.float32)
        window = float(self.warp)
        drawn = jax.random.uniform(centre_key)
        centre = window + drawn * (last - 2 * window)
        moved = centre + jax.random.uniform(shift_key, minval=-window, maxval=window)
        times = jnp.arange(features.shape[0], dtype=jnp.float32)
        before = times * centre / jnp.maximum(moved, 1)
        after = centre + (times - moved) * (last - centre) / jnp.maximum(last - moved, 1)
        source = jnp.where(times < moved, before, after)
        # Utterances that are too short for it, and padding, stay as they are; so does the last
        # frame, which the rounding of some compilers would put just before or behind itself.
        source = jnp.where((last > 4 * window) & (times < last), source, times)
        below = jnp.floor(source)
        share = (source - below)[:, None].astype(features.dtype)
        low = jnp.clip(below.astype(jnp.int32), 0, features.shape[0] - 1)
        high = jnp.minimum(low + 1, features.shape[0] - 1)
        return features[low] * (1 - share) + features[high] * share


def spans(
    key: Key[Array, ""], count: int, width: int, length: Int[Array, ""] | int, size: int
) -> Bool[Array, " {size}"]:
    """True in `count` spans of 0 to `width` positions, each within the first `length`."""
    width_key, start_key = jax.random.split(key)
    widths = jax.random.randint(width_key, (count,), 0, width + 1)
    widths = jnp.minimum(widths, length)
    room = (length - widths + 1).astype(jnp.float32)
    starts = jnp.floor(jax.random.uniform(start_key, (count,)) * room).astype(jnp.int32)
    positions = jnp.arange(size)[None]
    inside = (positions >= starts[:, None]) & (positions < (starts + widths)[:, None])
    return jnp.any(inside, axis=0)
