"""A task's data with its features, made where they are not there yet."""

import pathlib

import numpy as np
from jaxtyping import Bool, Int, PyTree, Shaped

from daisy_jax import audio, parallel
from daisy_jax.data.batches import Crop, read_crops
from daisy_jax.data.corpus import corpus_name
from daisy_jax.errors import InputError
from daisy_jax.features import contents
from daisy_jax.features.extract import Extractor, extract_corpus, store_digest
from daisy_jax.features.extractor import model_source
from daisy_jax.features.shard_format import INDEX
from daisy_jax.features.store import FeatureStore
from daisy_jax.model.hubert import Hubert
from daisy_jax.tasks.task import Examples, Task, part_of, usable_lengths

Exits = tuple[Int[np.ndarray, " utterances"], Bool[np.ndarray, " utterances"]]
"""Where utterances leave, from 1, and which of them are forced out."""


class TaskData:
    """One part of a task's corpus with its features, stored or to be computed."""

    def __init__(self, task: Task, examples: Examples, store: FeatureStore, trunk: Hubert | None):
        """With `trunk`, features are computed when they are needed, else taken from the store.

        Utterances that could not be read when the store was made are left out.
        """
        corpus, self._stored = store.of(examples.corpus)
        numbers = {name: number for number, name in enumerate(examples.corpus.names)}
        indices = np.asarray([numbers[name] for name in corpus.names], np.int64)
        self.task, self.examples = task, part_of(examples, indices)
        self.lengths = self.examples.corpus.lengths
        rows = [store.rows[number] for number in self._stored]
        self.entropy = np.asarray([row.entropy for row in rows], np.float32)
        """float32 [utterances, L], nats."""
        self.agreement = np.asarray([row.agreement for row in rows], np.float32)
        """float32 [utterances, L], share of the frames that are labelled as in the end."""
        self.trunk, self._store = trunk, store

    def read(
        self, crops: list[Crop], width: int, exits: Exits, rows: slice
    ) -> dict[str, PyTree[Shaped[np.ndarray, "rows ..."]]]:
        """Some rows of a batch: features or waveforms, and targets.

        Args:
          crops: all rows.
          width: of the batch, samples.
          exits: of all utterances.
          rows: those that are wanted.
        """
        mine = crops[rows]
        batch: dict[str, PyTree[np.ndarray]] = {}
        if self.trunk is None:
            frames = int(audio.frame_count(width))
            count = np.asarray([audio.frame_count(crop.samples) for crop in mine], np.int32)
            shape = (len(mine), len(self._store.items), frames, self._store.dim)
            batch["items"] = np.zeros(shape, np.float16)
            for row, crop in enumerate(mine):
                if crop.samples:
                    used = slice(0, int(exits[0][crop.index]) + 1)  # what lies behind weighs 0
                    features = self._store.read(int(self._stored[crop.index]), crop.frames, used)
                    batch["items"][row, used, : count[row]] = features
            batch["num_frames"] = count
            there = np.asarray([crop.samples > 0 for crop in mine], bool)
            indices = [crop.index for crop in mine]
            batch["exit_layer"] = np.where(there, exits[0][indices], 0).astype(np.int32)
            batch["forced"] = there & exits[1][indices]
        else:
            batch["waveform"], batch["lengths"] = read_crops(
                self.examples.corpus, crops, width, rows=rows
            )
        return batch | {"targets": self.task.targets(self.examples, crops, rows, width)}


def open_examples(task: Task, part: str, folder: str) -> Examples:
    """One part of a task's corpus, "train", "dev" or "test".

    Raises:
      InputError: a part of the corpus is missing, or not as it should be.
    """
    return usable_lengths(task.open(folder, part))


def with_features(
    task: Task,
    part: str,
    examples: Examples,
    folder: str,
    trunk: Hubert,
    features: pathlib.Path,
    *,
    live: bool,
) -> TaskData:
    """Adds features, which are made where they are not there yet.

    Args:
      task: the task.
      part: what `examples` are of it.
      examples: from `open_examples`.
      folder: the corpus.
      trunk: the model, with its branches if it has any.
      features: where stores are; this one's folder is named after corpus, part and model. Or a
        finished store of all parts, from `daisy-jax extract --store layers`.
      live: whether features are computed when they are needed; entropies alone are stored then.

    Raises:
      InputError: the store is not as it should be, or the disk has no room for it.
      OSError: the store cannot be written.
    """
    if (features / INDEX).is_dir():
        store = FeatureStore(features)
        require_layers_of(store, trunk, all_layers=not live)
    else:
        # Another model, type or selection of utterances has a store of its own.
        chosen = "-".join(getattr(task.settings, part)).replace("/", "-")
        digest = store_digest(trunk, examples.corpus)
        name = f"{corpus_name(folder)}-{part}-{chosen}-{digest}"
        items = () if live else tuple(range(trunk.config.num_layers + 1))
        store = extract_corpus(
            features / (f"{name}-entropies" if live else name),
            Extractor(trunk, contents.layers(items)),
            examples.corpus,
            folder,
            no_room="make room, give another folder (--features), or train with entropies alone "
            "(train/downstream.py --cache=entropies), which runs the trunk in each step",
        )
    return TaskData(task, examples, store, parallel.replicate(trunk) if live else None)


def require_layers_of(store: FeatureStore, trunk: Hubert, *, all_layers: bool) -> None:
    """Refuses a store of another model or without layers, or one that lacks an item of eq. (4)."""
    source = model_source(trunk)
    wrong = [name for name, value in source.items() if store.source.get(name) != value]
    if wrong or not all(isinstance(item, int) for item in store.items):
        held = f"{', '.join(wrong)} of another model" if wrong else ", ".join(map(str, store.items))
        raise InputError(
            f"{store.folder}: holds {held}; give a store that daisy-jax extract --store layers "
            "made with this model"
        )
    lacking = sorted(set(range(trunk.config.num_layers + 1)) - set(store.items))
    if lacking and all_layers:
        raise InputError(
            f"{store.folder}: does not hold the layers {', '.join(map(str, lacking))}; store all "
            "of them (daisy-jax extract --store layers without --layers), or compute the features "
            "in each step (--cache=entropies)"
        )
