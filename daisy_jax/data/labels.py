"""Labels of a corpus' frames, by utterance, as training batches read them."""

from typing import Protocol, runtime_checkable

import numpy as np

from daisy_jax import audio
from daisy_jax.data.corpus import Corpus


@runtime_checkable
class FrameLabels(Protocol):
    """Labels by utterance, wherever they are."""

    def read(self, index: int, frames: slice) -> np.ndarray:
        """The labels of one utterance's `frames`, int32 [frames]."""
        ...


class LabelsInOrder:
    """Labels that follow a corpus, utterance after utterance."""

    def __init__(self, corpus: Corpus, labels: np.ndarray):
        """Of int [all frames]."""
        counts = audio.frame_count(corpus.lengths)
        if counts.sum() != len(labels):
            raise ValueError(f"{len(labels)} labels for {counts.sum()} frames")
        self._labels, self._starts = labels, np.cumsum(counts) - counts

    def read(self, index: int, frames: slice) -> np.ndarray:
        """As for all `FrameLabels`."""
        begin = self._starts[index]
        return self._labels[begin + frames.start : begin + frames.stop].astype(np.int32)
