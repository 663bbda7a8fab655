"""Aligns a transcribed corpus of English: when each word, phone and state is said.

    python train/align.py --data corpora/LibriSpeech --splits train-clean-100 --output runs/aligned

For train/pretrain.py --targets and eval/probe.py (extra "align"). Writes a TextGrid an utterance,
in the corpus' layout, with the tiers states, phones and words, and unknown_words.tsv: the words
that the dictionary lacks, how they were read, and how often they come. A run that was interrupted
goes on when it is started again; utterances that cannot be aligned are named.
"""

# First, so that Ctrl-C ends the program while everything else is loaded.
from daisy_jax.console.terminal import run_command, say

# isort: split

import dataclasses
import pathlib

import tyro


@dataclasses.dataclass(frozen=True)
class Config:
    """What to align."""

    data: str = "corpora/LibriSpeech"
    """Speech with transcripts: LibriSpeech's listings, or transcripts.tsv in the folder."""
    output: str = "runs/aligned"
    """The folder of the TextGrids."""
    splits: tuple[str, ...] = ()
    """Parts of the corpus (folders right below it); empty: everything."""


def main() -> int:
    config = tyro.cli(Config, description=__doc__)

    from daisy_jax.data.corpus import open_corpus, size_of
    from daisy_jax.data.labels.forced_alignment import align_corpus
    from daisy_jax.data.transcripts import transcripts

    corpus = open_corpus(config.data, config.splits)
    say(f"{config.data}: {size_of(corpus.lengths)}")
    texts = transcripts(config.data, corpus.names)
    failed, guessed = align_corpus(corpus, texts, pathlib.Path(config.output))
    say(
        f"{config.output}: {len(corpus.names) - failed} of {len(corpus.names)} utterances are "
        f"aligned; {guessed} words are in no dictionary (unknown_words.tsv)"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    run_command(main)
