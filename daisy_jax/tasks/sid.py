"""Speaker identification on VoxCeleb1: accuracy."""

from typing import ClassVar

import numpy as np
from flax import nnx

from daisy_jax.data.voxceleb import open_voxceleb
from daisy_jax.tasks.heads.sid import SidHead, SidSettings, sid_loss
from daisy_jax.tasks.task import Examples, Measure, Measured, TaskSettings, the_one


class Sid:
    """Speakers are the targets."""

    name = "sid"
    measures: ClassVar = {"accuracy": Measure("accuracy", "%", higher_is_better=True, scale=100)}

    def __init__(self, settings: TaskSettings):
        self.settings = settings
        self._head = SidSettings(**settings.head)

    def open(
        self,
        folder: str,
        part: str,
    ) -> Examples:
        """As for every `Task`."""
        wanted = the_one(getattr(self.settings, part), f"sid, {part}")
        limit = self.settings.per_speaker if part == "train" else 0
        found = open_voxceleb(folder, self.settings.split_file, wanted, limit)
        return Examples(found.corpus, found.speaker, found.names)

    def head(self, dim: int, classes: tuple[str, ...], *, rngs: nnx.Rngs) -> SidHead:
        """As for every `Task`."""
        return SidHead(dim, len(classes), self._head, rngs=rngs)

    def targets(self, examples, crops, rows, width):
        """As for every `Task`."""
        speakers = [examples.targets[crop.index] for crop in crops[rows]]
        return {"speaker": np.asarray(speakers, np.int32)}

    def loss(self, head, features, num_frames, targets, key):
        """As for every `Task`."""
        return sid_loss(head, features, num_frames, targets["speaker"])

    def outputs(self, head, features, num_frames, targets):
        """The best speaker, int32 [batch]."""
        return head(features, num_frames).argmax(axis=-1).astype(np.int32)

    def cut(self, output, num_frames, samples):
        """As for every `Task`."""
        return output

    def measure(self, examples, index, output):
        """As for every `Task`."""
        hit = float(int(output) == int(examples.targets[index]))
        found = examples.classes[int(output)]
        return Measured({"accuracy": (hit, 1.0)}, found)

    def unprocessed(self, examples, index):
        """As for every `Task`."""
        return None
