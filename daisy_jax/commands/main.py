"""Parses the command line of `daisy-jax` and runs one command."""

import argparse
import sys
from typing import Annotated

import tyro

from daisy_jax.commands.calibrate import Calibrate
from daisy_jax.commands.check import Check
from daisy_jax.commands.convert import Convert
from daisy_jax.commands.encode import Encode
from daisy_jax.commands.extract import Extract
from daisy_jax.commands.info import Info
from daisy_jax.console.terminal import run_command

Command = (
    Annotated[Encode, tyro.conf.subcommand("encode")]
    | Annotated[Extract, tyro.conf.subcommand("extract")]
    | Annotated[Calibrate, tyro.conf.subcommand("calibrate")]
    | Annotated[Info, tyro.conf.subcommand("info")]
    | Annotated[Convert, tyro.conf.subcommand("convert")]
    | Annotated[Check, tyro.conf.subcommand("check")]
)


def main() -> None:
    """Entry point of `daisy-jax`."""
    run_command(_run)


def _run() -> int | None:
    words = sys.argv[1:]
    if words[:1] == ["encode"]:  # whose --manifest LIST has become `extract LIST`; until 0.2
        parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        parser.add_argument("--manifest")
        options, others = parser.parse_known_args(words[1:])
        if options.manifest is not None:
            words = ["extract", options.manifest, *others]
    command = tyro.cli(
        Command,
        prog="daisy-jax",
        args=words,
        description="HuBERT features with DAISY early exit: clean speech leaves the model early.",
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    return command.run()
