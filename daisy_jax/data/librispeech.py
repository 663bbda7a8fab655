"""LibriSpeech's parts.

Source: Panayotov et al., 2015; the folders are those of the corpus' archives.
"""

import json
import pathlib

from daisy_jax.data.tfds import INFO, is_tfds_folder

TRAINING = ("train-clean-100", "train-clean-360", "train-other-500")
"""The 960 hours that HuBERT Base and the paper's branches were trained on."""


def training_splits(folder: str | pathlib.Path, wanted: str = "") -> tuple[str, ...]:
    """The parts of a corpus to train on.

    Args:
      folder: any corpus.
      wanted: names with commas between them; empty: LibriSpeech's 960 hours, all three parts, where
        at least one of them is there; else no choice, which means everything.
    """
    if wanted:
        return tuple(name.strip() for name in wanted.split(",") if name.strip())
    folder = pathlib.Path(folder)
    if is_tfds_folder(folder):
        info = json.loads((folder / INFO).read_text(encoding="utf-8"))
        names = {split["name"].replace("_", "") for split in info["splits"]}
        found = any(split.replace("-", "") in names for split in TRAINING)
    else:
        found = any((folder / split).is_dir() for split in TRAINING)
    return TRAINING if found else ()
