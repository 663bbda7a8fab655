"""When each word, phone and state of a transcript is said, by PocketSphinx' English model.

Its acoustic model was trained with transcripts, so that what is trained on these labels is not
purely self-supervised. Model and dictionary (the CMU Pronouncing Dictionary) come with the
package `pocketsphinx`, under BSD-style licences.
"""

import collections
import pathlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from daisy_jax import audio
from daisy_jax.data.corpus import Corpus
from daisy_jax.data.labels.alignments import SUFFIX, Interval, write_alignment
from daisy_jax.errors import InputError, said_of
from daisy_jax.reporting import followed, leave_out
from daisy_jax.whole_files import write_text

FRAME = 0.01
"""Seconds between two frames of the recogniser."""
WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")
"""Words of a text, with their apostrophes."""
SPELLINGS = {
    **{"eigh": "EY", "igh": "AY", "tch": "CH", "sch": "SH", "ph": "F", "th": "TH", "sh": "SH"},
    **{"ch": "CH", "ck": "K", "ng": "NG", "qu": "K W", "wh": "W", "wr": "R", "kn": "N"},
    **{"oo": "UW", "ee": "IY", "ea": "IY", "ai": "EY", "ay": "EY", "oa": "OW", "ow": "OW"},
    **{"ou": "AW", "oi": "OY", "oy": "OY", "au": "AO", "aw": "AO", "ie": "IY", "ew": "UW"},
    **{"a": "AE", "b": "B", "c": "K", "d": "D", "e": "EH", "f": "F", "g": "G", "h": "HH"},
    **{"i": "IH", "j": "JH", "k": "K", "l": "L", "m": "M", "n": "N", "o": "AA", "p": "P"},
    **{"r": "R", "s": "S", "t": "T", "u": "AH", "v": "V", "w": "W", "x": "K S", "y": "IY"},
    **{"z": "Z", "æ": "IY", "œ": "IY"},
}
"""How letters are mostly said in English, in the dictionary's phones; longer ones count first."""
LETTERS = re.compile("|".join(sorted(SPELLINGS, key=len, reverse=True)))


class Alignment(NamedTuple):
    """Of one utterance; each tier covers all of it."""

    tiers: dict[str, list[Interval]]
    """"states" (a phone and its place in it, such as "AH_1"), "phones" and "words"."""
    guessed: list[str]
    """Words that the dictionary lacks, which were read letter by letter."""


def align(waveform: Float[np.ndarray, " samples"], text: str) -> Alignment:
    """Finds words, phones and states.

    Args:
      waveform: 16 kHz.
      text: what is said. Case and punctuation do not matter, digits cannot be read.

    Raises:
      InputError: the text has no word or has digits, or it does not fit the recording.
    """
    words = _words(text)
    digits = re.findall(r"\S*\d\S*", text)
    if digits or not words:
        raise InputError(f"{(digits or [text])[0]!r}: cannot be read; spell it out in words")
    # A new one for each utterance: it adapts to what it hears, and results would depend on what
    # came before.
    decoder = _decoder()
    guessed = [word for word in dict.fromkeys(words) if not decoder.lookup_word(word)]
    for word in guessed:
        decoder.add_word(word, pronunciation(word), True)
    samples = np.clip(np.round(waveform * 32_768), -32_768, 32_767).astype("<i2").tobytes()
    try:
        decoder.set_align_text(" ".join(words))
        _decode(decoder, samples)
        if decoder.hyp() is None:
            raise InputError(f"{text[:60]!r}: the recording does not fit it")
        decoder.set_alignment()
        _decode(decoder, samples)
    except RuntimeError:
        raise InputError(f"{text[:60]!r}: the recording does not fit it") from None
    return Alignment(_tiers(decoder, len(waveform) / audio.SAMPLE_RATE), guessed)


def _words(text: str) -> list[str]:
    return [word.lower() for word in WORD.findall(text)]


def _decoder() -> Any:
    """PocketSphinx, with its own English model and dictionary."""
    from pocketsphinx import Decoder

    # With its lattice search (`bestpath`), a fifth of LibriSpeech's utterances fail in the second
    # pass, which finds phones and states.
    return Decoder(lm=None, bestpath=False, loglevel="FATAL")


def _decode(decoder: Any, samples: bytes) -> None:
    decoder.start_utt()
    decoder.process_raw(samples, full_utt=True)
    decoder.end_utt()


def _tiers(decoder: Any, seconds: float) -> dict[str, list[Interval]]:
    """All that the second pass has found."""
    states, phones, words = [], [], []
    for word in decoder.get_alignment():
        words.append(_interval(word, re.sub(r"\(\d+\)$", "", word.name)))
        for phone in word:
            phones.append(_interval(phone, phone.name))
            states += [_interval(s, f"{phone.name}_{n}") for n, s in enumerate(phone)]
    tiers = {"states": states, "phones": phones, "words": words}
    return {name: _up_to(intervals, seconds) for name, intervals in tiers.items()}


def _interval(entry: Any, label: str) -> Interval:
    """What one entry of PocketSphinx' alignment says."""
    return Interval(entry.start * FRAME, (entry.start + entry.duration) * FRAME, label)


def _up_to(intervals: list[Interval], seconds: float) -> list[Interval]:
    """The last interval ends with the recording, not with the recogniser's last whole frame."""
    inside = [interval for interval in intervals if interval.start < seconds]
    return [*inside[:-1], inside[-1]._replace(end=seconds)]


def pronunciation(word: str) -> str:
    """A guess at how an English word is said, from its letters, in the dictionary's phones."""
    plain = word.lower().replace("'", "")
    phones = [SPELLINGS[letters] for letters in LETTERS.findall(re.sub(r"(?<=\w\w)e$", "", plain))]
    once = [phone for n, phone in enumerate(phones) if n == 0 or phone != phones[n - 1]]
    return " ".join(once) or "AH"


def align_corpus(corpus: Corpus, texts: Sequence[str], folder: pathlib.Path) -> tuple[int, int]:
    """Writes a TextGrid for each utterance, in the corpus' layout; those that are there stay.

    What cannot be aligned is left out. `unknown_words.tsv` lists the words of all texts that the
    dictionary lacks, how they are read and how often they come.

    Returns:
      how many utterances could not be aligned, and how many words are unknown.
    """
    failed = 0
    for index, name in enumerate(followed(corpus.names, "aligning")):
        path = (folder / name).with_suffix(SUFFIX)
        if path.is_file():
            continue
        length = int(corpus.lengths[index])
        try:
            alignment = align(corpus.read(index, 0, length), texts[index])
        except Exception as error:
            failed += 1
            said = isinstance(error, InputError)
            leave_out(f"{name}: {error}" if said else said_of(name, error))
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        write_alignment(path, length / audio.SAMPLE_RATE, alignment.tiers)
    unknown = unknown_words(texts)
    rows = [f"{word}\t{pronunciation(word)}\t{count}\n" for word, count in unknown.most_common()]
    write_text(folder / "unknown_words.tsv", "".join(rows))
    return failed, len(unknown)


def unknown_words(texts: Sequence[str]) -> collections.Counter[str]:
    """The words of some texts that the dictionary lacks, and how often they come."""
    decoder = _decoder()
    counts = collections.Counter(word for text in texts for word in _words(text))
    known = [word for word in counts if decoder.lookup_word(word)]
    for word in known:
        del counts[word]
    return counts
