"""Loss and accuracy of every branch over a stage 1 run.

    python eval/curves.py RUN

Prints Markdown: the validation after each checkpoint (training, where there was no validation), a
column a layer. Draws both into RUN/curves.png where matplotlib is installed.
"""

# First, so that Ctrl-C ends the program while everything else is loaded.
from daisy_jax import InputError

# isort: split

import dataclasses
import pathlib
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import tyro
from jaxtyping import Float, Int

from daisy_jax.console.pages import table
from daisy_jax.console.pictures import save_picture
from daisy_jax.console.terminal import run_command, say
from daisy_jax.training.metrics_log import METRICS, read_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Config:
    """What to draw."""

    run: tyro.conf.Positional[str]
    """The run folder of train/branches.py."""
    rows: int = 10
    """Lines of the table, spread over the run."""


class Curves(NamedTuple):
    """What was logged of every layer."""

    step: Int[np.ndarray, " rows"]
    loss: Float[np.ndarray, "rows layers"]
    accuracy: Float[np.ndarray, "rows layers"]


def read(folder: pathlib.Path, prefix: str) -> Curves:
    """The lines that have losses by layer, whose names begin so."""
    names = ("step", f"{prefix}layer_loss", f"{prefix}layer_accuracy")
    lines = [line for line in read_metrics(folder) if names[1] in line]
    sizes = {np.shape(line.get(name, 0)) for line in lines for name in names[1:]}
    if len(sizes) > 1 or any(len(size) != 1 for size in sizes):
        raise InputError(
            f"{folder / METRICS}: its lines have other numbers of layers ({sorted(sizes)}); give "
            "the folder of one run"
        )
    return Curves(*(np.asarray([line[name] for line in lines]) for name in names))


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    folder = pathlib.Path(config.run)
    if not (folder / METRICS).is_file():
        raise InputError(
            f"{folder / METRICS}: no such file; give the run folder of train/branches.py"
        )
    training, validation = read(folder, ""), read(folder, "validation_")
    if not len(training.step):
        raise InputError(
            f"{folder / METRICS}: no losses by layer; give the run folder of train/branches.py"
        )
    name, shown = ("validation", validation) if len(validation.step) else ("training", training)
    stride = max(1, -(-len(shown.step) // max(config.rows, 1)))
    rows = [*range(stride - 1, len(shown.step), stride)]
    if rows[-1] != len(shown.step) - 1:
        rows.append(len(shown.step) - 1)
    header = ["step", *(str(layer + 1) for layer in range(shown.loss.shape[1]))]
    for what, values in (("loss", shown.loss), ("accuracy", shown.accuracy)):
        say(f"{name} {what}")
        body = [[str(shown.step[row]), *(f"{each:.3f}" for each in values[row])] for row in rows]
        say("\n".join(table(header, body)))
    save_picture(folder / "curves.png", lambda: draw(training, validation))


def draw(training: Curves, validation: Curves) -> "Figure":
    """Losses and accuracies over the steps, a line a layer."""
    import matplotlib
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    layers = training.loss.shape[1]
    colors = matplotlib.colormaps["viridis"](np.linspace(0, 1, layers))
    for axes, name in zip(panels, ("loss", "accuracy"), strict=True):
        for curves, style in ((training, "-"), (validation, "o")):
            for layer in range(layers if len(curves.step) else 0):
                label = f"layer {layer + 1}" if style == "-" and name == "loss" else None
                look = {"color": colors[layer], "linewidth": 1, "label": label}
                axes.plot(curves.step, getattr(curves, name)[:, layer], style, **look)
        axes.set(xlabel="step", ylabel="loss, nats" if name == "loss" else name)
    panels[0].set(yscale="log")
    figure.legend(loc="outside right center")
    figure.suptitle("lines: training; points: validation")
    return figure


if __name__ == "__main__":
    run_command(main)
