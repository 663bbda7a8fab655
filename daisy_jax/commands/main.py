"""Parses the command line of `daisy-jax` and runs one command."""

from typing import Annotated

import tyro

from daisy_jax.commands.calibrate import Calibrate
from daisy_jax.commands.convert import Convert
from daisy_jax.commands.encode import Encode
from daisy_jax.commands.info import Info
from daisy_jax.console.terminal import run_command

Command = (
    Annotated[Encode, tyro.conf.subcommand("encode")]
    | Annotated[Calibrate, tyro.conf.subcommand("calibrate")]
    | Annotated[Info, tyro.conf.subcommand("info")]
    | Annotated[Convert, tyro.conf.subcommand("convert")]
)


def main() -> None:
    """Entry point of `daisy-jax`."""
    command = tyro.cli(
        Command,
        prog="daisy-jax",
        description="HuBERT features with DAISY early exit: clean speech leaves the model early.",
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
    )
    run_command(command.run)
