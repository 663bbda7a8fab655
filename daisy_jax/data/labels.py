"""Frame labels by utterance: of one run, or stored in a folder for many.

A label folder holds `labels.uint16`, the labels of all utterances one after the other, and
`index.json` with the utterances' names and frame counts. `train/labels.py` writes it, as another
program may. 65535 stands for a frame that has not been labelled yet, 65534 for one that cannot be.
"""

import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from daisy_jax import audio
from daisy_jax.data.corpus import Corpus, Selection
from daisy_jax.errors import InputError
from daisy_jax.whole_files import read_json

FORMAT = "daisy_jax_labels/1"
LABELS, INDEX = "labels.uint16", "index.json"
UNLABELLED, UNREADABLE = 0xFFFF, 0xFFFE


class FrameLabels:
    """Labels of a corpus' frames."""

    def __init__(self, labels: np.ndarray, starts: np.ndarray, num_classes: int):
        """Of int [frames]; an utterance's labels begin at its entry of `starts`, [utterances]."""
        self.num_classes = num_classes
        self._labels = labels
        self._starts = starts

    def __reduce__(self) -> tuple:
        # To another process goes the file's name and not its content.
        labels: Any = self._labels
        if isinstance(labels, np.memmap):
            labels = str(labels.filename)
        return _labels_of, (labels, self._starts, self.num_classes)

    def part(self, indices: np.ndarray) -> "FrameLabels":
        """Of some of the utterances."""
        return FrameLabels(self._labels, self._starts[indices], self.num_classes)

    def read(self, index: int, frames: slice) -> np.ndarray:
        """The labels of one utterance's `frames`, int32 [frames]."""
        begin = self._starts[index]
        return self._labels[begin + frames.start : begin + frames.stop].astype(np.int32)


def _labels_of(labels: Any, starts: np.ndarray, num_classes: int) -> FrameLabels:
    if isinstance(labels, str):
        labels = np.memmap(labels, "<u2", "r")
    return FrameLabels(labels, starts, num_classes)


def labels_in_order(corpus: Corpus, labels: np.ndarray, num_classes: int) -> FrameLabels:
    """Labels int [all frames] that follow the corpus, utterance after utterance."""
    counts = audio.frame_count(corpus.lengths)
    if counts.sum() != len(labels):
        raise ValueError(f"{len(labels)} labels for {counts.sum()} frames")
    return FrameLabels(labels, np.cumsum(counts) - counts, num_classes)


class LabelFolder:
    """A label folder, to be filled or read."""

    def __init__(self, folder: str | os.PathLike):
        """Opens one.

        Raises:
          InputError: there is none, it is of another version, or cut off.
        """
        self.folder = pathlib.Path(folder)
        try:
            index = read_json(self.folder / INDEX, FORMAT, "make it again")
        except FileNotFoundError:
            raise InputError(
                f"{folder}: no {INDEX} there; give a folder written by train/labels.py"
            ) from None
        try:
            self.source: dict[str, str] = index.get("source", {})
            self.num_classes: int = index["num_classes"]
            self.names: list[str] = index["names"]
            self.counts = np.asarray(index["frames"], np.int64)
        except KeyError as error:
            raise InputError(f"{self.folder / INDEX}: has no {error}; make it again") from None
        self.starts = np.cumsum(self.counts) - self.counts
        size = (self.folder / LABELS).stat().st_size
        if size != 2 * self.counts.sum():
            raise InputError(
                f"{self.folder / LABELS}: {size} bytes, the index promises "
                f"{2 * self.counts.sum()}; make it again"
            )

    def unlabelled(self) -> np.ndarray:
        """Numbers of the utterances that have no labels yet, int [utterances]."""
        return np.flatnonzero(self._last_labels() == UNLABELLED)

    def given_up(self) -> np.ndarray:
        """Numbers of the utterances that could not be labelled, int [utterances]."""
        return np.flatnonzero(self._last_labels() == UNREADABLE)

    def _last_labels(self) -> np.ndarray:
        """The label of each utterance's last frame, uint16 [utterances]."""
        labels = np.memmap(self.folder / LABELS, "<u2", "r")
        return np.asarray(labels[self.starts + self.counts - 1])

    def give_up(self, index: int) -> None:
        """Notes that utterance `index` cannot be labelled."""
        self.write(index, np.full(self.counts[index], UNREADABLE))

    def write(self, index: int, labels: np.ndarray) -> None:
        """Stores the labels, int [frames], of utterance `index`, all of them or none."""
        with open(self.folder / LABELS, "r+b") as stream:
            stream.seek(2 * int(self.starts[index]))
            # In one write and with the last frame last, which `unlabelled` looks at.
            stream.write(labels.astype("<u2").tobytes())

    def of(self, corpus: Corpus, on_error: Callable[[str], None]) -> tuple[Corpus, FrameLabels]:
        """The labels of a corpus' utterances, which are found by name.

        Args:
          corpus: some of the utterances that were to be labelled.
          on_error: called with one line for each utterance that could not be labelled.

        Returns:
          the corpus without these utterances, and the labels of the others.

        Raises:
          InputError: an utterance is missing, not labelled yet, or of another length; or there is
            a label that is no class.
        """
        places = {name: place for place, name in enumerate(self.names)}
        missing = [name for name in corpus.names if name not in places]
        if missing:
            raise InputError(
                f"{self.folder}: no labels of {missing[0]} (and {len(missing) - 1} more); give "
                "train/labels.py the same --data and all --splits, the validation's too"
            )
        order = np.asarray([places[name] for name in corpus.names])
        wrong = np.flatnonzero(self.counts[order] != audio.frame_count(corpus.lengths))
        if len(wrong):
            raise InputError(
                f"{self.folder}: {corpus.names[wrong[0]]} has another length than when it was "
                "labelled; make the labels again"
            )
        if len(undone := np.intersect1d(order, self.unlabelled())):
            raise InputError(
                f"{self.folder}: {len(undone)} utterances are not labelled yet; run "
                "train/labels.py again, which goes on where it stopped"
            )
        failed = np.isin(order, self.given_up())
        for place in np.flatnonzero(failed):
            on_error(f"{corpus.names[place]}: could not be labelled")
        labels = np.memmap(self.folder / LABELS, "<u2", "r")
        largest = int(np.max(labels, initial=0, where=labels < UNREADABLE))
        if largest >= self.num_classes:
            raise InputError(
                f"{self.folder}: label {largest} of {self.num_classes} classes, which count from "
                "0; make the labels again"
            )
        if failed.any():
            corpus, order = Selection(corpus, np.flatnonzero(~failed)), order[~failed]
        return corpus, FrameLabels(labels, self.starts[order], self.num_classes)


def new_label_folder(
    folder: str | os.PathLike, corpus: Corpus, num_classes: int, source: dict[str, str]
) -> LabelFolder:
    """Makes a label folder for a corpus, or opens the one that an earlier call made.

    Args:
      folder: made if absent.
      corpus: what is to be labelled.
      num_classes: labels are below it.
      source: what labels it, for people, and to tell whether two callers mean the same.

    Raises:
      InputError: there are other labels.
    """
    folder = pathlib.Path(folder)
    frames = audio.frame_count(corpus.lengths)
    if (folder / INDEX).exists():
        found = LabelFolder(folder)
        same = found.source == source and found.num_classes == num_classes
        if not same or found.names != corpus.names or not np.array_equal(found.counts, frames):
            raise InputError(
                f"{folder}: holds labels of another corpus or from another model; give another "
                "folder, or delete that one first"
            )
        return found
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LABELS, "wb") as stream:
        for count in frames:
            stream.write(b"\xff\xff" * int(count))
    index = {
        "format": FORMAT,
        "source": source,
        "num_classes": num_classes,
        "names": corpus.names,
        "frames": frames.tolist(),
    }
    partial = folder / f".{INDEX}"
    partial.write_text(json.dumps(index) + "\n", encoding="utf-8")
    os.replace(partial, folder / INDEX)
    return LabelFolder(folder)
