"""Prepared folders: decoded audio in one file that is memory-mapped.

A prepared folder holds `samples.int16`, all utterances one after the other as 16-bit little-endian
integers at 16 kHz, and `index.json` with their names and lengths. It feeds an accelerator without
decoding, and is read without any audio library.
"""

import json
import pathlib
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float, Int

from daisy_jax import audio
from daisy_jax.data.file_list import sound_files
from daisy_jax.errors import InputError, said_of
from daisy_jax.reporting import followed, leave_out
from daisy_jax.whole_files import read_json, whole_files

FORMAT = "daisy_jax_audio/1"
SAMPLES, INDEX = "samples.int16", "index.json"


class PreparedCorpus:
    """A folder made by `prepare`."""

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        index = read_json(folder / INDEX, FORMAT, "prepare the folder again")
        self.names: list[str] = index["names"]
        if not self.names:
            raise InputError(f"{folder}: holds no utterance; prepare it again from readable files")
        self.lengths: Int[np.ndarray, " utterances"] = np.asarray(index["lengths"], np.int64)
        self._samples = np.memmap(folder / SAMPLES, "<i2", "r")
        self._starts = np.concatenate([[0], np.cumsum(self.lengths)])
        if self._starts[-1] != len(self._samples):
            raise InputError(
                f"{folder / SAMPLES}: {len(self._samples)} samples, the index promises "
                f"{self._starts[-1]}; prepare the folder again"
            )

    def __reduce__(self) -> tuple[type["PreparedCorpus"], tuple[pathlib.Path]]:
        # To another process goes the folder and not the samples.
        return PreparedCorpus, (self._folder,)

    def read(self, index: int, start: int, samples: int) -> Float[np.ndarray, " samples"]:
        """As for every `Corpus`."""
        begin = self._starts[index] + start
        end = min(begin + samples, self._starts[index + 1])
        return self._samples[begin:end].astype(np.float32) / audio.FULL_SCALE


def prepare(folders: Iterable[str | pathlib.Path], output: str | pathlib.Path) -> tuple[int, int]:
    """Decodes every sound file below `folders` into a prepared folder.

    Args:
      folders: where to look, recursively. Names in the index start with the folder's own name.
      output: the prepared folder, made if absent.

    Returns:
      How many utterances were written, and how many files were left out.

    Raises:
      InputError: one of `folders` is not a folder.
    """
    folders = [pathlib.Path(folder) for folder in folders]
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; give folders of sound files")
    files = [(folder, file) for folder in folders for file in sound_files(folder)]
    output = pathlib.Path(output)
    names, lengths = [], []
    with whole_files(output / SAMPLES, output / INDEX) as (samples, index):
        with open(samples, "wb") as stream:
            for folder, file in followed(files, "decoding"):
                try:
                    waveform = audio.load(file)
                except Exception as error:
                    leave_out(said_of(file, error))
                    continue
                stream.write(audio.as_int16(waveform).astype("<i2").tobytes())
                names.append(str(pathlib.Path(folder.name) / file.relative_to(folder)))
                lengths.append(len(waveform))
        content = {"format": FORMAT, "names": names, "lengths": lengths}
        index.write_text(json.dumps(content) + "\n", encoding="utf-8")
    return len(names), len(files) - len(names)
