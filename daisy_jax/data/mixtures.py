"""Recordings with what they are made of: VoiceBank-DEMAND and Libri2Mix.

Sources: Valentini-Botinhao et al. 2016, as `noisy-vctk-16k`; Cosentino et al. 2020, 16 kHz, "min".
"""

import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from daisy_jax.data.corpus import Corpus, Selection, measured_files
from daisy_jax.data.sound_files import sound_files
from daisy_jax.errors import InputError
from daisy_jax.reporting import leave_out


class Mixtures(NamedTuple):
    """Inputs, and the sources that are wanted from each."""

    corpus: Corpus
    sources: tuple[Corpus, ...]

    def read_sources(self, index: int, start: int = 0, samples: int | None = None) -> np.ndarray:
        """The sources of one input, or of a part of it: float32 [sources, samples]."""
        wanted = int(self.corpus.lengths[index]) - start if samples is None else samples
        return np.stack([source.read(index, start, wanted) for source in self.sources])

    def part(self, indices: np.ndarray) -> "Mixtures":
        """Some of them."""
        corpus = Selection(self.corpus, indices)
        return Mixtures(corpus, tuple(Selection(source, indices) for source in self.sources))


def open_voicebank(
    folder: str | pathlib.Path,
    part: str,
    speakers: Sequence[str] = (),
    without: Sequence[str] = (),
) -> Mixtures:
    """Noisy and clean recordings: `noisy_PART_wav_16k/NAME.wav` and `clean_PART_wav_16k/NAME.wav`.

    Args:
      folder: the corpus.
      part: "trainset_28spk" or "testset".
      speakers: of these alone (names begin with p226_); none: of all.
      without: not of these.

    Raises:
      InputError: a folder is missing or holds nothing that was wanted.
    """
    folders = [pathlib.Path(folder, f"{kind}_{part}_wav_16k") for kind in ("noisy", "clean")]

    def wanted(path: pathlib.Path) -> bool:
        speaker = path.name.partition("_")[0]
        return (not speakers or speaker in speakers) and speaker not in without

    return _open(folders, wanted)


def open_libri2mix(folder: str | pathlib.Path, part: str) -> Mixtures:
    """Two speakers without noise: `wav16k/min/PART/{mix_clean,s1,s2}/NAME.wav`.

    Arguments and errors as of `open_voicebank`; parts are train-100, train-360, dev and test.
    """
    place = pathlib.Path(folder, "wav16k", "min", part)
    folders = [place / name for name in ("mix_clean", "s1", "s2")]
    return _open(folders, lambda path: True)


def _open(folders: list[pathlib.Path], wanted: Callable[[pathlib.Path], bool]) -> Mixtures:
    """Files of the same name in all folders; the first holds the inputs."""
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; unpack or make this part of the corpus")
    names = [path.relative_to(folders[0]) for path in sound_files(folders[0]) if wanted(path)]
    if not names:
        raise InputError(f"{folders[0]}: none of the files that were wanted; is it all unpacked?")
    whole = []
    for name in names:
        lacking = [folder for folder in folders if not (folder / name).is_file()]
        if lacking:
            leave_out(f"{folders[0] / name}: has no counterpart in {lacking[0]}")
        else:
            whole.append(name)
    parts = [measured_files(folder, [folder / name for name in whole]) for folder in folders]
    places = [{name: place for place, name in enumerate(part.names)} for part in parts]
    usable = []
    for name in parts[0].names:
        where = [by_name.get(name) for by_name in places]
        if None in where:
            continue  # said when it was opened
        lengths = {int(part.lengths[place]) for part, place in zip(parts, where, strict=True)}
        if len(lengths) > 1:
            leave_out(
                f"{folders[0] / name}: its counterparts have other lengths: {sorted(lengths)}"
            )
        else:
            usable.append(where)
    if not usable:
        raise InputError(f"{folders[0]}: no file with whole counterparts; unpack it again")
    chosen = np.asarray(usable, np.int64).T
    inputs, *sources = [
        Selection(part, indices) for part, indices in zip(parts, chosen, strict=True)
    ]
    return Mixtures(inputs, tuple(sources))
