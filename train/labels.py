"""Stores HuBERT's own frame labels of a corpus, for train/branches.py --labels.

    python train/labels.py --model runs/hubert-base --data corpora/LibriSpeech --output runs/labels

For a trunk without a prediction head whose labels another model gives, and to label once what is
trained on often. Labels are those of whole utterances on unmasked input, at most a minute long. A
run that was interrupted goes on when it is started again.
"""

# First, so that Ctrl-C ends the program while everything else is loaded.
from daisy_jax.accelerator import Accelerator, use_accelerator

# isort: split

import dataclasses
from typing import Literal

import tyro

from daisy_jax.console.terminal import run_command, say


@dataclasses.dataclass(frozen=True)
class Config:
    """What to label."""

    model: str = "runs/hubert-base"
    """A model folder with HuBERT's prediction head."""
    data: str = "corpora/LibriSpeech"
    """Speech, as for train/branches.py."""
    output: str = "runs/labels"
    """The feature store of the labels; four bytes a frame."""
    splits: str = ""
    """Parts of the data; empty: LibriSpeech's 960 h and dev-clean where they are there, else
    everything."""
    batch_seconds: float = 160.0
    """Audio in a batch."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """What the model computes in; float32 without TF32, which GPUs take otherwise."""
    accelerator: Accelerator = "auto"
    """Where to compute."""


def main() -> int:
    config = tyro.cli(Config, description=__doc__)
    use_accelerator(config.accelerator, dtype=config.dtype)

    import numpy as np

    import daisy_jax
    from daisy_jax import InputError, load
    from daisy_jax.data.corpus import open_corpus
    from daisy_jax.data.librispeech import VALIDATION, has_split, training_splits
    from daisy_jax.features import contents
    from daisy_jax.features.extract import Extractor, extract_corpus

    model = load(config.model, config.dtype)
    extractor = Extractor(model, contents.labels(), config.batch_seconds)
    splits = training_splits(config.data, config.splits)
    if splits and not config.splits and has_split(config.data, VALIDATION):
        splits += (VALIDATION,)
    corpus = open_corpus(config.data, splits)
    longest = int(np.argmax(corpus.lengths))
    seconds = corpus.lengths[longest] / daisy_jax.audio.SAMPLE_RATE
    if seconds > 60:
        raise InputError(
            f"{corpus.names[longest]}: {seconds:.0f} s long; labels are those of utterances of up "
            "to a minute, so split it"
        )
    store = extract_corpus(config.output, extractor, corpus, config.data, verify=True)
    labelled, _ = store.of(corpus)  # says which utterances could not be read
    failed = len(corpus.names) - len(labelled.names)
    say(f"{config.output}: labels of {len(labelled.names)} utterances, {failed} missing")
    return 1 if failed else 0


if __name__ == "__main__":
    run_command(main)
