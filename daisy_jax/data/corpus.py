"""Audio corpora: utterances by number, whatever they are stored in."""

import hashlib
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from daisy_jax import audio
from daisy_jax.data.durations import Entry, measure
from daisy_jax.data.file_list import SUFFIXES, nameable, sound_files
from daisy_jax.data.prepared import INDEX, PreparedCorpus
from daisy_jax.data.tfds import TfdsCorpus, dataset_name, is_tfds_folder
from daisy_jax.errors import InputError
from daisy_jax.reporting import leave_out, printable
from daisy_jax.whole_files import is_inside

Waveform: TypeAlias = Float[np.ndarray, " samples"]
"""16 kHz, full scale is 1."""
Lengths: TypeAlias = Int[np.ndarray, " utterances"]
"""Samples at 16 kHz."""
Indices: TypeAlias = Int[np.ndarray, " chosen"]
"""Numbers of utterances."""


@runtime_checkable
class Corpus(Protocol):
    """Utterances by number."""

    names: list[str]
    """Relative path of each utterance, or its identifier."""
    lengths: Lengths

    def read(self, index: int, start: int, samples: int) -> Waveform:
        """Float32, one utterance from sample `start` on; fewer samples where it ends.

        Raises:
          InputError: it cannot be read.
        """
        ...


class Selection:
    """Some utterances of a corpus, as a corpus of its own."""

    def __init__(self, corpus: Corpus, indices: Indices):
        self._corpus, self._indices = corpus, indices
        self.names = [corpus.names[index] for index in indices]
        self.lengths = corpus.lengths[indices]

    def read(self, index: int, start: int, samples: int) -> Waveform:
        """As for every `Corpus`."""
        return self._corpus.read(int(self._indices[index]), start, samples)


class FolderCorpus:
    """Sound files below a folder, decoded when they are read."""

    def __init__(self, names: list[str], files: list[pathlib.Path], entries: list[Entry]):
        """Files that can be used, what to call them, and what `measure` found in each."""
        self.names, self._files = names, files
        self._rates = [entry.rate for entry in entries]
        self.lengths = np.asarray([entry.samples for entry in entries], np.int64)

    def read(self, index: int, start: int, samples: int) -> Waveform:
        """As for every `Corpus`."""
        file, length, rate = self._files[index], int(self.lengths[index]), self._rates[index]
        wanted = min(samples, length - start)
        if rate == 0:  # nobody has opened it yet
            waveform = audio.load(file)
            if len(waveform) != length:
                raise InputError(
                    f"{file}: {len(waveform)} samples at 16 kHz, and the list says {length}; write "
                    "the list again, or leave its numbers out"
                )
            return waveform[start : start + wanted]
        return audio.load_part(file, start, wanted, rate)


def open_corpus(path: str | pathlib.Path, splits: Sequence[str] = ()) -> Corpus:
    """Opens a folder of sound files, a prepared folder, or a folder of tensorflow-datasets.

    Args:
      path: the folder.
      splits: names of its parts: of folders right below it, or of a TFDS data set's splits (where
        "train-clean-100" and "train_clean100" are the same); none: everything.

    Raises:
      InputError: there is no such folder or split, or no utterance in it.
    """
    folder = pathlib.Path(path)
    if not folder.is_dir():
        raise InputError(
            f"{folder}: no such folder; give a folder of sound files, a prepared folder, or one of "
            "tensorflow-datasets"
        )
    if is_tfds_folder(folder):
        return TfdsCorpus(folder, splits)
    if (folder / INDEX).is_file():
        if splits:
            raise InputError(f"{folder}: a prepared folder has no splits; prepare them apart")
        return PreparedCorpus(folder)
    missing = [split for split in splits if not is_inside(split) or not (folder / split).is_dir()]
    if missing:
        below = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
        raise InputError(
            f"{folder}: no split {', '.join(missing)} there; found {', '.join(below) or 'none'}"
        )
    files = [file for part in splits or [""] for file in sound_files(folder / part)]
    if not files:
        raise InputError(f"{folder}: no sound files ({', '.join(SUFFIXES)}) below this folder")
    return measured_files(folder, files)


def measured_files(folder: pathlib.Path, files: list[pathlib.Path]) -> FolderCorpus:
    """A corpus of sound files below a folder, without those that cannot be used.

    Their durations are remembered.

    Raises:
      InputError: none can be used.
    """
    pairs = list(zip(files, measure(folder, files), strict=True))
    for file, entry in pairs:
        if entry.error is not None:
            leave_out(f"{file}: {entry.error}")
    usable = [(file, entry) for file, entry in pairs if entry.error is None]
    if not usable:
        raise InputError(f"{folder}: none of its {len(files)} sound files can be used")
    names = [nameable(str(file.relative_to(folder))) for file, _ in usable]
    return FolderCorpus(names, [file for file, _ in usable], [entry for _, entry in usable])


class WithSources(NamedTuple):
    """A corpus, and the recordings that are wanted from each of its utterances."""

    corpus: Corpus
    sources: tuple[Corpus, ...]

    def read_sources(
        self, index: int, start: int = 0, samples: int | None = None
    ) -> Float[np.ndarray, "sources samples"]:
        """The sources of one utterance, or of a part of it, float32."""
        wanted = int(self.corpus.lengths[index]) - start if samples is None else samples
        return np.stack([source.read(index, start, wanted) for source in self.sources])

    def part(self, indices: Indices) -> "WithSources":
        """Some of the utterances."""
        corpus, *sources = (Selection(each, indices) for each in (self.corpus, *self.sources))
        return WithSources(corpus, tuple(sources))


def open_with_sources(
    folders: list[pathlib.Path], wanted: Callable[[pathlib.Path], bool] = lambda path: True
) -> WithSources:
    """Files of the same name and length in several folders; the first folder holds the corpus.

    What lacks a counterpart, or cannot be used, is left out.

    Args:
      folders: of the corpus, and of each source.
      wanted: whether a file of the corpus is asked for, by its path.

    Raises:
      InputError: a folder is missing, or holds nothing that was wanted.
    """
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; unpack or make this part of the corpus")
    names = [path.relative_to(folders[0]) for path in sound_files(folders[0]) if wanted(path)]
    if not names:
        raise InputError(f"{folders[0]}: none of the files that were wanted; is it all unpacked?")
    complete = []
    for name in names:
        lacking = [folder for folder in folders if not (folder / name).is_file()]
        if lacking:
            leave_out(f"{folders[0] / name}: has no counterpart in {lacking[0]}")
        else:
            complete.append(name)
    parts = [measured_files(folder, [folder / name for name in complete]) for folder in folders]
    numbers = [{name: number for number, name in enumerate(part.names)} for part in parts]
    usable = []
    for name in parts[0].names:
        if not all(name in by_name for by_name in numbers):
            continue  # its counterpart cannot be used, which was said when it was opened
        row = [by_name[name] for by_name in numbers]
        lengths = sorted({int(part.lengths[i]) for part, i in zip(parts, row, strict=True)})
        if len(lengths) > 1:
            leave_out(f"{folders[0] / name}: its counterparts have other lengths: {lengths}")
        else:
            usable.append(row)
    if not usable:
        raise InputError(f"{folders[0]}: no file with whole counterparts; unpack it again")
    columns = np.asarray(usable, np.int64).T
    corpus, *sources = (Selection(part, rows) for part, rows in zip(parts, columns, strict=True))
    return WithSources(corpus, tuple(sources))


def corpus_name(path: str | pathlib.Path) -> str:
    """What to call a corpus: its folder's name, or that of tensorflow-datasets' data set."""
    folder = pathlib.Path(path)
    name = dataset_name(folder) if is_tfds_folder(folder) else folder.resolve().name
    return printable(name)


def hours_of(lengths: Lengths) -> float:
    """How long utterances of so many samples are together."""
    return float(lengths.sum() / audio.SAMPLE_RATE / 3600)


def size_of(lengths: Lengths) -> str:
    """How many utterances there are, and hours of them."""
    return f"{len(lengths)} utterances, {hours_of(lengths):.2f} h"


def fingerprint(corpus: Corpus) -> str:
    """How many utterances, and a digest of their names and lengths."""
    digest = hashlib.sha256(np.ascontiguousarray(corpus.lengths, "<i8").tobytes())
    for name in corpus.names:
        digest.update(os.fsencode(name) + b"\n")
    return f"{len(corpus.names)} utterances, {digest.hexdigest()[:16]}"


HEARD = 64
"""Utterances that `sound_fingerprint` reads."""


def sound_fingerprint(corpus: Corpus) -> str:
    """A digest of the samples of up to `HEARD` utterances, spread over the corpus.

    Versions of one corpus, noisy or coded, have the same names and lengths; this tells them apart.
    """
    count = len(corpus.names)
    digest = hashlib.sha256()
    for index in np.unique(np.linspace(0, count - 1, min(count, HEARD)).round().astype(int)):
        try:
            waveform = corpus.read(int(index), 0, int(corpus.lengths[index]))
            digest.update(np.ascontiguousarray(waveform, "<f4").tobytes())
        except Exception:  # which is said where the utterance is wanted
            digest.update(b"unreadable")
    return digest.hexdigest()[:16]
