"""Short-time Fourier transform and its inverse, for masks on spectra."""

import dataclasses
from typing import TypeVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, Int

from daisy_jax.model.feature_encoder import valid_positions

Count = TypeVar("Count", int, Int[Array, " batch"])

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

    def frames(self, samples: Count) -> Count:
        """How many frames an utterance of `samples` has."""
        return samples // self.hop + 1

    def _window(self) -> Float[np.ndarray, " size"]:
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(self.window) / self.window)
        left = (self.size - self.window) // 2
        return np.pad(hann, (left, self.size - self.window - left)).astype(np.float32)

    def _samples_of(self, frames: int) -> Int[np.ndarray, "{frames} size"]:
        """The numbers of each frame's samples, counted in the padded signal."""
        return np.arange(frames)[:, None] * self.hop + np.arange(self.size)[None]

    def forward(
        self, waveform: Float[Array, "batch samples"], lengths: Int[Array, " batch"]
    ) -> Complex[Array, "batch steps bins"]:
        """The spectra of a batch.

        Args:
          waveform: zero behind each row's length.
          lengths: true sample counts.

        Returns:
          complex64; a row's first `frames(length)` are those it has alone, whatever its padding;
          zero behind them.
        """
        half, samples = self.size // 2, waveform.shape[1]
        # Each row is reflected at its own end: positions behind it count back from there.
        positions = jnp.arange(-half, samples + half)[None]
        last = jnp.maximum(lengths - 1, 1)[:, None]
        turn = 2 * last
        positions = jnp.abs(positions) % turn
        positions = jnp.minimum(positions, turn - positions)
        padded = jnp.take_along_axis(waveform.astype(jnp.float32), positions, axis=1)
        count = self.frames(samples)
        framed = padded[:, self._samples_of(count)] * self._window()[None, None]
        valid = valid_positions(count, self.frames(lengths))
        return jnp.where(valid[..., None], jnp.fft.rfft(framed), 0)

    def inverse(
        self,
        spectra: Complex[Array, "batch steps bins"],
        lengths: Int[Array, " batch"],
        samples: int,
    ) -> Float[Array, "batch {samples}"]:
        """The waveforms of spectra, float32.

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
        positions = self._samples_of(count)
        summed = jnp.zeros((batch, total), jnp.float32).at[:, positions].add(framed)
        # Windows of a row's own frames alone: others hold nothing.
        valid = valid_positions(count, self.frames(lengths))
        squares = jnp.where(valid[..., None], (window**2)[None, None], 0)
        weight = jnp.zeros((batch, total), jnp.float32).at[:, positions].add(squares)
        half = self.size // 2
        waveform = (summed / jnp.maximum(weight, LEAST_WEIGHT))[:, half:]
        waveform = jnp.pad(waveform, ((0, 0), (0, max(samples - waveform.shape[1], 0))))
        return jnp.where(valid_positions(samples, lengths), waveform[:, :samples], 0)
