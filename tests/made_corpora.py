"""Corpora of made sound: in memory, and the four tasks' in their own layouts."""

import pathlib

import numpy as np
import sounds

WORDS = "THE CAT SAT ON A MAT IT'S HOT".split()  # noqa: SIM905


class Arrays:
    """A corpus in memory."""

    def __init__(self, *recordings, **named):
        recordings += tuple(named.values())
        self.recordings = [np.asarray(recording, np.float32) for recording in recordings]
        self.names = [*map(str, range(len(recordings) - len(named))), *named]
        self.lengths = np.array([len(recording) for recording in recordings])

    def read(self, index, start, samples):
        return self.recordings[index][start : start + samples]


def librispeech(folder: pathlib.Path, split: str, speakers: int, each: int) -> pathlib.Path:
    """`SPLIT/SPEAKER/CHAPTER/SPEAKER-CHAPTER-NNNN.flac` and a listing of texts a chapter."""
    for speaker in range(1, speakers + 1):
        place, lines = folder / split / str(speaker) / "7", []
        for number in range(each):
            name = f"{speaker}-7-{number:04}"
            seconds = 0.5 + 0.1 * number + 0.05 * speaker
            sounds.write(place / f"{name}.flac", sounds.syllables(seconds, 10 * speaker + number))
            words = " ".join(WORDS[number % 5 : number % 5 + 3])
            lines.append(f"{name} {words}\n")
        (place / f"{speaker}-7.trans.txt").write_text("".join(lines), encoding="utf-8")
    return folder


def voxceleb(folder: pathlib.Path, speakers: int, each: int, wav: str = "wav") -> pathlib.Path:
    """Of each speaker the last two utterances are to develop and to test."""
    lines = []
    for speaker in range(speakers):
        for number in range(each):
            path = f"id{10_001 + speaker}/video/{number:05}.wav"
            voice = sounds.syllables(0.6 + 0.02 * number, 100 * speaker + number)
            sounds.write(folder / wav / path, voice * (0.2 + 0.3 * speaker))
            part = {each - 1: 3, each - 2: 2}.get(number, 1)
            lines.append(f"{part} {path}\n")
    (folder / "iden_split.txt").write_text("".join(lines), encoding="utf-8")
    return folder


def voicebank(folder: pathlib.Path) -> pathlib.Path:
    """Speakers p226 (held out) and p300 to train, p232 to test."""
    rng = np.random.default_rng(0)
    for part, names in (
        ("trainset_28spk", ["p226_001", "p226_002", "p300_001", "p300_002", "p300_003"]),
        ("testset", ["p232_001", "p232_002"]),
    ):
        for number, name in enumerate(names):
            clean = sounds.syllables(1.0 + 0.1 * number, number)
            noise = 0.02 * rng.standard_normal(len(clean))
            for kind, samples in (("clean", clean), ("noisy", clean + noise)):
                sounds.write(folder / f"{kind}_{part}_wav_16k" / f"{name}.wav", samples)
    return folder


def libri2mix(folder: pathlib.Path, counts: dict[str, int]) -> pathlib.Path:
    """16 kHz, "min", without noise."""
    for part, count in counts.items():
        for number in range(count):
            seconds = 0.8 + 0.1 * number
            sources = [sounds.syllables(seconds, 2 * number + which) for which in range(2)]
            place = folder / "wav16k" / "min" / part
            for kind, samples in (("s1", sources[0]), ("s2", sources[1])):
                sounds.write(place / kind / f"{number}.wav", samples)
            sounds.write(place / "mix_clean" / f"{number}.wav", sources[0] + sources[1])
    return folder
