"""LibriSpeech's parts and transcripts, and those of Libri-light's 10 hours, which look the same.

Source: Panayotov et al., 2015; Kahn et al., 2020; the folders are those of the corpora's archives.
"""

import pathlib

from daisy_jax.data.corpus import Corpus
from daisy_jax.data.tfds import is_tfds_folder, spelt, split_names
from daisy_jax.errors import InputError
from daisy_jax.whole_files import is_inside, read_text

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


def transcripts(folder: str | pathlib.Path, corpus: Corpus) -> list[str]:
    """What is said in each utterance of a corpus below `folder`, from `SPEAKER-CHAPTER.trans.txt`.

    Raises:
      InputError: a transcript is missing, with the file in which it was expected.
    """
    listings: dict[pathlib.Path, dict[str, str]] = {}
    texts = []
    for name in corpus.names:
        path = pathlib.Path(folder, name)
        listing = path.with_name(f"{path.stem.rpartition('-')[0]}.trans.txt")
        if listing not in listings:
            if not listing.is_file():
                raise InputError(f"{path}: no transcript; expected in {listing}")
            lines = read_text(listing).splitlines()
            # Between name and text, any white space; a line may have a name alone.
            pairs = [(*line.split(maxsplit=1), "", "")[:2] for line in lines]
            listings[listing] = {name: text.strip() for name, text in pairs}
        if path.stem not in listings[listing]:
            raise InputError(f"{listing}: has no line for {path.stem}; unpack the archive again")
        texts.append(listings[listing][path.stem])
    return texts
