"""VoxCeleb1 by its identification split.

Source: Nagrani et al. 2017. Each line of `iden_split.txt` is a set, 1 to train, 2 to develop, 3 to
test, and a path below the folder `wav`.
"""

import pathlib
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from daisy_jax import audio
from daisy_jax.data.corpus import Corpus, measured_files
from daisy_jax.data.file_list import nameable
from daisy_jax.errors import InputError
from daisy_jax.whole_files import read_text

AUDIO = ("wav", "dev/wav", "test/wav")
"""Where the archives are unpacked to: in one place, or each in its own."""
AAC = ".m4a"


class Speakers(NamedTuple):
    """One set of VoxCeleb1."""

    corpus: Corpus
    speaker: Int[np.ndarray, " utterances"]
    """int32, the speaker's number in `names`."""
    names: tuple[str, ...]
    """All speakers of the split file, sorted."""


def open_voxceleb(
    folder: str | pathlib.Path, split_file: str, wanted: str, per_speaker: int = 0
) -> Speakers:
    """Opens one set.

    Args:
      folder: with the split file, and the audio in `wav`, or `dev/wav` and `test/wav`.
      split_file: its name.
      wanted: "1", "2" or "3".
      per_speaker: at most so many utterances of each speaker, always the same; 0: all.

    Raises:
      InputError: the split file or the audio is missing, with what was expected where.
    """
    folder = pathlib.Path(folder)
    listing = folder / split_file
    if not listing.is_file():
        raise InputError(f"{listing}: no such file; VoxCeleb1's page offers iden_split.txt")
    pairs = []
    for number, line in enumerate(read_text(listing).splitlines(), 1):
        if not line.strip():
            continue
        part, _, path = line.strip().partition(" ")
        if part not in ("1", "2", "3") or "/" not in path:
            raise InputError(f"{listing}:{number}: {line!r} is none of '1|2|3 SPEAKER/.../FILE'")
        pairs.append((part, path.strip()))
    names = tuple(sorted({_speaker(path) for _, path in pairs}))
    paths = sorted(path for number, path in pairs if number == wanted)
    if not paths:
        raise InputError(f"{listing}: no line of set {wanted}; give VoxCeleb1's iden_split.txt")
    if per_speaker:
        by_speaker: dict[str, list[str]] = {}
        for index in np.random.default_rng(0).permutation(len(paths)):
            by_speaker.setdefault(_speaker(paths[index]), []).append(paths[index])
        paths = sorted(path for some in by_speaker.values() for path in some[:per_speaker])
    roots = [folder / name for name in AUDIO]
    if not any(root.is_dir() for root in roots):
        raise InputError(f"{folder}: no audio there; expected {', '.join(map(str, roots))}")
    roots = [root for root in roots if root.is_dir()]
    copies = {path: _copies(path, roots) for path in paths}
    compressed = [found[0] for found in copies.values() if found and found[0].suffix == AAC]
    if compressed:
        audio.require_media(compressed[0])
    missing = [path for path in paths if not copies[path]]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(paths)} files of {listing} are missing, the first is "
            f"{missing[0]} below {' or '.join(map(str, roots))}; unpack the archives there"
        )
    corpus = measured_files(folder, [copies[path][0] for path in paths])
    speaker_of = {
        nameable(str(copies[path][0].relative_to(folder))): _speaker(path) for path in paths
    }
    numbers = {name: number for number, name in enumerate(names)}
    speakers = [numbers[speaker_of[name]] for name in corpus.names]
    return Speakers(corpus, np.asarray(speakers, np.int32), names)


def _copies(path: str, roots: list[pathlib.Path]) -> list[pathlib.Path]:
    """Where a recording is: as WAV, or else as the AAC that is downloaded."""
    places = [root / path for root in roots]
    places += [place.with_suffix(AAC) for place in places]
    return [place for place in places if place.is_file()]


def _speaker(path: str) -> str:
    """Who speaks in a recording of the split file."""
    return path.partition("/")[0]
