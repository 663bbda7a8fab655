"""Speech recognition on LibriSpeech: word error rate of greedy decoding."""

from collections.abc import Callable
from typing import ClassVar

import jax
import numpy as np
from flax import nnx

from daisy_jax import audio
from daisy_jax.data.corpus import open_corpus
from daisy_jax.data.librispeech import transcripts
from daisy_jax.tasks.heads.asr import (
    CHARACTERS,
    AsrHead,
    AsrSettings,
    asr_loss,
    greedy_text,
    spell,
)
from daisy_jax.tasks.metrics import word_errors
from daisy_jax.tasks.spec_augment import SpecAugment
from daisy_jax.tasks.task import Examples, Measure, Measured, TaskSettings

WIDEST_TEXT = 64
"""Texts are padded to a multiple of so many characters, so that few shapes are compiled."""


class Asr:
    """Texts are the targets."""

    name = "asr"
    measures: ClassVar = {"wer": Measure("WER", "%", higher_is_better=False, scale=100)}

    def __init__(self, settings: TaskSettings):
        self.settings = settings
        head = dict(settings.head)
        self.decoder: Callable[[np.ndarray], str] | None = None
        """From log probabilities, float [frames, 32], to a text; None: greedy decoding."""
        augment = SpecAugment(**head.pop("augment", {}))
        self._head = AsrSettings(**head, augment=augment)

    def open(
        self,
        folder: str,
        part: str,
    ) -> Examples:
        """As for every `Task`."""
        corpus = open_corpus(folder, getattr(self.settings, part))
        return Examples(corpus, transcripts(folder, corpus), CHARACTERS)

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

    def cut(self, output, num_frames, samples):
        """As for every `Task`."""
        return output[:num_frames]

    def measure(self, examples, index, output):
        """As for every `Task`."""
        text = greedy_text(output) if self.decoder is None else self.decoder(output)
        reference = " ".join(examples.targets[index].upper().split())
        return Measured({"wer": word_errors(reference, text)}, text)

    def unprocessed(self, examples, index):
        """As for every `Task`."""
        return None
