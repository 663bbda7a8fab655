"""Speech recognition: BLSTM layers over features, characters by CTC, greedy decoding."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from daisy_jax.tasks.losses import ctc_loss
from daisy_jax.tasks.lstm import BidirectionalLstm
from daisy_jax.tasks.spec_augment import SpecAugment

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
CHARACTERS = (*SPECIAL, "|", *"ETAOINHSRDLUMWCFGYPBVK'XJQZ")
"""The 32 outputs: fairseq's letters by frequency behind its four special entries. The first is
CTC's blank, `|` ends a word, `</s>` an utterance."""


@dataclasses.dataclass(frozen=True)
class AsrSettings:
    """Size of the head and augmentation of its input."""

    projection: int
    """Width of the linear layer in front."""
    units: int
    """Of each direction."""
    layers: int
    dropout: float
    """Behind each BLSTM layer, in training."""
    augment: SpecAugment = dataclasses.field(default_factory=SpecAugment)


class AsrHead(nnx.Module):
    """Linear, BLSTM layers, linear to the characters."""

    def __init__(self, dim: int, settings: AsrSettings, *, rngs: nnx.Rngs):
        self.projection = nnx.Linear(dim, settings.projection, rngs=rngs)
        self.lstm = BidirectionalLstm(
            settings.projection, settings.units, settings.layers, settings.dropout, rngs=rngs
        )
        self.output = nnx.Linear(2 * settings.units, len(CHARACTERS), rngs=rngs)
        self.augment = settings.augment

    def __call__(
        self, features: jax.Array, num_frames: jax.Array, key: jax.Array | None = None
    ) -> jax.Array:
        """Scores of the characters.

        Args:
          features: float32 [batch, frames, dim].
          num_frames: int [batch], valid frames.
          key: of augmentation and dropout; None: evaluation.

        Returns:
          float32 [batch, frames, 32].
        """
        mask = jnp.arange(features.shape[1])[None] < num_frames[:, None]
        if key is None:
            return self.output(self.lstm(self.projection(features), mask))
        augment_key, between_key, last_key = jax.random.split(key, 3)
        features = self.augment(features, num_frames, augment_key)
        hidden = self.lstm(self.projection(features), mask, between_key)
        return self.output(self.lstm.drop(hidden, last_key))


def asr_loss(
    head: AsrHead,
    features: jax.Array,
    num_frames: jax.Array,
    characters: jax.Array,
    key: jax.Array | None,
) -> jax.Array:
    """CTC loss per character, nats: `characters` int [batch, labels], 0 behind each text."""
    logits = head(features, num_frames, key)
    mask = jnp.arange(logits.shape[1])[None] < num_frames[:, None]
    return ctc_loss(logits, mask, characters, characters > 0)


def spell(text: str) -> np.ndarray:
    """A transcript's characters, int32 [labels]: words end with `|`, the text with `</s>`.

    Case does not matter; what is not in the alphabet becomes `<unk>`.
    """
    places = {character: place for place, character in enumerate(CHARACTERS)}
    unknown = places["<unk>"]
    letters = [letter for word in text.upper().split() for letter in (*word, "|")]
    found = [places.get(letter, unknown) for letter in letters] + [places["</s>"]]
    return np.asarray(found, np.int32)


def greedy_text(best: np.ndarray) -> str:
    """The text of the best-scoring characters, int [frames]: repeats joined, blanks dropped."""
    letters = [CHARACTERS[place] for place, _ in itertools.groupby(best.tolist())]
    spoken = "".join(letter for letter in letters if letter not in SPECIAL)
    return " ".join(spoken.replace("|", " ").split())
