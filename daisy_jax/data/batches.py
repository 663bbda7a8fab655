"""Training batches, pure functions of (seed, step), so that a data position is one integer."""

import dataclasses
import functools

import numpy as np

from daisy_jax import audio
from daisy_jax.data.corpus import Corpus
from daisy_jax.data.noise import draw_noise, mix


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Noise that is mixed into training crops."""

    noises: Corpus | None = None
    """Noise recordings; None: crops stay as they are."""
    probability: float = 0.5
    """Share of the crops that get noise."""
    snr_range: tuple[float, float] = (0.0, 20.0)
    """dB, uniform."""

    def __call__(self, waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Float [samples] -> float32 [samples]."""
        if self.noises is None or rng.random() >= self.probability:
            return waveform
        noise = draw_noise(self.noises, len(waveform), rng)
        return mix(waveform, noise, rng.uniform(*self.snr_range))


@dataclasses.dataclass(frozen=True)
class Crop:
    """A part of an utterance, on the grid of its frames."""

    index: int
    start: int
    samples: int

    @property
    def frames(self) -> slice:
        """The crop's frames, counted in the whole utterance."""
        first = self.start // audio.FRAME_HOP
        return slice(first, first + audio.frame_count(self.samples))


def draw_crop(length: int, index: int, samples: int, rng: np.random.Generator) -> Crop:
    """Up to `samples` samples of an utterance, beginning at one of its frames."""
    room = max(length - samples, 0) // audio.FRAME_HOP
    start = int(rng.integers(room + 1)) * audio.FRAME_HOP
    return Crop(index, start, min(samples, length - start))


def draw_by_duration(
    lengths: np.ndarray, rows: int, samples: int, rng: np.random.Generator
) -> list[Crop]:
    """Crops drawn evenly over the audio: an utterance's chance grows with its length."""
    indices = rng.choice(len(lengths), rows, p=lengths / lengths.sum())
    return [draw_crop(int(lengths[i]), int(i), samples, rng) for i in indices]


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)


def draw_by_epoch(lengths: np.ndarray, rows: int, samples: int, seed: int, step: int) -> list[Crop]:
    """Crops of the `step`-th batch (from 0): each epoch goes through all utterances once."""
    rng = np.random.default_rng([seed, step])
    crops = []
    for position in range(step * rows, (step + 1) * rows):
        epoch, place = divmod(position, len(lengths))
        index = int(_permutation(seed, epoch, len(lengths))[place])
        crops.append(draw_crop(int(lengths[index]), index, samples, rng))
    return crops


def read_crops(
    corpus: Corpus,
    crops: list[Crop],
    samples: int,
    augmentation: Augmentation,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Reads, augments and pads: waveform float32 [rows, samples] and lengths int32 [rows]."""
    waveforms = [corpus.read(crop.index, crop.start, crop.samples) for crop in crops]
    return audio.pad_batch([augmentation(waveform, rng) for waveform in waveforms], samples)
