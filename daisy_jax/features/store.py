"""Feature stores: features by utterance, read at random. The format is in `shard_format`."""

import collections
import os
import pathlib
import threading

import numpy as np
from jaxtyping import Int, Shaped
from safetensors import SafetensorError, safe_open

from daisy_jax.data.corpus import Corpus, Selection
from daisy_jax.errors import InputError
from daisy_jax.features.shard_format import (
    INDEX,
    npy_file,
    part_file,
    part_files,
    read_part,
    shard_file,
    shard_files,
)
from daisy_jax.reporting import leave_out
from daisy_jax.whole_files import parse_json, read_array

OPEN_SHARDS = 64
"""That one reader keeps mapped."""


class FeatureStore:
    """A finished store. An element is an utterance; Grain can iterate over it."""

    def __init__(self, folder: str | os.PathLike):
        """Opens one.

        Raises:
          InputError: there is none, or it is not finished, or its shards do not belong together.
        """
        self.folder = pathlib.Path(folder)
        paths = part_files(self.folder)
        if not paths:
            raise InputError(f"{folder}: no feature store there (no {INDEX} with any part)")
        parts = [read_part(path) for path in paths]
        self.source = parts[0].source
        """What the features belong to: model, items, corpus and more."""
        self.rows = [row for part in parts for row in part.rows]
        lacking = [key for key in ("shards", "dim") if not self.source.get(key, "").isdecimal()]
        if lacking or "items" not in self.source:
            raise InputError(f"{paths[0]}: does not say {lacking or 'items'}; make the store again")
        count = int(self.source["shards"])
        if any(part.source != self.source for part in parts) or len(parts) != count:
            raise InputError(
                f"{folder}: {len(parts)} of {count} shards are there, or they are of different "
                "runs; start again what made it, or remove it"
            )
        numbers = [int(path.stem) for path in paths]
        ids = collections.Counter(row.id for row in self.rows)
        if numbers != list(range(count)) or (ids and max(ids.values()) > 1):
            raise InputError(
                f"{folder}: its parts are not 0 to {count - 1}, or an utterance is there twice; "
                "remove the stray parts"
            )
        self.items = parse_json(
            f"{folder}, items", self.source["items"], list[int | str], "make it again"
        )
        """What is stored: of 0 to L, none if there are only entropies; or one of "exit", "pooled",
        "labels" and "units"."""
        self._npy = self.source.get("layout") == "npy"
        for path, part, number in zip(paths, parts, numbers, strict=True):
            used = self.items and not self._npy and any(row.frames for row in part.rows)
            there = shard_file(self.folder, number).is_file()
            if used and not (there and part.has_its_size(self.folder, number)):
                fault = "is cut off" if there else "is missing"
                raise InputError(
                    f"{shard_file(self.folder, number)}: {fault}; remove {path}, and its shard is "
                    "made again"
                )
        self.frames = np.asarray([row.frames for row in self.rows], np.int32)
        self.entropy = np.asarray([row.entropy for row in self.rows if row.frames], np.float32)
        """float32 [readable utterances, L]."""
        self.errors = {row.path: row.error for row in self.rows if row.error is not None}
        """Files that could not be read, and why."""
        self.dim = int(self.source["dim"])
        self._open = threading.local()

    def __reduce__(self) -> tuple[type["FeatureStore"], tuple[pathlib.Path]]:
        # To another process goes the folder and not the open files.
        return FeatureStore, (self.folder,)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, object]:
        """Everything of one utterance: the index's row, and its features if they are stored."""
        row = self.rows[index]
        element: dict[str, object] = row._asdict()
        if self.items and row.frames:
            element["features"] = self.read(index)
        return element

    def read(
        self, index: int, frames: slice = slice(None), items: slice = slice(None)
    ) -> Shaped[np.ndarray, "items frames *dim"]:
        """Features of one utterance, or a part of them.

        float16 [items, frames, dim]; labels and units are int32 [1, frames].

        Raises:
          InputError: they are not there as the index says.
        """
        row = self.rows[index]
        chosen = slice(*items.indices(len(self.items))), slice(*frames.indices(row.frames))
        try:
            if self._npy:
                stored = read_array(npy_file(self.folder, row.id), mmap=True)
                return np.array((stored[None] if len(self.items) == 1 else stored)[chosen])
            return self._shard(row.shard).get_slice(row.id)[chosen]
        except (SafetensorError, OSError, ValueError) as error:
            (file,) = shard_files(self.folder, row.shard, [row], self.source)
            part = part_file(self.folder, row.shard)
            raise InputError(
                f"{file}: {row.id} cannot be read ({error}); remove {part}, and the shard is made "
                "again"
            ) from None

    def _shard(self, number: int) -> safe_open:
        """A shard's file, mapped; each thread has its own."""
        shards: dict[int, safe_open] = self._open.__dict__.setdefault("shards", {})
        if number not in shards:
            if len(shards) >= OPEN_SHARDS:
                shards.pop(next(iter(shards)))
            shards[number] = safe_open(shard_file(self.folder, number), framework="numpy")
        return shards[number]

    def verify(self) -> list[str]:
        """A line for each shard whose bytes are not those that were written."""
        problems = []
        for path in part_files(self.folder):
            try:
                part, number = read_part(path), int(path.stem)
            except InputError as error:
                problems.append(str(error))
                continue
            if not part.is_whole(self.folder, number):
                file = shard_files(self.folder, number, part.rows, part.source)[0]
                problems.append(f"{file}: its bytes have changed; remove it and {path}")
        return problems

    def of(self, corpus: Corpus) -> tuple[Corpus, Int[np.ndarray, " utterances"]]:
        """The readable utterances of a corpus, and the number of each in the store.

        The others are left out.

        Raises:
          InputError: an utterance is not in the store, or of another length.
        """
        numbers = {row.id: number for number, row in enumerate(self.rows)}
        missing = [name for name in corpus.names if name not in numbers]
        if missing:
            raise InputError(
                f"{self.folder}: has nothing of {len(missing)} utterances, the first is "
                f"{missing[0]}; give another folder"
            )
        stored = np.asarray([numbers[name] for name in corpus.names])
        for number, name, length in zip(stored, corpus.names, corpus.lengths, strict=True):
            row = self.rows[number]
            if row.samples != length:
                raise InputError(
                    f"{self.folder}: {name} has another length now; give another folder"
                )
            if row.error is not None:
                leave_out(row.error)
        readable = np.flatnonzero(self.frames[stored] > 0)
        return Selection(corpus, readable), stored[readable]


def _classes(store: FeatureStore) -> int:
    """How many labels there are; of units, which do not say it, as many as were found."""
    said = store.source.get("classes", "")
    if said.isdecimal():
        return int(said)
    if store.items == ["labels"]:
        raise InputError(
            f"{store.folder}: does not say how many classes there are; make the store again"
        )
    readable = np.flatnonzero(store.frames)
    return 1 + max((int(store.read(int(number)).max()) for number in readable), default=-1)


class StoredLabels:
    """Frame labels or units of a corpus' utterances, out of a store."""

    def __init__(self, store: FeatureStore, numbers: Int[np.ndarray, " utterances"]):
        """Of the utterances that have these numbers in the store.

        Raises:
          InputError: the store holds something else.
        """
        if store.items not in (["labels"], ["units"]):
            raise InputError(
                f"{store.folder}: holds {', '.join(map(str, store.items)) or 'entropies'} and no "
                "labels; give a folder of train/labels.py, or of daisy-jax extract --store units"
            )
        self.num_classes = _classes(store)
        self._store, self._numbers = store, numbers

    def part(self, indices: Int[np.ndarray, " chosen"]) -> "StoredLabels":
        """Of some of the utterances."""
        return StoredLabels(self._store, self._numbers[indices])

    def read(self, index: int, frames: slice) -> Int[np.ndarray, " frames"]:
        """As for all `FrameLabels`."""
        return self._store.read(int(self._numbers[index]), frames)[0]
