"""Decodes folders of sound files into a prepared folder, which training reads without decoding.

    python train/prepare.py FOLDER... --output PREPARED
    python train/prepare.py --verify --output PREPARED

Any format of libsndfile, any sampling rate; 16 kHz 16-bit files keep their very samples. Files that
cannot be read are named and left out. Needs about 1.9 MB a minute of audio.
"""

# First, so that Ctrl-C ends the program while everything else is loaded.
from daisy_jax import InputError

# isort: split

import dataclasses
import pathlib
from typing import Annotated

import tyro

from daisy_jax.console.terminal import run_command, say
from daisy_jax.data.prepared import PreparedCorpus, prepare


@dataclasses.dataclass(frozen=True)
class Config:
    """What to prepare."""

    folders: tyro.conf.Positional[tuple[str, ...]]
    """Folders of sound files, searched recursively."""
    output: Annotated[str, tyro.conf.arg(metavar="PREPARED")]
    """The prepared folder; made if absent."""
    verify: bool = False
    """Instead: read all samples of PREPARED, and say whether they are those that were written."""


def main() -> int:
    config = tyro.cli(Config, description=__doc__)
    if config.verify and not config.folders:
        PreparedCorpus(pathlib.Path(config.output)).verify()
        say(f"{config.output}: whole")
        return 0
    if config.verify or not config.folders:
        raise InputError("give folders to prepare, or --verify without folders")
    count, left_out = prepare(config.folders, config.output)
    say(f"{config.output}: {count} utterances, {left_out} files left out")
    return 0


if __name__ == "__main__":
    run_command(main)
