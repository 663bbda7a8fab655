"""What the training and the evaluation of every downstream task have in common."""

import dataclasses
import hashlib
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from flax import nnx

from daisy_jax import audio
from daisy_jax.data.batches import Crop
from daisy_jax.data.corpus import Corpus, Selection, fingerprint
from daisy_jax.errors import InputError
from daisy_jax.reporting import leave_out

Arrays = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class TaskSettings:
    """A preset of a task: everything in its table of `presets.toml`."""

    corpus: str
    """The corpus' folder."""
    train: tuple[str, ...]
    dev: tuple[str, ...]
    test: tuple[str, ...]
    """Parts of the corpus, in its own names."""
    steps: int
    """Optimizer steps."""
    batch_size: int
    learning_rate: float
    weight_decay: float
    clip: float
    """Largest norm of the gradient."""
    save_every: int
    """Steps between two checkpoints, and between two validations."""
    head: dict[str, Any]
    """The head's own settings."""
    criterion: str
    """What a head is chosen by on the development set: a measure's name, or "loss"."""
    crop_seconds: float = 0.0
    """Longest part of an utterance to train on; 0: whole utterances."""
    split_file: str = ""
    """VoxCeleb1's list of sets."""
    per_speaker: int = 0
    """At most so many training utterances of a speaker; 0: all."""
    dev_speakers: tuple[str, ...] = ()
    """VoiceBank's speakers that are held out of training."""
    dev_utterances: int = 0
    """So many utterances of the development set, drawn once; 0: all."""


class Examples(NamedTuple):
    """One part of a task's corpus."""

    corpus: Corpus
    targets: Any
    """By the number of the utterance: texts, speakers or sources."""
    classes: tuple[str, ...] = ()
    """Names of what a head's outputs stand for."""


class Measured(NamedTuple):
    """What came out for one utterance."""

    values: dict[str, tuple[float, float]]
    """A measure's total and weight, such as word errors and words: the measure of a test set is the
    sum of totals over the sum of weights. NaN where it is not defined."""
    text: str = ""
    """What was recognised."""


class Measure(NamedTuple):
    """What a measure is called and how it is printed."""

    title: str
    unit: str
    higher_is_better: bool
    scale: float = 1.0
    """From the value as it is stored to the printed one, such as 100 for per cent."""


LONGEST_SECONDS = 300.0
"""Of an utterance; attention over more would not fit where it should."""


class Task(Protocol):
    """One of the four. Features are float32 [batch, frames, dim], pooled up to each exit."""

    name: str
    settings: TaskSettings
    measures: dict[str, Measure]
    """By name; the first is the one to look at."""

    def open(
        self,
        folder: str,
        part: str,
    ) -> Examples:
        """One part of the corpus, "train", "dev" or "test"."""
        ...

    def head(self, dim: int, classes: tuple[str, ...], *, rngs: nnx.Rngs) -> nnx.Module:
        """A new head."""
        ...

    def targets(
        self, examples: Examples, crops: list[Crop], rows: slice, width: int
    ) -> dict[str, np.ndarray]:
        """Some rows of a batch's targets, of one width; of an empty crop an empty row."""
        ...

    def loss(
        self,
        head: Any,
        features: jax.Array,
        num_frames: jax.Array,
        targets: Arrays,
        key: jax.Array | None,
    ) -> jax.Array:
        """Mean over the utterances with a frame; with a key as in training."""
        ...

    def outputs(
        self, head: Any, features: jax.Array, num_frames: jax.Array, targets: Arrays
    ) -> jax.Array:
        """What is predicted, by row."""
        ...

    def measure(self, examples: Examples, index: int, output: np.ndarray) -> Measured:
        """One utterance's measures; `output` is cut to its valid frames or samples."""
        ...

    def unprocessed(self, examples: Examples, index: int) -> Measured | None:
        """The same measures of the input itself; None where it has none."""
        ...

    def cut(self, output: np.ndarray, num_frames: int, samples: int) -> np.ndarray:
        """One row of `outputs` without its padding."""
        ...


def fingerprint_of(examples: Examples) -> str:
    """A digest of utterances and targets, which must not change within a run."""
    digest = hashlib.sha256(fingerprint(examples.corpus).encode())
    if hasattr(examples.targets, "sources"):
        for source in examples.targets.sources:
            digest.update(fingerprint(source).encode())
    else:
        for target in examples.targets:
            digest.update(f"{target}\n".encode())
    digest.update("\n".join(examples.classes).encode())
    return f"{len(examples.corpus.names)} utterances, {digest.hexdigest()[:16]}"


def the_one(names: tuple[str, ...], what: str) -> str:
    """The only name; an InputError if there are more or none."""
    if len(names) != 1:
        given = ", ".join(names) or "none"
        raise InputError(f"{what}: one part of the corpus was wanted, {given} given")
    return names[0]


def part_of(examples: Examples, indices: np.ndarray) -> Examples:
    """Some of the utterances."""
    targets = examples.targets
    chosen = (
        targets.part(indices) if hasattr(targets, "part") else [targets[int(i)] for i in indices]
    )
    return examples._replace(corpus=Selection(examples.corpus, indices), targets=chosen)


def usable_lengths(examples: Examples) -> Examples:
    """Without utterances that are longer than `LONGEST_SECONDS`; each is named."""
    longest = LONGEST_SECONDS * audio.SAMPLE_RATE
    for index in np.flatnonzero(examples.corpus.lengths > longest):
        leave_out(f"{examples.corpus.names[index]}: longer than {LONGEST_SECONDS:.0f} s; split it")
    return part_of(examples, np.flatnonzero(examples.corpus.lengths <= longest))
