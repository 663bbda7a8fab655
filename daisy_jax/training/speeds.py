"""A corpus at several speeds, and its frame labels: more voices of the same audio."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from daisy_jax import audio
from daisy_jax.data.batches import FrameLabels
from daisy_jax.data.corpus import Corpus, Waveform
from daisy_jax.errors import InputError


def require_speeds(speeds: Sequence[float]) -> None:
    """Raises an InputError if there is no speed, or one outside of 0.5 to 2."""
    if not speeds or not all(0.5 <= speed <= 2 for speed in speeds):
        given = " ".join(map(str, speeds)) or "empty"
        raise InputError(f"speeds is {given}; give numbers from 0.5 to 2, such as 0.9 1 1.1")


class AtSpeeds:
    """A corpus with each utterance once for each speed, all of the first speed first.

    Tempo and pitch change together, as with a tape recorder: at 1.1 an utterance of 11 s takes
    10 s, and the voice is higher by a tenth.

    Source: speed perturbation (Ko et al. 2015, "Audio augmentation for speech recognition").
    """

    def __init__(self, corpus: Corpus, speeds: Sequence[float]):
        """Raises an InputError for speeds that make no sense (`require_speeds`)."""
        require_speeds(speeds)
        self.corpus, self._speeds = corpus, tuple(speeds)
        self.names = [_name(name, speed) for speed in speeds for name in corpus.names]
        lengths = [np.floor(corpus.lengths / speed).astype(np.int64) for speed in speeds]
        self.lengths = np.concatenate(lengths)

    def original(self, index: int) -> tuple[int, float]:
        """The number in `corpus` of what an utterance was made of, and its speed."""
        copy, original = divmod(index, len(self.corpus.names))
        return original, self._speeds[copy]

    def read(self, index: int, start: int, samples: int) -> Waveform:
        """As for every `Corpus`."""
        original, speed = self.original(index)
        if speed == 1:
            return self.corpus.read(original, start, samples)
        import soxr

        # All of it, as a part alone would come out a little different at its ends.
        whole = self.corpus.read(original, 0, int(self.corpus.lengths[original]))
        sped = soxr.resample(whole, speed * audio.SAMPLE_RATE, audio.SAMPLE_RATE)
        return sped[start : min(start + samples, int(self.lengths[index]))]


def _name(name: str, speed: float) -> str:
    return name if speed == 1 else f"{name} (at {speed:g} times its speed)"


class LabelsAtSpeeds:
    """The labels of a corpus `AtSpeeds`: of the original frame whose middle is the nearest."""

    def __init__(self, corpus: AtSpeeds, labels: FrameLabels):
        """`labels` are those of `corpus.corpus`."""
        self._corpus, self._labels = corpus, labels

    def read(self, index: int, frames: slice) -> Int[np.ndarray, " frames"]:
        """As for all `FrameLabels`."""
        original, speed = self._corpus.original(index)
        if speed == 1:
            return self._labels.read(original, frames)
        count = audio.frame_count(int(self._corpus.corpus.lengths[original]))
        numbers = np.arange(audio.frame_count(int(self._corpus.lengths[index])))[frames]
        middle = audio.FRAME_WINDOW / 2
        middles = (numbers * audio.FRAME_HOP + middle) * speed
        nearest = np.rint((middles - middle) / audio.FRAME_HOP).astype(np.int64)
        return self._labels.read(original, slice(0, count))[np.clip(nearest, 0, count - 1)]
