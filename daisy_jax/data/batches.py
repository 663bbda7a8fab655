"""Training batches, pure functions of (seed, step), so that a data position is one integer."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from daisy_jax import audio
from daisy_jax.data.corpus import Corpus, Lengths, Waveform
from daisy_jax.data.mixing import draw_noise, mix
from daisy_jax.errors import InputError
from daisy_jax.reporting import leave_out_item


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What is done to training crops: another tone, and noise."""

    noises: Corpus | None = None
    """Noise recordings; None: crops stay as they are."""
    probability: float = 0.5
    """Share of the crops that get noise."""
    snr_range: tuple[float, float] = (0.0, 20.0)
    """dB, uniform."""
    equalizer: float = 0.0
    """Largest gain of a random equalizer, dB up and down; 0: none."""

    def __call__(self, waveform: Waveform, rng: np.random.Generator) -> Waveform:
        """The crop as it is, or float32, changed."""
        if self.equalizer and len(waveform):
            waveform = equalize(waveform, rng.uniform(-self.equalizer, self.equalizer, 8))
        if self.noises is None or rng.random() >= self.probability or not len(waveform):
            return waveform
        noise = draw_noise(self.noises, len(waveform), rng)
        return mix(waveform, noise, rng.uniform(*self.snr_range))


def equalize(waveform: Waveform, gains: Float[np.ndarray, " bands"]) -> Waveform:
    """Float32, with so much gain (dB) at 8 kHz, an octave below, and so on; no phase changes.

    The last gain is that of 8 kHz. In between they are interpolated over the octaves.
    """
    # Behind the waveform there is room for what the filter smears across its ends.
    size = len(waveform) + audio.FRAME_WINDOW
    frequencies = np.fft.rfftfreq(size, 1 / audio.SAMPLE_RATE)
    octaves = np.log2(np.maximum(frequencies, 1.0) / (audio.SAMPLE_RATE / 2))
    curve = np.interp(octaves, np.arange(len(gains)) - len(gains) + 1.0, gains)
    spectrum = np.fft.rfft(waveform, size) * 10 ** (curve / 20)
    return np.fft.irfft(spectrum, size)[: len(waveform)].astype(np.float32)


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
    lengths: Lengths, rows: int, samples: int, rng: np.random.Generator
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

    def __init__(self, lengths: Lengths, rows: int, samples: int, seed: int):
        """Of utterances of these lengths; crops have up to `samples`."""
        self._lengths, self._rows, self._samples, self._seed = lengths, rows, samples, seed
        self._batches = max(1, min(POOL, len(lengths) // (2 * rows)))
        self._recent: tuple[int, np.ndarray] = (-1, np.empty(0))

    def __call__(self, step: int) -> list[Crop]:
        """The crops of the `step`-th batch, from 0: a function of the seed and the step alone."""
        number, batch = divmod(step, self._batches)
        recent = self._recent  # threads that read other batches may change it at any time
        if recent[0] != number:  # a pool is drawn once and not for each of its batches
            self._recent = recent = (number, self._pool(number))
        rng = np.random.default_rng([self._seed, step])
        return [
            draw_crop(int(self._lengths[index]), int(index), self._samples, rng)
            for index in recent[1][batch]
        ]

    def _pool(self, number: int) -> Int[np.ndarray, "batches rows"]:
        """Utterances of one pool."""
        size, count = self._batches * self._rows, len(self._lengths)
        first, skipped = divmod(number * size, count)
        epochs = range(first, first + -(-(skipped + size) // count))
        orders = [np.random.default_rng([self._seed, e]).permutation(count) for e in epochs]
        members = np.concatenate(orders)[skipped : skipped + size]
        cropped = np.minimum(self._lengths[members], self._samples)
        by_length = members[np.argsort(cropped, kind="stable")]
        rng = np.random.default_rng([self._seed, number, 2])
        return rng.permutation(by_length.reshape(self._batches, self._rows))


class WholeBatches:
    """Batches of whole utterances of similar length, each utterance once; for scoring a corpus."""

    # Each shape of a batch is compiled anew, which takes far longer than computing the batch. So a
    # batch has one of the dozen widths of `audio.WIDTHS`, and batches of one width have one height.
    # Only the last batch of a set may be lower; its height is a power of two, or else every further
    # set would bring a shape of its own.

    def __init__(
        self,
        lengths: Lengths,
        samples: int,
        multiple: int = 1,
        widths: Sequence[int] = audio.WIDTHS,
    ):
        """A batch has up to `samples` in all its rows; their number is a multiple of `multiple`."""
        self._batches: list[list[Crop]] = []
        order = np.argsort(-lengths, kind="stable")
        while len(order):
            width = audio.padded_width(int(lengths[order[0]]), widths)
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


NO_NOISE = Augmentation()


def read_crops(
    corpus: Corpus,
    crops: list[Crop],
    width: int,
    augmentation: Augmentation = NO_NOISE,
    rng: np.random.Generator | None = None,
    rows: slice = slice(None),
) -> tuple[Float[np.ndarray, "rows {width}"], Int[np.ndarray, " rows"]]:
    """Reads, augments and pads: waveform float32 and lengths int32.

    A crop that cannot be read, or whose noise cannot, is left out; its row stays empty. `rows` are
    those that are wanted; each has random numbers of its own, so that it is the same whoever reads
    the others. Without noise nothing is drawn, and no `rng` is needed.
    """
    waveforms, rng = [], rng or np.random.default_rng(0)
    for crop, row_rng in list(zip(crops, rng.spawn(len(crops)), strict=True))[rows]:
        try:
            waveform = corpus.read(crop.index, crop.start, crop.samples)
            waveform = augmentation(waveform, row_rng)
        except Exception as error:
            leave_out_item(corpus.names[crop.index], error)
            waveform = np.zeros(0, np.float32)
        waveforms.append(waveform)
    return audio.pad_batch(waveforms, width)


def read_whole(
    corpus: Corpus, crops: list[Crop], rows: slice = slice(None)
) -> tuple[Float[np.ndarray, "rows samples"], Int[np.ndarray, " rows"]]:
    """A batch of `WholeBatches`, or some of its `rows`, read as by `read_crops`."""
    return read_crops(corpus, crops, audio.padded_width(crops[0].samples), rows=rows)


@runtime_checkable
class FrameLabels(Protocol):
    """Labels of a corpus' frames, wherever they are."""

    def read(self, index: int, frames: slice) -> Int[np.ndarray, " frames"]:
        """The labels of one utterance's `frames`, int32."""
        ...


class LabelsInOrder:
    """Labels that follow a corpus, utterance after utterance; -1 where nobody knows."""

    def __init__(self, corpus: Corpus, labels: Int[np.ndarray, " all_frames"]):
        """Raises an InputError if there are not as many as the corpus has frames."""
        counts = audio.frame_count(corpus.lengths)
        if counts.sum() != len(labels):
            raise InputError(
                f"targets: {len(labels)} labels for {counts.sum()} frames; remove the run's "
                "targets.npz, and train/pretrain.py --resume makes it again"
            )
        self._labels, self._starts = labels, np.cumsum(counts) - counts

    def read(self, index: int, frames: slice) -> Int[np.ndarray, " frames"]:
        """As for all `FrameLabels`."""
        begin = self._starts[index]
        return self._labels[begin + frames.start : begin + frames.stop].astype(np.int32)


def read_labels(
    labels: FrameLabels, crops: list[Crop], frames: int
) -> Int[np.ndarray, "rows {frames}"]:
    """The crops' labels, int32, -1 behind each."""
    rows = np.full((len(crops), frames), -1, np.int32)
    for row, crop in zip(rows, crops, strict=True):
        of_crop = labels.read(crop.index, crop.frames)
        row[: len(of_crop)] = of_crop
    return rows


def read_batch(
    corpus: Corpus,
    labels: FrameLabels | None,
    crops: list[Crop],
    width: int,
    augmentation: Augmentation = NO_NOISE,
    rng: np.random.Generator | None = None,
    rows: slice = slice(None),
) -> dict[str, np.ndarray]:
    """What `read_crops` gives, as "waveform" and "lengths", and "labels" if there are some."""
    waveform, lengths = read_crops(corpus, crops, width, augmentation, rng, rows)
    batch = {"waveform": waveform, "lengths": lengths}
    if labels is not None:
        frames = audio.frame_count(width)
        # Of an utterance that cannot be read there are labels, but no frames.
        heard = np.arange(frames) < audio.frame_count(lengths)[:, None]
        batch["labels"] = np.where(heard, read_labels(labels, crops[rows], frames), np.int32(-1))
    return batch
