"""Options that the training scripts share."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator
from typing import ClassVar, Literal, TypedDict, TypeVar

from daisy_jax import audio, parallel
from daisy_jax.accelerator import Accelerator, use_accelerator
from daisy_jax.data.batches import Augmentation
from daisy_jax.data.corpus import open_corpus
from daisy_jax.errors import InputError
from daisy_jax.reporting import strictly
from daisy_jax.whole_files import read_json

Kind = TypeVar("Kind", bound=type)


def own_options_first(kind: Kind) -> Kind:
    """Moves what a dataclass inherits behind its own fields, in --help and in config.json."""
    fields = kind.__dataclass_fields__
    own = [name for name in kind.__annotations__ if name in fields]
    for name in [*own, *(name for name in fields if name not in own)]:
        fields[name] = fields.pop(name)
    return kind


class _Decided(TypedDict, total=False):
    """What a run's device decides, in its config.json."""

    cache: Literal["layers", "entropies"]
    dtype: Literal["float32", "bfloat16", "float16"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Of every run in a run folder."""

    seed: int = 0
    """Of initial weights, batches and everything else that is drawn."""
    log_every: int = 50
    """Steps between two lines of metrics.jsonl."""
    resume: bool = False
    """Continue the run in the output folder."""
    accelerator: Accelerator = "auto"
    """Where to compute."""

    least: ClassVar[dict[str, float]] = {
        **dict.fromkeys(("seed", "learning_rate", "clip", "workers", "validate_every"), 0),
        **dict.fromkeys(("log_every", "steps", "batch_size", "save_every"), 1),
        "crop_seconds": 0.025,
    }
    """The smallest value of each option that has one."""

    def __post_init__(self) -> None:
        for name, least in self.least.items():
            if hasattr(self, name) and not getattr(self, name) >= least:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least {least}")

    def choose_device(self, dtype: str) -> str:
        """The name of the device that the run computes on, in numbers of this type."""
        return use_accelerator(self.accelerator, dtype=dtype)

    @contextlib.contextmanager
    def started(self, dtype: str, strict: bool) -> Iterator[str]:
        """Chooses the device, and yields its name to a block that may be `strictly`."""
        device = self.choose_device(dtype)
        with strictly(strict):
            yield device


Options = TypeVar("Options", bound=RunOptions)


def as_begun(config: Options, folder: str) -> Options:
    """Options; of a run that goes on with what its first device decided in the place of "auto"."""
    path = pathlib.Path(folder, "config.json")
    if not config.resume or not path.is_file():
        return config
    begun = read_json(path, _Decided, "give another --output")
    left_open = {
        name: value for name, value in begun.items() if getattr(config, name, "") == "auto"
    }
    return dataclasses.replace(config, **left_open)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeechOptions(RunOptions):
    """Of a run on crops of speech; its script says how many."""

    noise: str = ""
    """Noise recordings, mixed into some of the crops; empty: none."""
    noise_probability: float = 0.5
    """Share of the crops that get noise."""
    snr_range: tuple[float, float] = (0.0, 20.0)
    """Signal-to-noise ratio of those crops, dB, uniform."""
    steps: int
    """Optimizer steps."""
    batch_size: int
    """Crops a step."""
    crop_seconds: float
    """Longest crop."""
    learning_rate: float
    """Peak of Adam's learning rate; linear warm-up, then linear decay to 0."""
    weight_decay: float = 0.01
    """Decoupled weight decay (HuBERT)."""
    save_every: int
    """Steps between two checkpoints, and between two validations if there are some."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.snr_range[0] > self.snr_range[1]:
            raise InputError(f"snr_range is {self.snr_range}; give the lower ratio first")

    @property
    def crop_samples(self) -> int:
        """The longest crop, at 16 kHz."""
        return round(self.crop_seconds * audio.SAMPLE_RATE)

    def augmentation(self) -> Augmentation:
        """What is done to crops.

        Raises:
          InputError: there are no such noise recordings.
        """
        noises = open_corpus(self.noise) if self.noise else None
        return Augmentation(noises, self.noise_probability, self.snr_range)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistributedOptions(RunOptions):
    """Of a run on any number of devices, in any number of processes."""

    strict: bool = False
    """End at the first file that cannot be read, instead of leaving it out."""
    workers: int = 0
    """Processes that read and decode; 0: threads."""
    tensorboard: bool = False
    """Write metrics for TensorBoard too, into OUTPUT/events."""
    deterministic: bool = False
    """On a GPU, give the same numbers in every run, at some cost; a CPU always does."""
    processes: str = ""
    """To train in several processes, start this command in each: auto under Slurm, MPI, Kubernetes
    and on TPU pods, or HOST:PORT,COUNT,INDEX with process 0's address. With auto each task of Slurm
    or Open MPI takes one GPU: start as many on each node as it has GPUs."""

    def choose_device(self, dtype: str) -> str:
        """Joins the other processes first."""
        parallel.join_processes(self.processes)  # before JAX looks for devices
        device = use_accelerator(self.accelerator, self.deterministic, dtype=dtype)
        parallel.warn_of_unused_gpus(self.processes)
        return device
