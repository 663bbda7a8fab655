"""What the training and the evaluation of every downstream task have in common."""

import abc
import dataclasses
import hashlib
import math
from collections.abc import Callable
from typing import Any, ClassVar, Generic, NamedTuple, TypeAlias, TypeVar

import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key, Shaped

from daisy_jax import audio
from daisy_jax.data.batches import Crop
from daisy_jax.data.corpus import Corpus, Selection, WithSources, fingerprint
from daisy_jax.data.side_work import SideProcesses
from daisy_jax.errors import InputError
from daisy_jax.reporting import leave_out
from daisy_jax.tasks.losses import Counts, Features

Head = TypeVar("Head", bound=nnx.Module)
Targets: TypeAlias = dict[str, Shaped[Array, "batch ..."]]
"""Of a batch, by name."""
Output: TypeAlias = Shaped[np.ndarray, "..."]
"""One row of a task head's outputs."""


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
    """Steps between two checkpoints."""
    head: dict[str, Any]
    """The task head's own settings."""
    criterion: str
    """What a task head is chosen by on the development set: a measure's name, or "loss"."""
    validate_every: int = 0
    """Steps between two validations; 0: one with each checkpoint."""
    normalize: bool = True
    """LayerNorm on the hidden states before they are summed (eq. 4); SUPERB's own sum has none."""
    epsilon: float = 1e-8
    """Of Adam: what is added to the root of its second moment."""
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
    """By the number of the utterance, as the task wants them: texts, speakers, or `WithSources`."""
    classes: tuple[str, ...] = ()
    """Names of what a task head's outputs stand for."""


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
    bounds: tuple[float, float] | None = None
    """Between which an utterance's stored value is clipped to say how bad it is, for
    `eval/downstream.py --risk`; None: there is no such scale."""

    def badness(self, values: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """From 0, as good as can be, to 1, of a measure that has bounds; NaN where it is NaN."""
        assert self.bounds is not None
        low, high = self.bounds
        share = np.clip((np.asarray(values, np.float64) - low) / (high - low), 0, 1)
        return 1 - share if self.higher_is_better else share

    @property
    def heading(self) -> str:
        """Title and unit."""
        return f"{self.title}, {self.unit}" if self.unit else self.title

    def printed(self, value: float | None, sign: str = "") -> str:
        """A stored value as it is printed; None and NaN are "undefined"."""
        if value is None or math.isnan(value):
            return "undefined"
        return format(self.scale * value, f"{sign}.2f")


LONGEST_SECONDS = 300.0
"""Of an utterance; attention over more would not fit where it should."""


class Task(abc.ABC, Generic[Head]):
    """A downstream task: its corpus, task head, loss and measures, and what the paper says of it.

    A task of one's own is a subclass with the three class attributes that have no value here, and
    with the abstract methods; `--task MODULE:CLASS` takes it (`tests/own_task.py` is one).
    """

    name: ClassVar[str]
    """On command lines, in presets and in run folders."""
    title: ClassVar[str]
    """In reports."""
    measures: ClassVar[dict[str, Measure]]
    """By name; the first is the one to look at."""
    whole: ClassVar[tuple[int, int] | None] = None
    """Utterances of the whole training and test sets, where the paper has figures for them."""
    decoding: str | None = None
    """How texts are found, in results; None: the task has none."""
    decoder: Callable[[Float[np.ndarray, "frames classes"]], str] | None = None
    """From a task head's outputs to a text, where the task has texts; None: its own way."""

    def __init__(self, settings: TaskSettings):
        self.settings = settings

    @abc.abstractmethod
    def open(self, folder: str, part: str) -> Examples:
        """One part of the corpus, "train", "dev" or "test"."""

    @abc.abstractmethod
    def head(self, dim: int, classes: tuple[str, ...], *, rngs: nnx.Rngs) -> Head:
        """A new task head."""

    @abc.abstractmethod
    def targets(
        self, examples: Examples, crops: list[Crop], rows: slice, width: int
    ) -> dict[str, Shaped[np.ndarray, "batch ..."]]:
        """Some rows of a batch's targets, of one width; of an empty crop an empty row."""

    @abc.abstractmethod
    def loss(
        self,
        head: Head,
        features: Features,
        num_frames: Counts,
        targets: Targets,
        key: Key[Array, ""] | None,
    ) -> Float[Array, ""]:
        """Mean over the utterances with a frame; with a key as in training."""

    @abc.abstractmethod
    def outputs(
        self, head: Head, features: Features, num_frames: Counts, targets: Targets
    ) -> Shaped[Array, "batch ..."]:
        """What is predicted, by row."""

    @abc.abstractmethod
    def measure(self, examples: Examples, index: int, output: Output) -> Measured:
        """One utterance's measures; `output` is cut to its valid frames or samples."""

    def measure_beside(
        self, examples: Examples, index: int, output: Output, processes: SideProcesses
    ) -> Callable[[], Measured]:
        """`measure`, begun in other processes where it is much work; what is returned waits for it.

        What is handed to a process is pickled, so that files are read here.
        """
        measured = self.measure(examples, index, output)
        return lambda: measured

    def cut(self, output: Output, num_frames: int, samples: int) -> Output:
        """One row of `outputs` without its padding; nothing to cut where it has no frames."""
        return output[:num_frames] if output.ndim else output

    def unprocessed(self, examples: Examples, index: int) -> Output | None:
        """The input itself as an output, to be measured; None where it has no measures."""
        return None

    def use_lexicon(self, lexicon: str, language_model: str) -> None:
        """Decodes texts with a lexicon.

        Raises:
          InputError: the task has no texts.
        """
        raise InputError(f"{self.name} has no texts, so that a lexicon is of no use; leave it out")


def fingerprint_of(examples: Examples) -> str:
    """A digest of utterances and targets, which must not change within a run."""
    digest = hashlib.sha256(fingerprint(examples.corpus).encode())
    if isinstance(examples.targets, WithSources):
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
        listed = ", ".join(names) or "none"
        raise InputError(f"{what}: one part of the corpus was wanted, {listed} given")
    return names[0]


def part_of(examples: Examples, indices: Int[np.ndarray, " utterances"]) -> Examples:
    """Some of the utterances."""
    targets = examples.targets
    if isinstance(targets, WithSources):
        chosen = targets.part(indices)
    else:
        chosen = [targets[int(index)] for index in indices]
    return examples._replace(corpus=Selection(examples.corpus, indices), targets=chosen)


def usable_lengths(examples: Examples) -> Examples:
    """Without utterances that are longer than `LONGEST_SECONDS`; each is named."""
    longest = LONGEST_SECONDS * audio.SAMPLE_RATE
    for index in np.flatnonzero(examples.corpus.lengths > longest):
        leave_out(f"{examples.corpus.names[index]}: longer than {LONGEST_SECONDS:.0f} s; split it")
    return part_of(examples, np.flatnonzero(examples.corpus.lengths <= longest))
