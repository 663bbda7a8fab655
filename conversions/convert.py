"""Converts a HuBERT checkpoint of another library into a model folder for `daisy_jax.load`.

    python conversions/convert.py SRC DST

SRC is a folder of transformers: `config.json` with `model.safetensors` or `pytorch_model.bin`,
whole or in shards. Models with a CTC or classification head give their trunk. Only `.bin` files
need torch; no code inside them is run. A report says what was used, and what the model can do.
`daisy-jax convert` does the same.
"""

import dataclasses
from typing import Annotated

import tyro

from daisy_jax.terminal import run_command


@dataclasses.dataclass(frozen=True)
class Config:
    """What to convert."""

    src: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SRC")]
    """The checkpoint: a folder that transformers' `save_pretrained` wrote, or a download of one."""
    dst: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DST")]
    """The model folder to write; must not hold a model yet."""


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    from daisy_jax.conversions.convert import convert

    print(convert(config.src, config.dst))


if __name__ == "__main__":
    run_command(main)
