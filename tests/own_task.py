"""A corpus with its own layout and a task on it, as somebody else would write them."""

import pathlib
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from daisy_jax import audio
from daisy_jax.tasks.task import Examples, Measure, Measured, Task


class OneFile:
    """All recordings of a folder in one array file, and their ends: a layout of its own."""

    def __init__(self, folder):
        self._samples = np.load(folder / "samples.npy", mmap_mode="r")
        self._ends = np.load(folder / "ends.npy")
        self.lengths = np.diff(self._ends, prepend=0)
        self.names = [f"recording-{number}" for number in range(len(self._ends))]

    def read(self, index, start, samples):
        first = self._ends[index] - self.lengths[index]
        return np.array(
            self._samples[first + start : min(first + start + samples, self._ends[index])]
        )


class LoudnessHead(nnx.Module):
    """Two classes a frame."""

    def __init__(self, dim, *, rngs):
        self.output = nnx.Linear(dim, 2, rngs=rngs)

    def __call__(self, features):
        return self.output(features)


class Loudness(Task):
    """Which frames are louder than the utterance's median, of a corpus of its own."""

    name = "loudness"
    title = "Loud frames"
    measures: ClassVar = {"accuracy": Measure("accuracy", "%", higher_is_better=True, scale=100)}

    def open(self, folder, part):
        corpus = OneFile(pathlib.Path(folder))
        loud = []
        for index, length in enumerate(corpus.lengths):
            frames = audio.frame_count(int(length))
            waveform = corpus.read(index, 0, int(length))
            power = [np.mean(waveform[320 * k : 320 * k + 400] ** 2) for k in range(frames)]
            loud.append(np.asarray(power > np.median(power), np.int32))
        return Examples(corpus, loud, ("quiet", "loud"))

    def head(self, dim, classes, *, rngs):
        return LoudnessHead(dim, rngs=rngs)

    def targets(self, examples, crops, rows, width):
        wanted = np.full((len(crops), audio.frame_count(width)), -1, np.int32)
        for row, crop in zip(wanted, crops, strict=True):
            if crop.samples:
                found = examples.targets[crop.index][crop.frames]
                row[: len(found)] = found
        return {"loud": wanted[rows]}

    def loss(self, head, features, num_frames, targets, key):
        log_probs = jax.nn.log_softmax(head(features))
        there = targets["loud"] >= 0
        chosen = jnp.maximum(targets["loud"], 0)[..., None]
        losses = -jnp.take_along_axis(log_probs, chosen, axis=-1)[..., 0]
        count = jnp.maximum(jnp.sum(there), 1).astype(jnp.float32)
        return jnp.sum(jnp.where(there, losses, 0)) / count

    def outputs(self, head, features, num_frames, targets):
        return head(features).argmax(axis=-1).astype(np.int32)

    def measure(self, examples, index, output):
        right = output == examples.targets[index]
        return Measured({"accuracy": (float(right.sum()), float(len(right)))})
