"""`daisy-jax convert`: PyTorch weights to a model folder, and back."""

import dataclasses
from typing import Annotated, Literal

import tyro

from daisy_jax import InputError
from daisy_jax.console.terminal import say
from daisy_jax.conversions.convert import convert
from daisy_jax.conversions.export import export


@dataclasses.dataclass(frozen=True)
class Convert:
    """Converts a HuBERT checkpoint to a model folder that is read without torch.

    SRC is a checkpoint file of fairseq, s3prl, torchaudio or the DAISY authors, a folder or file of
    transformers (safetensors or .bin, whole or in shards), or the name of a model of the Hugging
    Face hub. No code inside a file is run. Every tensor is used or named as ignored, every
    parameter is filled, or nothing is written. A report says what was found and what to do next.

    With --to transformers SRC is a model folder, and DST becomes a transformers folder.
    """

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SRC")]
    """The checkpoint."""
    destination: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DST")]
    """The model folder to write; must not hold a model yet."""
    head_from: str | None = None
    """A fairseq or s3prl checkpoint of the same trunk, whose prediction head is taken over; stage 1
    needs it, and transformers' and torchaudio's files lack it."""
    branches_from: str | None = None
    """A DAISY checkpoint of the same trunk, whose early-exit branches are taken over."""
    num_heads: int = 0
    """Attention heads, for state dicts without configuration; 0: as HuBERT models of that width."""
    to: Literal["daisy", "transformers"] = "daisy"
    """The format to write."""

    def run(self) -> None:
        """Converts and prints a report."""
        if self.to == "daisy":
            report = convert(
                self.source,
                self.destination,
                head_from=self.head_from,
                branches_from=self.branches_from,
                num_heads=self.num_heads,
            )
        else:
            if self.head_from or self.branches_from or self.num_heads:
                raise InputError("--to transformers writes the trunk alone; leave the rest out")
            report = export(self.source, self.destination)
        say(report)
