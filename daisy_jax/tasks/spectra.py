"""Short-time Fourier transform and its inverse, for masks on spectra."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

LEAST_WEIGHT = 1e-2
"""Of the squared windows that lie over a sample; elsewhere than at the end there is more."""


@dataclasses.dataclass(frozen=True)
class Stft:
    """Short-time spectra like torch.stft's: centred frames, reflected ends, a Hann window."""

    size: int
    """Length of the transform, samples; even."""
    window: int
    """Length of the window, samples; it lies in the middle of the transform."""
    hop: int
    """Samples between two frames."""

    @property
    def bins(self) -> int:
        """Frequencies of a spectrum."""
        return self.size // 2 + 1

    def frames(self, samples: Any) -> Any:
        """How many frames an utterance of `samples` has."""
        return samples // self.hop + 1

    def _window(self) -> np.ndarray:
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(self.window) / self.window)
        left = (self.size - self.window) // 2
        return np.pad(hann, (left, self.size - self.window - left)).astype(np.float32)

    def _places(self, frames: int) -> np.ndarray:
        """For each frame its samples, counted in the padded signal: int [frames, size]."""
        return np.arange(frames)[:, None] * self.hop + np.arange(self.size)[None]

    def forward(self, waveform: jax.Array, lengths: jax.Array) -> jax.Array:
        """The spectra of a batch.

        Args:
          waveform: float [batch, samples], zero behind each row's length.
          lengths: int [batch], true sample counts.

        Returns:
          complex64 [batch, frames, bins]; a row's first `frames(length)` are those it has alone,
          whatever its padding; zero behind them.
        """
        half, samples = self.size // 2, waveform.shape[1]
        # Each row is reflected at its own end: places behind it count back from there.
        places = jnp.arange(-half, samples + half)[None]
        last = jnp.maximum(lengths - 1, 1)[:, None]
        turn = 2 * last
        places = jnp.abs(places) % turn
        places = jnp.minimum(places, turn - places)
        padded = jnp.take_along_axis(waveform.astype(jnp.float32), places, axis=1)
        count = self.frames(samples)
        framed = padded[:, self._places(count)] * self._window()[None, None]
        spectra = jnp.fft.rfft(framed)
        valid = jnp.arange(count)[None] < self.frames(lengths)[:, None]
        return jnp.where(valid[..., None], spectra, 0)

    def inverse(self, spectra: jax.Array, lengths: jax.Array, samples: int) -> jax.Array:
        """The waveforms, float32 [batch, samples], of complex [batch, frames, bins].

        Overlapping frames are weighted by the window, as torch.istft does; zero behind each
        length. What lies behind a row's own frames must be zero. Behind the middle of the last
        frame the window fades out: there torch divides by next to nothing, which makes an impulse
        of any spectrum that is not a waveform's own. Here the divisor stays above `LEAST_WEIGHT`,
        and the waveform fades out.
        """
        batch, count, _ = spectra.shape
        window = jnp.asarray(self._window())
        framed = jnp.fft.irfft(spectra, n=self.size) * window[None, None]
        total = (count - 1) * self.hop + self.size
        places = self._places(count)
        summed = jnp.zeros((batch, total), jnp.float32).at[:, places].add(framed)
        # Windows of a row's own frames alone: others hold nothing.
        valid = jnp.arange(count)[None] < self.frames(lengths)[:, None]
        squares = jnp.where(valid[..., None], (window**2)[None, None], 0)
        weight = jnp.zeros((batch, total), jnp.float32).at[:, places].add(squares)
        half = self.size // 2
        waveform = (summed / jnp.maximum(weight, LEAST_WEIGHT))[:, half:]
        waveform = jnp.pad(waveform, ((0, 0), (0, max(samples - waveform.shape[1], 0))))
        waveform = waveform[:, :samples]
        inside = jnp.arange(samples)[None] < lengths[:, None]
        return jnp.where(inside, waveform, 0)
