"""Speech recognition on LibriSpeech: BLSTM layers, characters by CTC, word error rate."""

import dataclasses
import itertools
from typing import ClassVar

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from daisy_jax import audio
from daisy_jax.data.corpus import open_corpus
from daisy_jax.data.transcripts import transcripts
from daisy_jax.model.feature_encoder import valid_positions
from daisy_jax.tasks.losses import Counts, Features, ctc_loss
from daisy_jax.tasks.lstm import BidirectionalLstm
from daisy_jax.tasks.metrics import word_errors
from daisy_jax.tasks.spec_augment import SpecAugment
from daisy_jax.tasks.task import Examples, Measure, Measured, Task, TaskSettings

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
CHARACTERS = (*SPECIAL, "|", *"ETAOINHSRDLUMWCFGYPBVK'XJQZ")
"""The 32 outputs: fairseq's letters by frequency behind its four special entries. The first is
CTC's blank, `|` ends a word, `</s>` an utterance."""
NUMBERS = {character: number for number, character in enumerate(CHARACTERS)}


@dataclasses.dataclass(frozen=True)
class AsrSettings:
    """Size of the head and augmentation of its input."""

    projection: int
    """Width of the linear layer in front."""
    units: int
    """Of each direction."""
    layers: int
    """BLSTM layers; 0: a linear head, whose scores of a frame come from this frame alone."""
    dropout: float
    """Behind each BLSTM layer, in training."""
    augment: SpecAugment = dataclasses.field(default_factory=SpecAugment)


class AsrHead(nnx.Module):
    """Linear, BLSTM layers if there are any, linear to the characters."""

    def __init__(self, dim: int, settings: AsrSettings, *, rngs: nnx.Rngs):
        self.projection = nnx.Linear(dim, settings.projection, rngs=rngs)
        self.lstm = BidirectionalLstm(
            settings.projection, settings.units, settings.layers, settings.dropout, rngs=rngs
        )
        width = 2 * settings.units if settings.layers else settings.projection
        self.output = nnx.Linear(width, len(CHARACTERS), rngs=rngs)
        self.augment = settings.augment

    def __call__(
        self, features: Features, num_frames: Counts, key: Key[Array, ""] | None = None
    ) -> Float[Array, "batch frames 32"]:
        """Scores of the characters; with a key, of augmentation and dropout, as in training."""
        mask = valid_positions(features.shape[1], num_frames)
        if key is None:
            return self.output(self.lstm(self.projection(features), mask))
        augment_key, between_key, last_key = jax.random.split(key, 3)
        features = self.augment(features, num_frames, augment_key)
        hidden = self.lstm(self.projection(features), mask, between_key)
        return self.output(self.lstm.drop(hidden, last_key))


def asr_loss(
    head: AsrHead,
    features: Features,
    num_frames: Counts,
    characters: Int[Array, "batch labels"],
    key: Key[Array, ""] | None,
) -> Float[Array, ""]:
    """CTC loss per character, nats; `characters` are 0 behind each text."""
    logits = head(features, num_frames, key)
    mask = valid_positions(logits.shape[1], num_frames)
    return ctc_loss(logits, mask, characters, characters > 0)


def spell(text: str) -> Int[np.ndarray, " labels"]:
    """A transcript's characters, int32: words end with `|`, the text with `</s>`.

    Case does not matter; what is not in the alphabet becomes `<unk>`.
    """
    letters = [letter for word in text.upper().split() for letter in (*word, "|")]
    unknown = NUMBERS["<unk>"]
    spelling = [NUMBERS.get(letter, unknown) for letter in letters]
    return np.asarray([*spelling, NUMBERS["</s>"]], np.int32)


def greedy_text(best: Int[np.ndarray, " frames"]) -> str:
    """The text of the best-scoring characters: repeats joined, blanks dropped."""
    letters = [CHARACTERS[number] for number, _ in itertools.groupby(best.tolist())]
    spoken = "".join(letter for letter in letters if letter not in SPECIAL)
    return " ".join(spoken.replace("|", " ").split())


WIDEST_TEXT = 64
"""Texts are padded to a multiple of so many characters, so that few shapes are compiled."""


class Asr(Task[AsrHead]):
    """Texts are the targets."""

    name = "asr"
    title = "Speech recognition"
    decoding = "greedy"
    whole = (28_539, 2_620)
    measures: ClassVar = {
        "wer": Measure("WER", "%", higher_is_better=False, scale=100, bounds=(0, 1))
    }

    def __init__(self, settings: TaskSettings):
        super().__init__(settings)
        head = dict(settings.head)
        augment = SpecAugment(**head.pop("augment", {}))
        self._head = AsrSettings(**head, augment=augment)

    def open(self, folder: str, part: str) -> Examples:
        """As for every `Task`."""
        corpus = open_corpus(folder, getattr(self.settings, part))
        return Examples(corpus, transcripts(folder, corpus.names), CHARACTERS)

    def head(self, dim: int, classes: tuple[str, ...], *, rngs: nnx.Rngs) -> AsrHead:
        """As for every `Task`."""
        return AsrHead(dim, self._head, rngs=rngs)

    def targets(self, examples, crops, rows, width):
        """As for every `Task`."""
        texts = [spell(examples.targets[c.index]) if c.samples else [] for c in crops]
        # A width goes with one number of characters, or two: more than 25 a second is rare. All
        # processes count all rows, so that theirs are of one width.
        usual = round(25 * width / audio.SAMPLE_RATE)
        longest = max(usual, *map(len, texts))
        longest = -(-longest // WIDEST_TEXT) * WIDEST_TEXT
        characters = np.zeros((len(crops), longest), np.int32)
        for row, text in zip(characters, texts, strict=True):
            row[: len(text)] = text
        return {"characters": characters[rows]}

    def loss(self, head, features, num_frames, targets, key):
        """As for every `Task`."""
        return asr_loss(head, features, num_frames, targets["characters"], key)

    def outputs(self, head, features, num_frames, targets):
        """The best character of each frame, int32 [batch, frames]; for a decoder all of them."""
        logits = head(features, num_frames)
        if self.decoder is not None:
            return jax.nn.log_softmax(logits)
        return logits.argmax(axis=-1).astype(np.int32)

    def measure(self, examples, index, output):
        """As for every `Task`."""
        text = greedy_text(output) if self.decoder is None else self.decoder(output)
        reference = " ".join(examples.targets[index].upper().split())
        return Measured({"wer": word_errors(reference, text)}, text)

    def use_lexicon(self, lexicon: str, language_model: str) -> None:
        """As for every `Task`; the decoder takes log probabilities, float [frames, 32]."""
        from daisy_jax.tasks.lexicon_decoding import lexicon_decoder

        self.decoder, self.decoding = lexicon_decoder(lexicon, language_model), "lexicon"
