"""Discrete units as text, a line a file, as fairseq and textless tools read it."""

import pathlib
from collections.abc import Sequence

from daisy_jax import FileResult, Hubert, InputError
from daisy_jax.console.terminal import say
from daisy_jax.exits import ExitRule, fixed_layer
from daisy_jax.features.codebook import Codebook, as_text, load_codebook
from daisy_jax.reporting import printable
from daisy_jax.whole_files import write_text

STDOUT = "-"


def codebook_for(
    source: str, model: Hubert, layer: int | None, exits: Sequence[str]
) -> tuple[Codebook, ExitRule]:
    """A codebook, and the exit at its layer.

    Args:
      source: a folder of train/units.py, or a .npy file.
      model: whose features become units.
      layer: `--layer`, or None.
      exits: names of the options about exits that were given.

    Raises:
      InputError: it belongs to another model or layer, or utterances were to leave elsewhere.
    """
    if list(exits) not in ([], ["--layer"]):
        others = ", ".join(name for name in exits if name != "--layer")
        raise InputError(
            f"units belong to one layer's output, at which everybody has to leave; leave {others} "
            "out"
        )
    codebook = load_codebook(source)
    chosen = codebook.layer_for(model, layer, source)
    rule = fixed_layer(chosen, model.config.num_layers)
    return codebook, rule._replace(name=f"layer {chosen}")


class UnitLines:
    """`NAME|1 2 3` for each file, or for a file that ends with .km the numbers alone.

    They are printed as they come, or written together in the end. In a .km, whose lines go with
    those of a list, a file that could not be encoded has an empty line.
    """

    def __init__(self, output: str, names: list[str], codebook: Codebook, collapse: bool):
        self._output, self._names = output, names
        self._codebook, self._collapse = codebook, collapse
        self._lines: list[str] = []

    def add(self, number: int, result: FileResult, saved: float) -> None:
        """As for every `Output`."""
        assert result.last_hidden is not None  # as it has no error
        text = as_text(self._codebook.units(result.last_hidden), self._collapse)
        line = f"{printable(self._names[number])}|{text}"
        if self._output == STDOUT:
            say(line, flush=True)
        else:
            self._lines.append(text if self._output.endswith(".km") else line)

    def leave_out(self, number: int) -> None:
        """As for every `Output`."""
        if self._output.endswith(".km"):
            self._lines.append("")

    def finish(self, total: str) -> None:
        """As for every `Output`: writes the lines, all of them or none."""
        if self._output != STDOUT:
            text = "".join(f"{line}\n" for line in self._lines)
            write_text(pathlib.Path(self._output), text)
