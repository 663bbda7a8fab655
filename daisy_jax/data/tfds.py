"""Data sets prepared by tensorflow-datasets, read without TensorFlow.

Such a folder holds `dataset_info.json`, `features.json` and ArrayRecord files of tf.Examples.
TensorFlow is needed where `librispeech` is made, not where it is read.
"""

import pathlib
from collections.abc import Sequence
from typing import NotRequired, TypedDict, cast

import numpy as np
from jaxtyping import Float, Int

from daisy_jax import audio
from daisy_jax.data.durations import Records, keep, recall
from daisy_jax.errors import InputError
from daisy_jax.reporting import followed
from daisy_jax.whole_files import read_json

INFO = "dataset_info.json"


class _Split(TypedDict):
    name: str
    shardLengths: list[str]


class _Info(TypedDict):
    """What is of use here in `dataset_info.json`."""

    name: str
    fileFormat: NotRequired[str]
    splits: list[_Split]


class _Example(TypedDict):
    """A record."""

    speech: np.ndarray
    """int16 [samples]."""
    id: bytes


def is_tfds_folder(folder: pathlib.Path) -> bool:
    """Whether tensorflow-datasets made the folder."""
    return (folder / INFO).is_file() and (folder / "features.json").is_file()


def spelt(split: str) -> str:
    """A split's name without what tfds leaves out: it has "train_clean100" for train-clean-100."""
    return split.replace("_", "").replace("-", "")


def dataset_name(folder: pathlib.Path) -> str:
    """A folder's data set, such as "librispeech"; the folder's own name is a version."""
    return _read_info(folder)["name"]


def split_names(folder: pathlib.Path) -> list[str]:
    """The `spelt` names of a folder's splits."""
    return [spelt(split["name"]) for split in _read_info(folder)["splits"]]


def _read_info(folder: pathlib.Path) -> _Info:
    return read_json(folder / INFO, _Info, "prepare the data set with tensorflow-datasets again")


class TfdsCorpus:
    """Utterances of some splits; the feature `speech` holds 16-bit samples at 16 kHz.

    Utterances too short for a single frame are left out.
    """

    def __init__(self, folder: pathlib.Path, splits: Sequence[str] = ()):
        from array_record.python.array_record_data_source import ArrayRecordDataSource
        from tensorflow_datasets import features

        shards = _shards(folder)
        by_name = {spelt(split): files for split, files in shards.items()}
        for split in splits:
            if spelt(split) not in by_name:
                raise InputError(f"{folder}: no split {split}; found {', '.join(sorted(shards))}")
        chosen = [shard for split in splits or sorted(shards) for shard in by_name[spelt(split)]]
        self._source = ArrayRecordDataSource([str(file) for file, _ in chosen])
        # As `librispeech` stores them; its own Audio feature would need TensorFlow.
        self._features = features.FeaturesDict(
            {"speech": features.Tensor(shape=(None,), dtype=np.int16), "id": features.Text()}
        )
        records = self._measure(folder, chosen)
        names = [name for shard in records for name in shard["names"]]
        lengths = np.asarray([length for shard in records for length in shard["lengths"]], np.int64)
        self._positions = np.flatnonzero(lengths >= audio.FRAME_WINDOW)
        if not len(self._positions):
            raise InputError(f"{folder}: no utterance of 25 ms or more in its {len(names)}")
        self.names = [names[position] for position in self._positions]
        self.lengths: Int[np.ndarray, " utterances"] = lengths[self._positions]

    def read(self, index: int, start: int, samples: int) -> Float[np.ndarray, " samples"]:
        """As for every `Corpus`."""
        speech = self._example(int(self._positions[index]))["speech"]
        return speech[start : start + samples].astype(np.float32) / audio.FULL_SCALE

    def _example(self, position: int) -> _Example:
        try:
            return cast(_Example, self._features.deserialize_example_np(self._source[position]))
        except (KeyError, ValueError) as error:
            raise InputError(
                f"record {position} holds no 16-bit speech with an id ({error}); this reader takes "
                "tensorflow-datasets' librispeech"
            ) from None

    def _measure(
        self, folder: pathlib.Path, shards: list[tuple[pathlib.Path, int]]
    ) -> list[Records]:
        """Identifiers and lengths of the records of each file, remembered by file."""
        remembered = recall(folder).get("shards", {})
        position, changed = 0, False
        for file, count in shards:
            status = [count, file.stat().st_size, file.stat().st_mtime_ns]
            if file.name not in remembered or remembered[file.name]["status"] != status:
                numbers = range(position, position + count)
                examples = [self._example(number) for number in followed(numbers, "measuring")]
                names = [example["id"].decode() for example in examples]
                lengths = [len(example["speech"]) for example in examples]
                remembered[file.name] = {"status": status, "names": names, "lengths": lengths}
                changed = True
            position += count
        if changed:
            keep(folder, {"shards": remembered})
        return [remembered[file.name] for file, _ in shards]


def _shards(folder: pathlib.Path) -> dict[str, list[tuple[pathlib.Path, int]]]:
    """The files of each split, and how many records each has."""
    info = _read_info(folder)
    if info.get("fileFormat") != "array_record":
        raise InputError(
            f"{folder}: records are {info.get('fileFormat')!r}, which cannot be read by number; "
            "prepare the data set with file_format='array_record'"
        )
    shards = {}
    for split in info["splits"]:
        files = sorted(folder.glob(f"*-{split['name']}.array_record-*"))
        if len(files) != len(split["shardLengths"]):
            raise InputError(
                f"{folder}: {len(files)} of {len(split['shardLengths'])} files of split "
                f"{split['name']} are there; copy the folder again"
            )
        shards[split["name"]] = list(zip(files, map(int, split["shardLengths"]), strict=True))
    return shards
