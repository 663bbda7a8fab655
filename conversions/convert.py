"""Converts a HuBERT checkpoint of another library into a model folder for `daisy_jax.load`.

    python conversions/convert.py SRC DST

The same as `daisy-jax convert`; docs/checkpoints.md lists checkpoints and what is in them.
"""

# First, so that Ctrl-C ends the program while everything else is loaded.
from daisy_jax.commands.convert import Convert

# isort: split

import tyro

from daisy_jax.console.terminal import run_command


def main() -> None:
    tyro.cli(Convert).run()


if __name__ == "__main__":
    run_command(main)
