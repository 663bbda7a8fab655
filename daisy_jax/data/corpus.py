"""Audio corpora: a folder of sound files, or a prepared folder that needs no decoding.

A prepared folder holds `samples.int16`, all utterances one after the other as 16-bit little-endian
integers at 16 kHz, and `index.json` with their names and lengths. It is memory-mapped, feeds an
accelerator without decoding, and is read without any audio library.
"""

import json
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np

from daisy_jax import audio
from daisy_jax.errors import InputError

FORMAT = "daisy_jax_audio/1"
SAMPLES, INDEX = "samples.int16", "index.json"
SUFFIXES = (".flac", ".wav", ".ogg", ".opus", ".mp3")
FULL_SCALE = 32_768


class Corpus(Protocol):
    """Utterances by number."""

    names: list[str]
    """Relative path of each utterance."""
    lengths: np.ndarray
    """int64 [utterances], samples at 16 kHz."""

    def read(self, index: int, start: int, samples: int) -> np.ndarray:
        """Float32 [samples] of one utterance from sample `start` on; fewer where it ends."""
        ...


class PreparedCorpus:
    """A folder made by `prepare`."""

    def __init__(self, folder: pathlib.Path):
        try:
            index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{folder / INDEX}: not JSON ({error}); prepare it again") from None
        found = index.get("format") if isinstance(index, dict) else None
        if found != FORMAT:
            raise InputError(
                f"{folder / INDEX}: format is {found!r}, not {FORMAT!r}; prepare the folder again"
            )
        self.names: list[str] = index["names"]
        if not self.names:
            raise InputError(f"{folder}: holds no utterance; prepare it again from readable files")
        self.lengths = np.asarray(index["lengths"], np.int64)
        self._samples = np.memmap(folder / SAMPLES, "<i2", "r")
        self._starts = np.concatenate([[0], np.cumsum(self.lengths)])
        if self._starts[-1] != len(self._samples):
            raise InputError(
                f"{folder / SAMPLES}: {len(self._samples)} samples, the index promises "
                f"{self._starts[-1]}; prepare the folder again"
            )

    def read(self, index: int, start: int, samples: int) -> np.ndarray:
        """As for every `Corpus`."""
        begin = self._starts[index] + start
        end = min(begin + samples, self._starts[index + 1])
        return self._samples[begin:end].astype(np.float32) / FULL_SCALE


class FolderCorpus:
    """Every sound file below a folder, decoded when it is read."""

    def __init__(self, folder: pathlib.Path, files: list[pathlib.Path]):
        import soundfile

        self._files = files
        self.names = [str(file.relative_to(folder)) for file in files]
        try:
            infos = [soundfile.info(file) for file in files]
        except soundfile.LibsndfileError as error:
            raise InputError(f"{error}; repair or remove the file") from None
        self.lengths = np.asarray(
            [info.frames * audio.SAMPLE_RATE // info.samplerate for info in infos], np.int64
        )
        for file, info in zip(files, infos, strict=True):
            if audio.cut_off(info.extra_info):
                raise InputError(f"{file}: the file is cut off; copy it again or remove it")
        short = self.lengths < audio.FRAME_WINDOW
        if short.any():
            raise InputError(
                f"{files[int(np.argmax(short))]}: shorter than {audio.FRAME_WINDOW} samples "
                "(25 ms); remove the file"
            )
        self._plain = [info.samplerate == audio.SAMPLE_RATE for info in infos]

    def read(self, index: int, start: int, samples: int) -> np.ndarray:
        """As for every `Corpus`."""
        import soundfile

        if not self._plain[index]:
            return audio.load(self._files[index])[start : start + samples]
        file, wanted = self._files[index], min(samples, int(self.lengths[index]) - start)
        try:
            part, _ = soundfile.read(file, wanted, start, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise InputError(f"{file}: {error.error_string}; repair or remove the file") from None
        waveform = part.mean(axis=1)
        if len(waveform) < wanted or not np.isfinite(waveform).all():
            raise InputError(
                f"{file}: cut off, or holds NaN or infinite samples; repair or remove the file"
            )
        return waveform


def sound_files(folder: str | pathlib.Path) -> list[pathlib.Path]:
    """All sound files below a folder, by name."""
    found = pathlib.Path(folder).rglob("*")
    return sorted(path for path in found if path.suffix.lower() in SUFFIXES and path.is_file())


def expand_folders(paths: Sequence[str]) -> list[str]:
    """The files as given, and in the place of a folder the sound files below it.

    A folder without any stays, to be refused like an unreadable file, beside the others.

    Raises:
      InputError: nothing was given.
    """
    if not paths:
        raise InputError("no files; give at least one sound file")
    files = []
    for path in paths:
        found = [str(file) for file in sound_files(path)] if os.path.isdir(path) else []
        files += found or [path]
    return files


def open_corpus(path: str | pathlib.Path) -> Corpus:
    """Opens a prepared folder, or a folder of sound files.

    Raises:
      InputError: there is no sound file below the folder, or one is unreadable.
    """
    folder = pathlib.Path(path)
    if not folder.is_dir():
        raise InputError(
            f"{folder}: no such folder; give a folder of sound files or a prepared one"
        )
    if (folder / INDEX).is_file():
        return PreparedCorpus(folder)
    files = sound_files(folder)
    if not files:
        raise InputError(f"{folder}: no sound files ({', '.join(SUFFIXES)}) below this folder")
    return FolderCorpus(folder, files)


def prepare(
    folders: Iterable[str | pathlib.Path],
    output: str | pathlib.Path,
    on_error: Callable[[str], None],
    progress: Callable[[Iterable], Iterable] = iter,
) -> int:
    """Decodes every sound file below `folders` into a prepared folder.

    Args:
      folders: where to look, recursively. Names in the index start with the folder's own name.
      output: the prepared folder, made if absent.
      on_error: called with one line for each file that is left out.
      progress: wraps the list of files while it is worked through.

    Returns:
      How many utterances were written.

    Raises:
      InputError: one of `folders` is not a folder.
    """
    folders = [pathlib.Path(folder) for folder in folders]
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; give folders of sound files")
    files = [(folder, file) for folder in folders for file in sound_files(folder)]
    output = pathlib.Path(output)
    output.mkdir(parents=True, exist_ok=True)
    names, lengths = [], []
    with open(output / SAMPLES, "wb") as stream:
        for folder, file in progress(files):
            try:
                waveform = audio.load(file)
            except (InputError, OSError) as error:
                on_error(str(error))
                continue
            scaled = np.clip(np.round(waveform * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1)
            stream.write(scaled.astype("<i2").tobytes())
            names.append(str(pathlib.Path(folder.name) / file.relative_to(folder)))
            lengths.append(len(waveform))
    index = {"format": FORMAT, "names": names, "lengths": lengths}
    (output / INDEX).write_text(json.dumps(index) + "\n", encoding="utf-8")
    return len(names)
