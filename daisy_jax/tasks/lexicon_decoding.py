"""Decoding with a lexicon, and with a word language model where there is one.

Source: flashlight's beam search (Pratap et al. 2019), through the package flashlight-text.
"""

import math
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from daisy_jax.errors import InputError
from daisy_jax.tasks.asr import CHARACTERS, NUMBERS
from daisy_jax.whole_files import read_text

if TYPE_CHECKING:
    from flashlight.lib.text.decoder.kenlm import KenLM

WORD_END = NUMBERS["|"]


def read_lexicon(path: str | pathlib.Path) -> dict[str, list[int]]:
    """Words and their spelling: a line a word, `WORD W O R D |`; the spelling may be left out.

    Raises:
      InputError: the file is missing, or a spelling has a character that the task heads have not.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such lexicon; give a file with a word a line")
    words: dict[str, list[int]] = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        word, *spelling = line.upper().split() or [""]
        if not word:
            continue
        letters = spelling or [*word, "|"]
        unknown = [letter for letter in letters if letter not in NUMBERS]
        if unknown:
            raise InputError(f"{path}:{number}: {unknown[0]!r} is none of the heads' characters")
        words[word] = [NUMBERS[letter] for letter in letters]
    if not words:
        raise InputError(f"{path}: holds no word; give a file with a word a line")
    return words


def lexicon_decoder(
    lexicon: str | pathlib.Path,
    language_model: str | pathlib.Path = "",
    *,
    beam: int = 50,
    lm_weight: float = 2.0,
    word_score: float = -1.0,
) -> Callable[[Float[np.ndarray, "frames 32"]], str]:
    """A beam search over the words of a lexicon.

    Args:
      lexicon: as `read_lexicon` takes it.
      language_model: a KenLM file (ARPA or binary) over upper-case words; empty: all words are
        equally likely. Needs the package kenlm.
      beam: hypotheses that are kept.
      lm_weight: of the language model's log probability.
      word_score: added for each word.

    Returns:
      A function from log probabilities to the text.

    Raises:
      InputError: a file is missing or not as it should be.
    """
    from flashlight.lib.text.decoder import (
        CriterionType,
        LexiconDecoder,
        LexiconDecoderOptions,
        SmearingMode,
        Trie,
        ZeroLM,
    )

    words = read_lexicon(lexicon)
    names = list(words)
    if language_model:
        lm, numbers = _language_model(language_model, names)
    else:
        lm, numbers = ZeroLM(), {name: number for number, name in enumerate(names)}
    trie = Trie(len(CHARACTERS), WORD_END)
    start = lm.start(False)
    for name, spelling in words.items():
        _, score = lm.score(start, numbers[name])
        trie.insert(spelling, numbers[name], score)
    trie.smear(SmearingMode.MAX)
    options = LexiconDecoderOptions(
        beam_size=beam,
        beam_size_token=len(CHARACTERS),
        beam_threshold=50.0,
        lm_weight=lm_weight if language_model else 0.0,
        word_score=word_score,
        unk_score=-math.inf,
        sil_score=0.0,
        log_add=False,
        criterion_type=CriterionType.CTC,
    )
    decoder = LexiconDecoder(options, trie, lm, WORD_END, 0, -1, [], False)
    by_number = {number: name for name, number in numbers.items()}

    def decode(log_probs: Float[np.ndarray, "frames 32"]) -> str:
        emissions = np.ascontiguousarray(log_probs, np.float32).copy()
        # What ends an utterance is spoken by nobody: to the search it is one more blank.
        emissions[:, 0] = np.logaddexp(emissions[:, 0], emissions[:, NUMBERS["</s>"]])
        hypotheses = decoder.decode(emissions.ctypes.data, *emissions.shape)
        if not hypotheses:
            return ""
        return " ".join(by_number[word] for word in hypotheses[0].words if word in by_number)

    return decode


def _language_model(path: str | pathlib.Path, names: list[str]) -> tuple["KenLM", dict[str, int]]:
    """Flashlight's KenLM, and the words' numbers in it."""
    import importlib.util

    from flashlight.lib.text.decoder.kenlm import KenLM
    from flashlight.lib.text.dictionary import Dictionary

    if not pathlib.Path(path).is_file():
        raise InputError(f"{path}: no such language model; give a KenLM file")
    if importlib.util.find_spec("kenlm") is None:
        raise InputError(
            f"{path}: a language model needs the package kenlm, which pip builds with a C++ "
            "compiler and CMake: pip install kenlm"
        )
    dictionary = Dictionary([*names, "<unk>"])
    dictionary.set_default_index(dictionary.get_index("<unk>"))
    numbers = {name: dictionary.get_index(name) for name in names}
    return KenLM(str(path), dictionary), numbers
