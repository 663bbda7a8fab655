"""Noisy versions of a corpus, the same on every machine: which noise, where from, how loud.

All that is drawn comes out of SHA-256 digests of the seed and the utterance's name, so that it
depends neither on the order of the utterances nor on a random number generator's version. Levels
are sums of 16-bit samples, which are exact; with noise of another sampling rate, or the active
level, the last bit may depend on the machine.
"""

import hashlib
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float

from daisy_jax import audio
from daisy_jax.data.corpus import Corpus, Selection, Waveform
from daisy_jax.data.mixing import SpeechLevel, cut_noise, last_offset, mix
from daisy_jax.errors import InputError
from daisy_jax.reporting import leave_out_item
from daisy_jax.whole_files import read_text

CLEAN = float("inf")
"""The signal-to-noise ratio of clean speech."""
RECIPES: dict[str, dict[float, float]] = {"paper": {CLEAN: 0.4, 10: 0.3, 5: 0.2, 0: 0.1}}
"""Shares of the utterances by signal-to-noise ratio, dB. Paper: section 4.3."""
NoisePart: TypeAlias = Literal["train", "dev", "test"]
HELD_OUT = 0.1
"""Share of the noise recordings for development, and as much for test."""
ATTEMPTS = 100
"""Cuts that are tried until one is not silent."""


class Draw(NamedTuple):
    """The noise of an utterance."""

    noise: int
    """Number of the recording."""
    offset: int
    """Its first sample, at 16 kHz."""


def drawn(seed: int, *key: object) -> int:
    """A number from 0 to 2**64 - 1."""
    text = "\n".join(map(str, (seed, *key)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def label(snr: float) -> str:
    """What a signal-to-noise ratio is called: "clean", "10 dB"."""
    return "clean" if snr == CLEAN else f"{snr:g} dB"


def require_snrs(snrs: Iterable[float]) -> None:
    """Refuses signal-to-noise ratios that mean nothing."""
    snrs = list(snrs)
    if not snrs or any(not (abs(snr) <= 100 or snr == CLEAN) for snr in snrs):
        raise InputError(f"snrs are {snrs}; give dB from -100 to 100, such as 10 5 0")


def draw_snrs(
    names: Sequence[str], shares: dict[float, float], seed: int
) -> Float[np.ndarray, " utterances"]:
    """A signal-to-noise ratio for each utterance, dB, infinite for clean ones.

    The shares of the ratios, which add up to 1, are exact up to rounding.
    """
    order = sorted(range(len(names)), key=lambda index: drawn(seed, "level", names[index]))
    ends = np.round(np.cumsum(list(shares.values())) * len(names)).astype(int)
    snrs = np.empty(len(names))
    snrs[order] = np.repeat(np.asarray(list(shares), float), np.diff(ends, prepend=0))
    return snrs


def speaker(name: str, table: dict[str, str]) -> str | None:
    """Who speaks in a recording; None if that is not known.

    Args:
      name: its path. LibriSpeech's SPEAKER-CHAPTER-NUMBER and VoxCeleb's idNNNNN tell by
        themselves.
      table: speakers by path, or by the file's name without its ending.
    """
    path = pathlib.PurePath(name)
    for key in (name, path.name, path.stem):
        if key in table:
            return table[key]
    if re.fullmatch(r"\d+-\d+-\d+", path.stem):
        return path.stem.partition("-")[0]
    return next((part for part in path.parts if re.fullmatch(r"id\d{5}", part)), None)


def read_speakers(path: str | pathlib.Path) -> dict[str, str]:
    """A table of speakers: a line a recording, its name and then its speaker, as Kaldi's utt2spk.

    Raises:
      InputError: it is no such table.
    """
    rows = [line.split() for line in read_text(path).splitlines() if line.strip()]
    bad = next((row for row in rows if len(row) != 2), None)
    if bad is not None:
        raise InputError(f"{path}: {' '.join(bad)!r} is not a name and a speaker")
    return dict(rows)


def part_for(split: str) -> NoisePart:
    """The part of the noise recordings for a split of speech, by its name ("test-clean")."""
    found = re.match(r"(dev|test)(?![a-z])", pathlib.PurePath(split).name)
    return "train" if found is None else "dev" if found[1] == "dev" else "test"


def noise_part(noises: Corpus, part: NoisePart, seed: int) -> Corpus:
    """The recordings for training, development or test; no two parts share one.

    Raises:
      InputError: there are too few recordings for three parts.
    """
    count = len(noises.names)
    if count < 3:
        raise InputError(
            f"{', '.join(noises.names)}: too few recordings of noise for training, development and "
            "test; give at least three"
        )
    order = sorted(range(count), key=lambda index: drawn(seed, "part", noises.names[index]))
    held = max(1, round(HELD_OUT * count))
    parts = {"dev": order[:held], "test": order[held : 2 * held], "train": order[2 * held :]}
    return Selection(noises, np.sort(parts[part]))


def draw_noises(
    clean: Corpus, noises: Corpus, seed: int, speakers: dict[str, str] | None = None
) -> list[Draw]:
    """A noise for each utterance: a recording, and where the cut begins.

    Never of the utterance's own speaker, as far as speakers are known, and never a silent cut, or
    one that cannot be read. A recording that is longer than the utterance is cropped, a shorter one
    looped. The draw depends on the seed, and on the utterances' names and lengths.

    Raises:
      InputError: an utterance's own speaker is in all recordings, or only silence was found.
    """
    table = speakers or {}
    heard = [speaker(name, table) for name in noises.names]
    everybody = list(range(len(heard)))
    draws = []
    for name, length in zip(clean.names, clean.lengths.tolist(), strict=True):
        own = speaker(name, table)
        others = everybody
        if own is not None and own in heard:
            others = [index for index in everybody if heard[index] != own]
        if not others:
            raise InputError(f"{name}: every recording of the noise is of its speaker, {own}")
        draws.append(_draw_noise(name, length, noises, others, seed))
    return draws


def _draw_noise(name: str, samples: int, noises: Corpus, allowed: list[int], seed: int) -> Draw:
    """A cut for one utterance, out of the recordings with these numbers."""
    for attempt in range(ATTEMPTS):
        index = allowed[drawn(seed, "noise", name, attempt) % len(allowed)]
        last = last_offset(int(noises.lengths[index]), samples)
        offset = drawn(seed, "offset", name, attempt) % (last + 1)
        try:
            if np.any(cut_noise(noises, index, offset, samples)):
                return Draw(index, offset)
        except Exception as error:
            leave_out_item(noises.names[index], error)
    raise InputError(
        f"{name}: {ATTEMPTS} cuts of noise were all silent or unreadable; give other noise"
    )


def unknown_speakers(clean: Corpus, noises: Corpus, speakers: dict[str, str]) -> str:
    """A line about speakers that are not known, where the noise is speech; empty if all are.

    Noise counts as speech if a speaker of it is known, or if a part of its path is called "speech".
    """
    by_recording = [speaker(name, speakers) for name in noises.names]
    called = any("speech" in pathlib.PurePath(name).parts for name in noises.names)
    unheard = by_recording.count(None)
    unspoken = [speaker(name, speakers) for name in clean.names].count(None)
    if not (called or any(by_recording)) or not (unheard or unspoken):
        return ""
    return (
        f"the speakers of {unspoken} of {len(clean.names)} utterances and of {unheard} of "
        f"{len(by_recording)} recordings are not known (--speakers), so that somebody may be mixed "
        "with himself"
    )


class NoisyCorpus:
    """A corpus with noise mixed into each utterance; the names are the clean ones'.

    Samples are those of a 16-bit file. What exceeds full scale is made quieter as a whole until it
    does not: nothing is clipped, and the ratio of speech and noise stays.
    """

    def __init__(
        self,
        clean: Corpus,
        noises: Corpus,
        draws: list[Draw],
        snrs: Float[np.ndarray, " utterances"],
        level: SpeechLevel = "mean",
    ):
        """Mixes when it is read: to each utterance its noise, at its ratio in dB.

        An infinite ratio leaves it clean. `level` is the speech's, as for `mix`.
        """
        self.names, self.lengths = clean.names, clean.lengths
        self.clean, self.noises, self.draws, self.snrs = clean, noises, draws, snrs
        self._level: SpeechLevel = level

    def mixed(self, index: int) -> tuple[Waveform, float]:
        """One utterance, float32, and by what it was multiplied not to be too loud."""
        length = int(self.lengths[index])
        total = self.clean.read(index, 0, length)
        if self.snrs[index] != CLEAN:
            noise = cut_noise(self.noises, *self.draws[index], length)
            total = mix(total, noise, float(self.snrs[index]), self._level)
        peak = float(np.max(np.abs(total))) * audio.FULL_SCALE
        scale = (audio.FULL_SCALE - 1) / peak if peak > audio.FULL_SCALE - 1 else 1.0
        rounded = np.round(total.astype(np.float64) * (scale * audio.FULL_SCALE))
        return (rounded / audio.FULL_SCALE).astype(np.float32), scale

    def read(self, index: int, start: int, samples: int) -> Waveform:
        """As for every `Corpus`."""
        return self.mixed(index)[0][start : start + samples]
