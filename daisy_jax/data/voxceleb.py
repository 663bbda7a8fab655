"""VoxCeleb1 by its identification split.

Source: Nagrani et al. 2017. Each line of `iden_split.txt` is a set, 1 to train, 2 to develop, 3 to
test, and a path below the folder `wav`.
"""

import pathlib
from typing import NamedTuple

import numpy as np

from daisy_jax.data.corpus import Corpus, measured_files
from daisy_jax.errors import InputError

AUDIO = ("wav", "dev/wav", "test/wav")
"""Where the archives are unpacked to: in one place, or each in its own."""


class Speakers(NamedTuple):
    """One set of VoxCeleb1."""

    corpus: Corpus
    speaker: np.ndarray
    """int32 [utterances], a place in `names`."""
    names: tuple[str, ...]
    """All speakers of the split file, sorted."""


def open_voxceleb(
    folder: str | pathlib.Path,
    split_file: str,
    wanted: str,
    per_speaker: int = 0,
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
    for number, line in enumerate(listing.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        part, _, path = line.strip().partition(" ")
        if part not in ("1", "2", "3") or "/" not in path:
            raise InputError(f"{listing}:{number}: {line!r} is none of '1|2|3 SPEAKER/.../FILE'")
        pairs.append((part, path.strip()))
    names = tuple(sorted({path.partition("/")[0] for _, path in pairs}))
    paths = sorted(path for number, path in pairs if number == wanted)
    if not paths:
        raise InputError(f"{listing}: no line of set {wanted}; give VoxCeleb1's iden_split.txt")
    if per_speaker:
        rng = np.random.default_rng(0)
        shuffled = [paths[place] for place in rng.permutation(len(paths))]
        taken: dict[str, list[str]] = {}
        for path in shuffled:
            taken.setdefault(path.partition("/")[0], []).append(path)
        paths = sorted(path for those in taken.values() for path in those[:per_speaker])
    roots = [folder / place for place in AUDIO if (folder / place).is_dir()]
    if not roots:
        expected = ", ".join(str(folder / place) for place in AUDIO)
        raise InputError(f"{folder}: no audio there; expected {expected}")
    files, missing = [], []
    for path in paths:
        place = next((root / path for root in roots if (root / path).is_file()), None)
        if place is None:
            missing.append(path)
        else:
            files.append(place)
    if missing:
        raise InputError(
            f"{len(missing)} of {len(paths)} files of {listing} are missing, the first is "
            f"{missing[0]} below {' or '.join(map(str, roots))}; unpack the archives there"
        )
    corpus = measured_files(folder, files)
    places = {name: place for place, name in enumerate(names)}
    spoken_by = {
        str(file.relative_to(folder)): path.partition("/")[0]
        for file, path in zip(files, paths, strict=True)
    }
    speakers = [places[spoken_by[name]] for name in corpus.names]
    return Speakers(corpus, np.asarray(speakers, np.int32), names)
