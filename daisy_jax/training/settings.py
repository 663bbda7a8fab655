"""Options that the training scripts share."""

import dataclasses
from typing import ClassVar, TypeVar

from daisy_jax import parallel
from daisy_jax.accelerator import Accelerator, use_accelerator
from daisy_jax.errors import InputError

Kind = TypeVar("Kind", bound=type)


def own_options_first(kind: Kind) -> Kind:
    """Moves what a dataclass inherits behind its own fields, in --help and in config.json."""
    fields = kind.__dataclass_fields__
    for name in [name for name in fields if name not in kind.__annotations__]:
        fields[name] = fields.pop(name)
    return kind


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

    least: ClassVar[dict[str, float]] = {"seed": 0, "log_every": 1, "steps": 1, "batch_size": 1}
    """The smallest value of each option that has one."""

    def __post_init__(self) -> None:
        for name, value in self.least.items():
            if not getattr(self, name) >= value:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least {value}")


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

    least: ClassVar[dict[str, float]] = {**RunOptions.least, "workers": 0, "save_every": 1}

    def start(self, dtype: str) -> str:
        """Joins the other processes and chooses the device; returns its name."""
        parallel.join_processes(self.processes)  # before JAX looks for devices
        device = use_accelerator(self.accelerator, self.deterministic, dtype=dtype)
        parallel.warn_of_unused_gpus(self.processes)
        return device
