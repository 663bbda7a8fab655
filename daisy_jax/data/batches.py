"""Training batches, pure functions of (seed, step), so that a data position is one integer."""

import dataclasses

import numpy as np

from daisy_jax import audio
from daisy_jax.data.corpus import Corpus
from daisy_jax.data.labels import FrameLabels
from daisy_jax.data.mixing import draw_noise, mix
from daisy_jax.errors import InputError
from daisy_jax.reporting import leave_out


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
        if self.noises is None or rng.random() >= self.probability or not len(waveform):
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


POOL = 64
"""Batches that are made of utterances of similar length together; fewer in a small corpus, so that
an utterance seldom comes twice into a batch (where two epochs meet)."""


class EpochBatches:
    """Batches of crops of similar length, in epochs.

    An endless sequence runs through all utterances, epoch by epoch, each in a random order. It is
    cut into pools; a pool is sorted by length, cut into batches, and these come in random order.
    """

    def __init__(self, lengths: np.ndarray, rows: int, samples: int, seed: int):
        """Of `lengths`, int [utterances] samples; crops have up to `samples`."""
        self._lengths = lengths
        self._rows = rows
        self._samples = samples
        self._seed = seed
        self._batches = max(1, min(POOL, len(lengths) // (2 * rows)))
        self._recent: tuple[int, np.ndarray] = (-1, np.empty(0))

    def __call__(self, step: int) -> list[Crop]:
        """The crops of the `step`-th batch, from 0: a function of the seed and the step alone."""
        number, place = divmod(step, self._batches)
        recent, members = self._recent
        if recent != number:
            members = self._pool(number)
            self._recent = (number, members)
        rng = np.random.default_rng([self._seed, step])
        return [
            draw_crop(int(self._lengths[index]), int(index), self._samples, rng)
            for index in members[place]
        ]

    def _pool(self, number: int) -> np.ndarray:
        """Utterances of one pool: int [batches, rows]."""
        size, count = self._batches * self._rows, len(self._lengths)
        epochs, places = np.divmod(np.arange(number * size, (number + 1) * size), count)
        members = np.concatenate(
            [
                np.random.default_rng([self._seed, epoch]).permutation(count)[
                    places[epochs == epoch]
                ]
                for epoch in np.unique(epochs)
            ]
        )
        cropped = np.minimum(self._lengths[members], self._samples)
        by_length = members[np.argsort(cropped, kind="stable")]
        rng = np.random.default_rng([self._seed, number, 2])
        return rng.permutation(by_length.reshape(self._batches, self._rows))


class WholeBatches:
    """Batches of whole utterances of similar length, each utterance once; for scoring a corpus."""

    def __init__(self, lengths: np.ndarray, samples: int, multiple: int = 1):
        """A batch has up to `samples` in all its rows; their number is a multiple of `multiple`.

        Batches of one width have one height, but for the last, whose height is a power of two
        (times `multiple`), so that few shapes are compiled, however many sets there are.
        """
        self._batches: list[list[Crop]] = []
        order = np.argsort(-lengths, kind="stable")
        while len(order):
            width = audio.padded_width(int(lengths[order[0]]))
            left = -(-len(order) // multiple)
            height = min(max(samples // width // multiple, 1), 1 << (left - 1).bit_length())
            height *= multiple
            crops = [Crop(int(index), 0, int(lengths[index])) for index in order[:height]]
            self._batches.append(crops + [Crop(0, 0, 0)] * (height - len(crops)))
            order = order[height:]

    def __len__(self) -> int:
        return len(self._batches)

    def __call__(self, number: int) -> list[Crop]:
        """The crops of one batch; the last one ends with empty ones."""
        return self._batches[number]


def crop_width(crops: list[Crop], samples: int) -> int:
    """Width of the batch that crops of up to `samples` go into, one of few."""
    return min(audio.padded_width(max(crop.samples for crop in crops)), samples)


def read_crops(
    corpus: Corpus,
    crops: list[Crop],
    width: int,
    augmentation: Augmentation,
    rng: np.random.Generator,
    rows: slice = slice(None),
) -> tuple[np.ndarray, np.ndarray]:
    """Reads, augments and pads: waveform float32 [rows, width] and lengths int32 [rows].

    A crop that cannot be read, or whose noise cannot, is left out; its row stays empty. `rows` are
    those that are wanted; each has random numbers of its own, so that it is the same whoever reads
    the others.
    """
    waveforms = []
    for crop, row_rng in list(zip(crops, rng.spawn(len(crops)), strict=True))[rows]:
        try:
            waveform = corpus.read(crop.index, crop.start, crop.samples)
            waveform = augmentation(waveform, row_rng)
        except (InputError, OSError) as error:
            leave_out(str(error))
            waveform = np.zeros(0, np.float32)
        waveforms.append(waveform)
    return audio.pad_batch(waveforms, width)


def read_whole(
    corpus: Corpus, crops: list[Crop], rows: slice = slice(None)
) -> tuple[np.ndarray, np.ndarray]:
    """A batch of `WholeBatches`, or some of its `rows`, read as by `read_crops`."""
    width = audio.padded_width(crops[0].samples)
    nothing_is_drawn = np.random.default_rng(0)
    return read_crops(corpus, crops, width, Augmentation(), nothing_is_drawn, rows)


def read_labels(labels: FrameLabels, crops: list[Crop], frames: int) -> np.ndarray:
    """The crops' labels, int32 [rows, frames], -1 behind each."""
    rows = np.full((len(crops), frames), -1, np.int32)
    for row, crop in zip(rows, crops, strict=True):
        found = labels.read(crop.index, crop.frames)
        row[: len(found)] = found
    return rows
