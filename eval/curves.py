"""Loss and accuracy of every branch over a stage 1 run.

    python eval/curves.py RUN

Prints Markdown: the validation after each checkpoint (training, where there was no validation), a
column a layer. Draws both into RUN/curves.png where matplotlib is installed.
"""

import dataclasses
import pathlib
from typing import TYPE_CHECKING, Any

import tyro

from daisy_jax import InputError
from daisy_jax.console.pages import table
from daisy_jax.console.pictures import save_picture
from daisy_jax.console.terminal import run_command
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


Line = dict[str, Any]


def read(path: pathlib.Path) -> tuple[list[Line], list[Line]]:
    """Lines of training and of validation, whose names then are the same."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the run folder of train/branches.py")
    lines = read_metrics(path.parent)
    training = [line for line in lines if "layer_loss" in line]
    validation = [
        {name.removeprefix("validation_"): value for name, value in line.items()}
        for line in lines
        if "validation_layer_loss" in line
    ]
    if not training:
        raise InputError(f"{path}: no losses by layer; give the run folder of train/branches.py")
    return training, validation


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    folder = pathlib.Path(config.run)
    training, validation = read(folder / METRICS)
    shown = validation or training
    stride = max(1, -(-len(shown) // max(config.rows, 1)))
    chosen = shown[stride - 1 :: stride]
    if chosen[-1] is not shown[-1]:
        chosen.append(shown[-1])
    layers = range(1, len(training[0]["layer_loss"]) + 1)
    for name in ("layer_loss", "layer_accuracy"):
        print(f"{'validation' if validation else 'training'} {name.removeprefix('layer_')}")
        rows = [[str(line["step"]), *(f"{value:.3f}" for value in line[name])] for line in chosen]
        print("\n".join(table(["step", *map(str, layers)], rows)))
    save_picture(folder / "curves.png", lambda: draw(training, validation))


def draw(training: list[Line], validation: list[Line]) -> "Figure":
    """Losses and accuracies over the steps, a line a layer."""
    import matplotlib
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    layers = len(training[0]["layer_loss"])
    colors = matplotlib.colormaps["viridis"](
        [layer / max(layers - 1, 1) for layer in range(layers)]
    )
    for axes, name in zip(panels, ("loss", "accuracy"), strict=True):
        for lines, style in ((training, "-"), (validation, "o")):
            steps = [line["step"] for line in lines]
            for layer in range(layers):
                values = [line[f"layer_{name}"][layer] for line in lines]
                label = f"layer {layer + 1}" if style == "-" and name == "loss" else None
                axes.plot(steps, values, style, color=colors[layer], linewidth=1, label=label)
        axes.set(xlabel="step", ylabel="loss, nats" if name == "loss" else name)
    panels[0].set(yscale="log")
    figure.legend(loc="outside right center")
    figure.suptitle("lines: training; points: validation")
    return figure


if __name__ == "__main__":
    run_command(main)
