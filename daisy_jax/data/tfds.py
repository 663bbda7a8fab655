"""Data sets prepared by tensorflow-datasets, read without TensorFlow.

Such a folder holds `dataset_info.json`, `features.json` and ArrayRecord files of tf.Examples.
TensorFlow is needed where `librispeech` is made, not where it is read.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from daisy_jax import audio
from daisy_jax.data.durations import keep, recall
from daisy_jax.errors import InputError
from daisy_jax.reporting import followed

INFO = "dataset_info.json"


def is_tfds_folder(folder: pathlib.Path) -> bool:
    """Whether tensorflow-datasets made the folder."""
    return (folder / INFO).is_file() and (folder / "features.json").is_file()


def spelt(split: str) -> str:
    """A split's name without what tfds leaves out: it has "train_clean100" for train-clean-100."""
    return split.replace("_", "").replace("-", "")


def dataset_name(folder: pathlib.Path) -> str:
    """A folder's data set, such as "librispeech"; the folder's own name is a version."""
    return json.loads((folder / INFO).read_text(encoding="utf-8"))["name"]


def split_names(folder: pathlib.Path) -> list[str]:
    """The `spelt` names of a folder's splits."""
    info = json.loads((folder / INFO).read_text(encoding="utf-8"))
    return [spelt(split["name"]) for split in info["splits"]]


class TfdsCorpus:
    """Utterances of some splits; the feature `speech` holds 16-bit samples at 16 kHz.

    Utterances too short for a single frame are left out.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        splits: Sequence[str] = (),
    ):
        from array_record.python.array_record_data_source import ArrayRecordDataSource
        from tensorflow_datasets import features

        shards = _shards(folder)
        by_name = {spelt(split): files for split, files in shards.items()}
        for split in splits:
            if spelt(split) not in by_name:
                raise InputError(f"{folder}: no split {split}; found {', '.join(sorted(shards))}")
        chosen = [shard for split in splits or sorted(shards) for shard in by_name[spelt(split)]]
        files, counts = [file for file, _ in chosen], [count for _, count in chosen]
        self._records = ArrayRecordDataSource([str(file) for file in files])
        # As `librispeech` stores them; its own Audio feature would need TensorFlow.
        self._features = features.FeaturesDict(
            {"speech": features.Tensor(shape=(None,), dtype=np.int16), "id": features.Text()}
        )
        names, lengths = self._measure(folder, files, counts)
        usable = np.flatnonzero(lengths >= audio.FRAME_WINDOW)
        if not len(usable):
            raise InputError(f"{folder}: no utterance of 25 ms or more in its {len(names)}")
        self._positions = usable
        self.names = [names[position] for position in usable]
        self.lengths = lengths[usable]

    def read(self, index: int, start: int, samples: int) -> np.ndarray:
        """As for every `Corpus`."""
        speech = self._example(int(self._positions[index]))["speech"]
        return speech[start : start + samples].astype(np.float32) / audio.FULL_SCALE

    def _example(self, position: int) -> Any:
        """A dictionary of the record's `speech` and `id`."""
        try:
            return self._features.deserialize_example_np(self._records[position])
        except (KeyError, ValueError) as error:
            raise InputError(
                f"record {position} holds no 16-bit speech with an id ({error}); this reader takes "
                "tensorflow-datasets' librispeech"
            ) from None

    def _measure(
        self,
        folder: pathlib.Path,
        files: list[pathlib.Path],
        counts: list[int],
    ) -> tuple[list[str], np.ndarray]:
        """Identifiers and lengths of the records, of which each file has so many; kept by file."""
        known = recall(folder).get("shards", {})
        found, position, new = [], 0, False
        for file, count in zip(files, counts, strict=True):
            status = [count, file.stat().st_size, file.stat().st_mtime_ns]
            shard = known.get(file.name)
            if shard is None or shard["status"] != status:
                examples = [
                    self._example(position + n) for n in followed(range(count), "measuring")
                ]
                names = [example["id"].decode() for example in examples]
                lengths = [len(example["speech"]) for example in examples]
                shard = {"status": status, "names": names, "lengths": lengths}
                new = True
            known[file.name] = shard
            found.append(shard)
            position += count
        if new:
            keep(folder, {"shards": known})
        names = [name for shard in found for name in shard["names"]]
        return names, np.asarray([n for shard in found for n in shard["lengths"]], np.int64)


def _shards(folder: pathlib.Path) -> dict[str, list[tuple[pathlib.Path, int]]]:
    """The files of each split, and how many records each has."""
    info = json.loads((folder / INFO).read_text(encoding="utf-8"))
    if info.get("fileFormat") != "array_record":
        raise InputError(
            f"{folder}: records are {info.get('fileFormat')!r}, which cannot be read by number; "
            "prepare the data set with file_format='array_record'"
        )
    found = {}
    for split in info["splits"]:
        files = sorted(folder.glob(f"*-{split['name']}.array_record-*"))
        if len(files) != len(split["shardLengths"]):
            raise InputError(
                f"{folder}: {len(files)} of {len(split['shardLengths'])} files of split "
                f"{split['name']} are there; copy the folder again"
            )
        counts = [int(count) for count in split["shardLengths"]]
        found[split["name"]] = list(zip(files, counts, strict=True))
    return found
