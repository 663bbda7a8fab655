"""Branches on held-out speech: loss, accuracy and entropy of every layer."""

from typing import Any

import jax
import numpy as np

from daisy_jax import audio, parallel
from daisy_jax.data.batches import WholeBatches, read_labels, read_whole
from daisy_jax.data.corpus import Corpus
from daisy_jax.data.labels import FrameLabels
from daisy_jax.data.prefetch import Batch, batches
from daisy_jax.devices import fetched_behind
from daisy_jax.errors import InputError
from daisy_jax.model.branches import Branches
from daisy_jax.model.hubert import Hubert
from daisy_jax.training.branches import BranchScores, branch_scores


class Validation:
    """A corpus that branches are scored on: whole utterances, of long ones the first minute."""

    def __init__(self, trunk: Hubert, corpus: Corpus, labels: FrameLabels | None, samples: int):
        """Of a trunk on every device (`parallel.replicate`), in batches of up to `samples`."""
        # Attention over a recording of an hour would not fit anywhere.
        lengths = np.minimum(corpus.lengths, audio.WIDTHS[-1])
        draw = WholeBatches(lengths, samples, jax.device_count())

        def read(number: int) -> Batch:
            crops = draw(number)
            mine = parallel.local_rows(len(crops))
            waveform, lengths = read_whole(corpus, crops, mine)
            batch = {"waveform": waveform, "lengths": lengths}
            if labels is not None:
                frames = audio.frame_count(waveform.shape[1])
                batch["labels"] = read_labels(labels, crops[mine], frames)
            return batch

        self._trunk, self._read, self._count = trunk, read, len(draw)
        self._scores = jax.jit(branch_scores, out_shardings=parallel.replicated())

    def scores(self, branches: Branches) -> BranchScores:
        """Scores of all utterances that could be read, as numpy arrays; the longest come first.

        Raises:
          InputError: there is none.
        """
        started = (
            self._scores(branches, self._trunk, **parallel.place(batch))
            for batch in batches(self._read, 0, self._count, workers=0)
        )
        found = zip(*fetched_behind(started), strict=True)
        joined = [np.concatenate(part) for part in found]
        scores = BranchScores(*joined)
        valid = scores.frames > 0
        if not np.any(valid):
            raise InputError("no utterance of the validation set could be read; repair its files")
        return BranchScores(*(part[valid] for part in scores))

    def summary(self, branches: Branches) -> dict[str, Any]:
        """Means over the corpus, for metrics.jsonl: of utterances, of accuracy over frames."""
        scores = self.scores(branches)
        accuracy = scores.hits.sum(axis=0) / scores.frames.sum()
        by_layer = {
            "loss": scores.loss.mean(axis=0),
            "accuracy": accuracy,
            "entropy": scores.entropy.mean(axis=0),
        }
        means = {f"validation_{name}": float(value.mean()) for name, value in by_layer.items()}
        layers = {f"validation_layer_{name}": value.tolist() for name, value in by_layer.items()}
        return means | layers
