"""Speaker identification on VoxCeleb1: the mean of projected features, one class a speaker."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from daisy_jax.data.voxceleb import open_voxceleb
from daisy_jax.model.feature_encoder import valid_positions
from daisy_jax.tasks.losses import Counts, Features, utterance_mean
from daisy_jax.tasks.task import Examples, Measure, Measured, Task, TaskSettings, the_one


@dataclasses.dataclass(frozen=True)
class SidSettings:
    """Size of the head."""

    projection: int


class SidHead(nnx.Module):
    """Linear, mean over the utterance, linear to the speakers."""

    def __init__(self, dim: int, speakers: int, settings: SidSettings, *, rngs: nnx.Rngs):
        self.projection = nnx.Linear(dim, settings.projection, rngs=rngs)
        self.output = nnx.Linear(settings.projection, speakers, rngs=rngs)

    def __call__(self, features: Features, num_frames: Counts) -> Float[Array, "batch speakers"]:
        """Scores of the speakers."""
        mask = valid_positions(features.shape[1], num_frames)
        projected = jnp.where(mask[..., None], self.projection(features), 0)
        count = jnp.maximum(num_frames, 1).astype(projected.dtype)
        return self.output(jnp.sum(projected, axis=1) / count[:, None])


def sid_loss(
    head: SidHead, features: Features, num_frames: Counts, speaker: Int[Array, " batch"]
) -> Float[Array, ""]:
    """Mean cross entropy, nats; empty rows do not count."""
    log_probs = jax.nn.log_softmax(head(features, num_frames))
    losses = -jnp.take_along_axis(log_probs, speaker[:, None], axis=-1)[:, 0]
    return utterance_mean(losses, num_frames > 0)


class Sid(Task[SidHead]):
    """Speakers are the targets."""

    name = "sid"
    title = "Speaker identification"
    whole = (138_361, 8_251)
    measures: ClassVar = {
        "accuracy": Measure("accuracy", "%", higher_is_better=True, scale=100, bounds=(0, 1))
    }

    def __init__(self, settings: TaskSettings):
        super().__init__(settings)
        self._head = SidSettings(**settings.head)

    def open(self, folder: str, part: str) -> Examples:
        """As for every `Task`."""
        number = the_one(getattr(self.settings, part), f"sid, {part}")
        limit = self.settings.per_speaker if part == "train" else 0
        speakers = open_voxceleb(folder, self.settings.split_file, number, limit)
        return Examples(speakers.corpus, speakers.speaker, speakers.names)

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

    def measure(self, examples, index, output):
        """As for every `Task`."""
        hit = float(int(output) == int(examples.targets[index]))
        return Measured({"accuracy": (hit, 1.0)}, examples.classes[int(output)])
