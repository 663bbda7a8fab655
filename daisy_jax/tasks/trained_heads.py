"""Folders of trained task heads: `model.safetensors`, `config.json` and `exits.json`."""

import dataclasses
import pathlib
from typing import Any, NamedTuple, NotRequired, TypedDict

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from daisy_jax.checkpoints import (
    CONFIG,
    check_numbers,
    fill,
    named_leaves,
)
from daisy_jax.errors import InputError
from daisy_jax.exits import ExitRule
from daisy_jax.features.extractor import model_digest
from daisy_jax.model.config import MOST
from daisy_jax.model.hubert import Hubert
from daisy_jax.tasks.presets import make_task, settings_of, task_reference
from daisy_jax.tasks.task import Task
from daisy_jax.tasks.training import Params, new_params
from daisy_jax.whole_files import TENSORS, parse_json, read_folder, write_folder

FORMAT = "daisy_jax_head/1"
EXITS, EXITS_FORMAT = "exits.json", "daisy_jax_exits/1"


@dataclasses.dataclass(frozen=True)
class _Rule:
    """How config.json says where utterances leave."""

    name: str
    threshold: float | None
    allowed: list[bool]


@dataclasses.dataclass(frozen=True)
class _Config:
    """The content of config.json; its fields are those of `TrainedHead`."""

    task: str
    preset: str
    settings: dict[str, Any]
    classes: tuple[str, ...]
    dim: int
    upstream: str
    dataset: str
    mean_entropy: list[float]
    rule: _Rule

    def __post_init__(self) -> None:
        if not 1 <= self.dim <= MOST:
            raise ValueError(f"dim is {self.dim}; wanted 1 to {MOST}")
        if not self.rule.allowed or len(self.mean_entropy) not in (0, len(self.rule.allowed)):
            raise ValueError("rule.allowed and mean_entropy are of different models")


class ExitCounts(TypedDict):
    """The content of exits.json: how many utterances of the training set left where.

    Paper: section 3.2, r_k, mu, k_min and k_max.
    """

    format: str
    exit_counts: list[int]
    """By layer, forced exits included."""
    forced_counts: list[int]
    """By layer, of the utterances that left because no threshold was met."""
    mean: float
    """Exit layer."""
    min: int
    max: int
    threshold: NotRequired[float | None]
    """Nats."""
    ratio: NotRequired[float | None]
    """Of eq. (3)."""
    dataset: NotRequired[str]


class TrainedHead(NamedTuple):
    """A task head, and all that evaluation has to know of its training."""

    task: Task
    params: Params
    dim: int
    """Width of the features."""
    preset: str
    classes: tuple[str, ...]
    trunk: str
    """Digest of the model it was trained on."""
    dataset: str
    """What it was trained on, and what eq. (3) was computed of."""
    mean_entropy: Float[np.ndarray, " layers"]
    """float32, nats, over the training set; empty without branches."""
    rule: ExitRule
    """Where utterances left in training."""
    exits: ExitCounts
    """Where utterances of the training set left."""


def count_exits(
    exit_layer: Int[np.ndarray, " utterances"],
    forced: Bool[np.ndarray, " utterances"],
    num_layers: int,
) -> ExitCounts:
    """Counts where utterances of a training set left, from layer 1 on, and who was forced out."""
    exit_counts, forced_counts = (
        np.bincount(layers, minlength=num_layers + 1)[1:].tolist()
        for layers in (exit_layer, exit_layer[forced])
    )
    return {
        "format": EXITS_FORMAT,
        "exit_counts": exit_counts,
        "forced_counts": forced_counts,
        "mean": float(np.mean(exit_layer)),
        "min": int(np.min(exit_layer)),
        "max": int(np.max(exit_layer)),
    }


def save_head(folder: pathlib.Path, head: TrainedHead) -> None:
    """Writes a task head's folder, all of it or nothing.

    Raises:
      OSError: it cannot be written; a task head that was there before is kept.
    """
    tensors = {name: np.ascontiguousarray(leaf) for name, leaf in named_leaves(head.params).items()}
    config = {
        "format": FORMAT,
        "task": task_reference(head.task),
        "preset": head.preset,
        "settings": dataclasses.asdict(head.task.settings),
        "classes": head.classes,
        "dim": head.dim,
        "upstream": head.trunk,
        "dataset": head.dataset,
        "mean_entropy": head.mean_entropy.tolist(),
        "rule": {
            "name": head.rule.name,
            "threshold": head.rule.threshold,
            "allowed": head.rule.allowed.tolist(),
        },
    }
    write_folder(folder, tensors, {CONFIG: config, EXITS: head.exits})


def require_trunk(head: TrainedHead, trunk: Hubert, wrong: str) -> None:
    """Raises an InputError, with the text `wrong`, if a head was trained on another trunk."""
    if head.trunk != model_digest(trunk):
        raise InputError(wrong)


def load_head(path: str | pathlib.Path) -> TrainedHead:
    """Reads a task head's folder.

    Raises:
      InputError: it is none, or of another version, or cut off.
    """
    folder = pathlib.Path(path)
    for name in (CONFIG, TENSORS, EXITS):
        if not (folder / name).is_file():
            raise InputError(
                f"{folder}: no {name} there; give the head of a train/downstream.py run"
            )
    remedy = "train the head again"
    tensors, texts = read_folder(folder, (CONFIG, EXITS))
    config = parse_json(str(folder / CONFIG), texts[CONFIG], _Config, remedy, FORMAT)
    exits = parse_json(str(folder / EXITS), texts[EXITS], ExitCounts, remedy, EXITS_FORMAT)
    settings = settings_of(config.settings, str(folder / CONFIG))
    try:
        task = make_task(config.task, settings)
    except InputError as error:
        raise InputError(f"{folder / CONFIG}: {error}") from None
    layers = len(config.rule.allowed)
    if {len(exits["exit_counts"]), len(exits["forced_counts"])} != {layers}:
        raise InputError(f"{folder / EXITS}: counts other layers than {CONFIG} has; {remedy}")
    try:
        shapes = jax.eval_shape(lambda: new_params(task, config.dim, layers, config.classes, 0))
    except Exception as error:  # of flax, of JAX, or of a task of somebody's own
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{folder / CONFIG}: no task head has these settings ({reason}); {remedy}"
        ) from None
    try:
        check_numbers(tensors)
        params = fill(shapes, tensors)
    except InputError as error:
        raise InputError(f"{folder / TENSORS}: {error}") from None
    return TrainedHead(
        task,
        params,
        config.dim,
        config.preset,
        config.classes,
        config.upstream,
        config.dataset,
        np.asarray(config.mean_entropy, np.float32),
        ExitRule(config.rule.name, config.rule.threshold, np.asarray(config.rule.allowed)),
        exits,
    )
