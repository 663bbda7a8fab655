"""LibriSpeech's parts.

Source: Panayotov et al., 2015; the folders are those of the corpus' archives.
"""

import pathlib

from daisy_jax.data.tfds import is_tfds_folder, spelt, split_names
from daisy_jax.whole_files import is_inside

TRAINING = ("train-clean-100", "train-clean-360", "train-other-500")
"""The 960 hours that HuBERT Base and the paper's branches were trained on."""
VALIDATION = "dev-clean"


def training_splits(folder: str | pathlib.Path, wanted: str = "") -> tuple[str, ...]:
    """The parts of a corpus to train on.

    Args:
      folder: any corpus.
      wanted: names with commas between them; empty: LibriSpeech's 960 hours, all three parts, where
        at least one of them is there; else no choice, which means everything.
    """
    if wanted:
        return tuple(name.strip() for name in wanted.split(",") if name.strip())
    return TRAINING if any(has_split(folder, split) for split in TRAINING) else ()


def has_split(folder: str | pathlib.Path, split: str) -> bool:
    """Whether a corpus has a part of this name; a path that leads elsewhere is none."""
    folder = pathlib.Path(folder)
    if is_tfds_folder(folder):
        return spelt(split) in split_names(folder)
    return is_inside(split) and (folder / split).is_dir()
