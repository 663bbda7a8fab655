"""Audio corpora: utterances by number, whatever they are stored in."""

import hashlib
import os
import pathlib
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from daisy_jax import audio
from daisy_jax.data.durations import Entry, measure
from daisy_jax.data.prepared import INDEX, PreparedCorpus
from daisy_jax.data.sound_files import SUFFIXES, is_inside, sound_files
from daisy_jax.data.tfds import TfdsCorpus, dataset_name, is_tfds_folder
from daisy_jax.errors import InputError
from daisy_jax.reporting import leave_out


@runtime_checkable
class Corpus(Protocol):
    """Utterances by number."""

    names: list[str]
    """Relative path of each utterance, or its identifier."""
    lengths: np.ndarray
    """int64 [utterances], samples at 16 kHz."""

    def read(self, index: int, start: int, samples: int) -> np.ndarray:
        """Float32 [samples] of one utterance from sample `start` on; fewer where it ends.

        Raises:
          InputError: it cannot be read.
        """
        ...


class Selection:
    """Some utterances of a corpus, as a corpus of its own."""

    def __init__(self, corpus: Corpus, indices: np.ndarray):
        self._corpus = corpus
        self._indices = indices
        self.names = [corpus.names[index] for index in indices]
        self.lengths = corpus.lengths[indices]

    def read(self, index: int, start: int, samples: int) -> np.ndarray:
        """As for every `Corpus`."""
        return self._corpus.read(int(self._indices[index]), start, samples)


def open_corpus(
    path: str | pathlib.Path,
    splits: Sequence[str] = (),
) -> Corpus:
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
        found = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
        raise InputError(
            f"{folder}: no split {', '.join(missing)} there; found {', '.join(found) or 'none'}"
        )
    files = [file for part in splits or [""] for file in sound_files(folder / part)]
    if not files:
        raise InputError(f"{folder}: no sound files ({', '.join(SUFFIXES)}) below this folder")
    return measured_files(folder, files)


def measured_files(folder: pathlib.Path, files: list[pathlib.Path]) -> "FolderCorpus":
    """A corpus of sound files below a folder, without those that cannot be used.

    Arguments as of `open_corpus`; durations are remembered.

    Raises:
      InputError: none can be used.
    """
    entries = measure(folder, files)
    for file, entry in zip(files, entries, strict=True):
        if entry.error is not None:
            leave_out(f"{file}: {entry.error}")
    usable = [pair for pair in zip(files, entries, strict=True) if pair[1].error is None]
    if not usable:
        raise InputError(f"{folder}: none of its {len(files)} sound files can be used")
    return FolderCorpus(folder, [file for file, _ in usable], [entry for _, entry in usable])


def corpus_name(path: str | pathlib.Path) -> str:
    """What to call a corpus: its folder's name, or that of tensorflow-datasets' data set."""
    folder = pathlib.Path(path)
    return dataset_name(folder) if is_tfds_folder(folder) else folder.resolve().name


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
        except (InputError, OSError):
            digest.update(b"unreadable")
    return digest.hexdigest()[:16]


class FolderCorpus:
    """Sound files below a folder, decoded when they are read."""

    def __init__(self, folder: pathlib.Path, files: list[pathlib.Path], entries: list[Entry]):
        """Files that can be used, and what `measure` found in each."""
        self._files = files
        self._plain = [entry.rate == audio.SAMPLE_RATE for entry in entries]
        self._listed = [entry.rate == 0 for entry in entries]  # nobody has opened these yet
        self.names = [str(file.relative_to(folder)) for file in files]
        self.lengths = np.asarray([entry.samples for entry in entries], np.int64)

    def read(self, index: int, start: int, samples: int) -> np.ndarray:
        """As for every `Corpus`."""
        import soundfile

        file, length = self._files[index], int(self.lengths[index])
        wanted = min(samples, length - start)
        if self._listed[index]:
            waveform = audio.load(file)
            if len(waveform) != length:
                raise InputError(
                    f"{file}: {len(waveform)} samples at 16 kHz, and the list says {length}; write "
                    "the list again, or leave its numbers out"
                )
            return waveform[start : start + wanted]
        if not self._plain[index]:
            return audio.load(file)[start : start + wanted]
        name = audio.soundfile_name(file)
        try:
            with soundfile.SoundFile(name) as stream:
                if not stream.seekable():  # GSM's files, for example
                    return audio.load(file)[start : start + wanted]
                stream.seek(start)
                part = stream.read(wanted, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise InputError(f"{file}: {error.error_string}; repair or remove the file") from None
        waveform = part.mean(axis=1)
        if len(waveform) < wanted or not np.isfinite(waveform).all():
            raise InputError(
                f"{file}: cut off, or holds NaN or infinite samples; repair or remove the file"
            )
        return waveform
