"""Decoding with a lexicon and a language model, on posteriors made by hand."""

import itertools

import numpy as np
import pytest

from daisy_jax.errors import InputError
from daisy_jax.tasks.asr import CHARACTERS
from daisy_jax.tasks.lexicon_decoding import lexicon_decoder, read_lexicon

pytest.importorskip("flashlight.lib.text")


def posteriors(*frames: str | dict[str, float]) -> np.ndarray:
    """Log probabilities [frames, 32]: a character of 0.9, or shares of several."""
    rows = np.full((len(frames), 32), 1e-4)
    for row, frame in zip(rows, frames, strict=True):
        for character, share in ({frame: 0.9} if isinstance(frame, str) else frame).items():
            row[CHARACTERS.index(character)] = share
    return np.log(rows / rows.sum(axis=1, keepdims=True))


@pytest.fixture
def lexicon(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("cat\nCAR\tC A R |\n\nSAT S A T |\n", encoding="utf-8")
    return path


def test_a_lexicon_may_leave_the_spelling_out(lexicon):
    words = read_lexicon(lexicon)
    spelt = {word: "".join(CHARACTERS[place] for place in word_) for word, word_ in words.items()}
    assert spelt == {"CAT": "CAT|", "CAR": "CAR|", "SAT": "SAT|"}


def test_only_words_of_the_lexicon_come_out(lexicon):
    decode = lexicon_decoder(lexicon)
    heard = posteriors("C", "A", "<s>", {"D": 0.6, "T": 0.3}, "|", "S", "A", "T", "|", "</s>")
    assert decode(heard) == "CAT SAT"
    assert decode(posteriors("<s>", "<s>", "</s>")) == ""
    assert decode(np.zeros((0, 32))) == ""


def test_a_wide_beam_finds_the_best_path(lexicon):
    """Against all paths of six frames of few characters; between words `|` may be repeated."""
    rng = np.random.default_rng(0)
    words = {tuple(spelling[:-1]): word for word, spelling in read_lexicon(lexicon).items()}
    letters = [CHARACTERS.index(c) for c in ("<s>", "C", "A", "T", "R", "S", "|")]
    end = letters[-1]
    found = set()
    for _ in range(6):
        logits = np.full((6, 32), -30.0)
        logits[:, letters] = rng.normal(0, 2, (6, len(letters)))
        log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        scores = {}
        for path in itertools.product(letters, repeat=6):
            heard = [place for place, _ in itertools.groupby(path) if place]
            if heard and heard[-1] != end:
                continue
            groups = [
                tuple(group) for is_end, group in itertools.groupby(heard, end.__eq__) if not is_end
            ]
            if all(group in words for group in groups):
                text = " ".join(words[group] for group in groups)
                score = log_probs[np.arange(6), path].sum() - len(groups)  # -1 a word
                scores[text] = max(score, scores.get(text, -np.inf))
        wanted = max(scores, key=lambda text: scores[text])
        assert lexicon_decoder(lexicon, beam=500)(log_probs) == wanted
        found.add(wanted)
    assert len(found) > 1


def test_a_language_model_decides_between_equals(lexicon, tmp_path):
    pytest.importorskip("kenlm")
    model = tmp_path / "words.arpa"
    model.write_text(
        "\\data\\\nngram 1=6\nngram 2=1\n\n\\1-grams:\n-1.0\t<unk>\n-99\t<s>\t-0.3\n-1.0\t</s>\n"
        "-1.5\tCAT\t-0.3\n-0.5\tCAR\t-0.3\n-0.9\tSAT\t-0.3\n\n"
        "\\2-grams:\n-0.1\tCAT SAT\n\n\\end\\\n"
    )
    either = {"T": 0.45, "R": 0.45}
    decode = lexicon_decoder(lexicon, model, lm_weight=3.0)
    assert decode(posteriors("C", "A", either, "|", "</s>")) == "CAR"
    followed = posteriors("C", "A", either, "|", "S", "A", "T", "|", "</s>")
    assert decode(followed) == "CAT SAT"


def test_mistakes_are_named(lexicon, tmp_path):
    with pytest.raises(InputError, match="no such lexicon"):
        lexicon_decoder(tmp_path / "none.txt")
    with pytest.raises(InputError, match="no such language model"):
        lexicon_decoder(lexicon, tmp_path / "none.arpa")
    empty, strange = tmp_path / "empty.txt", tmp_path / "strange.txt"
    empty.write_text("\n")
    with pytest.raises(InputError, match="holds no word"):
        read_lexicon(empty)
    strange.write_text("CAT\nÜBER\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"strange\.txt:2: 'Ü' is none of the heads' characters"):
        read_lexicon(strange)
