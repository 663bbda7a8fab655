"""Feature stores: features by utterance, read at random. The format is in `shard_format`."""

import json
import os
import pathlib
import threading
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from daisy_jax.data.corpus import Corpus, Selection
from daisy_jax.errors import InputError
from daisy_jax.features.shard_format import (
    INDEX,
    npy_file,
    part_file,
    read_part,
    shard_file,
    shard_files,
)
from daisy_jax.reporting import leave_out
from daisy_jax.whole_files import files_digest

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
        parts = sorted((self.folder / INDEX).glob("[0-9]*.parquet"))
        if not parts:
            raise InputError(f"{folder}: no feature store there (no {INDEX} with any part)")
        read = [read_part(part) for part in parts]
        sources = [{k: v for k, v in source.items() if k != "sha256"} for _, source in read]
        self.source = sources[0]
        self.rows = [row for rows, _ in read for row in rows]
        count = int(self.source["shards"])
        if any(source != self.source for source in sources) or len(parts) != count:
            raise InputError(
                f"{folder}: {len(parts)} of {count} shards are there, or they are of different "
                "runs; start again what made it, or remove it"
            )
        self.items: list[int | str] = json.loads(self.source["items"])
        """What is stored: of 0 to L, none if there are only entropies; or one of "exit", "pooled",
        "labels" and "units"."""
        self._npy = self.source.get("layout") == "npy"
        lacking = [
            shard_file(self.folder, number)
            for number in {row.shard for row in self.rows if row.frames}
            if self.items and not self._npy and not shard_file(self.folder, number).is_file()
        ]
        if lacking:
            raise InputError(f"{lacking[0]}: is missing; remove its part of the index, too")
        self.frames = np.asarray([row.frames for row in self.rows], np.int32)
        self.entropy = np.asarray([row.entropy for row in self.rows if row.frames], np.float32)
        """float32 [readable utterances, L]."""
        self.errors = {row.path: row.error for row in self.rows if row.error is not None}
        """Files that could not be read, and why."""
        self.dim = int(self.source["dim"])
        self._open = threading.local()

    def __reduce__(self) -> tuple:
        # To another process goes the folder and not the open files.
        return FeatureStore, (self.folder,)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Everything of one utterance: the index's row, and its features if they are stored."""
        row = self.rows[index]
        element: dict[str, Any] = row._asdict()
        if self.items and row.frames:
            element["features"] = self.read(index)
        return element

    def read(
        self, index: int, frames: slice = slice(None), items: slice = slice(None)
    ) -> np.ndarray:
        """Features of one utterance, or a part of them.

        float16 [items, frames, dim]; labels and units are int32 [1, frames].

        Raises:
          InputError: they are not there as the index says.
        """
        row = self.rows[index]
        chosen = slice(*items.indices(len(self.items))), slice(*frames.indices(row.frames))
        try:
            if self._npy:
                stored = np.load(npy_file(self.folder, row.id), mmap_mode="r")
                return np.array((stored[None] if len(self.items) == 1 else stored)[chosen])
            return self._shard(row.shard).get_slice(row.id)[chosen]
        except (SafetensorError, OSError, ValueError) as error:
            (file,) = shard_files(self.folder, row.shard, [row], self.source)
            part = part_file(self.folder, row.shard)
            raise InputError(
                f"{file}: {row.id} cannot be read ({error}); remove {part}, and the shard is made "
                "again"
            ) from None

    def _shard(self, number: int) -> Any:
        shards: dict[int, Any] = self._open.__dict__.setdefault("shards", {})
        if number not in shards:
            if len(shards) >= OPEN_SHARDS:
                shards.pop(next(iter(shards)))
            shards[number] = safe_open(shard_file(self.folder, number), framework="numpy")
        return shards[number]

    def verify(self) -> list[str]:
        """A line for each shard whose bytes are not those that were written."""
        problems = []
        for part in sorted((self.folder / INDEX).glob("[0-9]*.parquet")):
            rows, kept = read_part(part)
            digest, files = kept.get("sha256"), shard_files(self.folder, int(part.stem), rows, kept)
            if digest is not None and files_digest(files) != digest:
                problems.append(f"{files[0]}: its bytes have changed; remove it and {part}")
        return problems

    def of(self, corpus: Corpus) -> tuple[Corpus, np.ndarray]:
        """The readable utterances of a corpus, and the place of each in the store.

        Raises:
          InputError: an utterance is not in the store, or of another length.
        """
        places = {row.id: place for place, row in enumerate(self.rows)}
        missing = [name for name in corpus.names if name not in places]
        if missing:
            raise InputError(
                f"{self.folder}: has nothing of {len(missing)} utterances, the first is "
                f"{missing[0]}; give another folder"
            )
        found = np.asarray([places[name] for name in corpus.names])
        samples = np.asarray([self.rows[place].samples for place in found])
        if np.any(samples != corpus.lengths):
            name = corpus.names[int(np.argmax(samples != corpus.lengths))]
            raise InputError(f"{self.folder}: {name} has another length now; give another folder")
        for place in found:
            if self.rows[place].error is not None:
                leave_out(self.rows[place].error)
        readable = np.flatnonzero(self.frames[found] > 0)
        return Selection(corpus, readable), found[readable]


class StoredLabels:
    """Frame labels of a corpus' utterances, out of a store."""

    def __init__(self, store: FeatureStore, places: np.ndarray):
        """Of the utterances at `places` of the store, int [utterances].

        Raises:
          InputError: the store holds something else.
        """
        if store.items != ["labels"]:
            raise InputError(
                f"{store.folder}: holds {', '.join(map(str, store.items)) or 'entropies'} and no "
                "labels; give a folder that train/labels.py made"
            )
        self.num_classes = int(store.source["classes"])
        self._store, self._places = store, places

    def part(self, indices: np.ndarray) -> "StoredLabels":
        """Of some of the utterances."""
        return StoredLabels(self._store, self._places[indices])

    def read(self, index: int, frames: slice) -> np.ndarray:
        """The labels of one utterance's `frames`, int32 [frames]."""
        return self._store.read(int(self._places[index]), frames)[0]
