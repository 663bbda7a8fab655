"""Mean entropy of every branch on any number of data sets: figure 2 of the paper.

    python eval/entropy.py clean=corpora/LibriSpeech/dev-clean other=corpora/LibriSpeech/dev-other

Prints Markdown: a row a data set, with the straight line fitted to mean entropy over depth and its
r squared. With --output also entropy.json and, where matplotlib is installed, entropy.png.
"""

import dataclasses
import pathlib
from typing import TYPE_CHECKING, Annotated, NamedTuple

import numpy as np
import tyro
from jaxtyping import Float

from daisy_jax import InputError, audio, calibrate, load
from daisy_jax.accelerator import Accelerator, use_accelerator
from daisy_jax.console.pages import table
from daisy_jax.console.pictures import save_picture
from daisy_jax.console.terminal import run_command, say, shown_after
from daisy_jax.data.batches import WholeBatches, read_whole
from daisy_jax.data.corpus import open_corpus
from daisy_jax.reporting import followed
from daisy_jax.whole_files import write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure."""

    sets: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="NAME=FOLDER...")]
    """Data sets: a name for the table and the picture, and a folder of sound files, a prepared
    folder, or one of tensorflow-datasets."""
    model: str = ""
    """A model folder with branches; empty: the packaged model."""
    output: str = ""
    """Folder for entropy.json and entropy.png; empty: print only."""
    batch_seconds: float = 60.0
    """Audio in a batch."""
    accelerator: Accelerator = "auto"
    """Where to compute."""


class Line(NamedTuple):
    """One data set in the picture: its mean entropies by layer, nats, and the line through them."""

    label: str
    mean: Float[np.ndarray, " layers"]
    fitted: Float[np.ndarray, " layers"]


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    use_accelerator(config.accelerator)
    model = load(config.model or None)
    pairs = [text.partition("=") for text in config.sets]
    for text, (name, _, folder) in zip(config.sets, pairs, strict=True):
        if not name or not folder:
            raise InputError(f"{text!r} is no NAME=FOLDER; give for example clean=SPEECH/dev-clean")
    layers = np.arange(1, model.config.num_layers + 1)
    sets, body, lines = [], [], []
    for name, _, folder in pairs:
        corpus = open_corpus(folder)
        draw_batch = WholeBatches(corpus.lengths, round(config.batch_seconds * audio.SAMPLE_RATE))
        numbers = followed(range(len(draw_batch)), name)
        batches = (read_whole(corpus, draw_batch(number)) for number in numbers)
        calibration = calibrate(model, batches, folder)
        count, hours = len(calibration.entropy), corpus.lengths.sum() / audio.SAMPLE_RATE / 3600
        mean = np.asarray(calibration.mean_entropy, np.float64)
        slope, intercept = np.polyfit(layers, mean, 1)
        r_squared = np.corrcoef(layers, mean)[0, 1] ** 2
        sets.append(
            {
                "name": name,
                "folder": folder,
                "utterances": count,
                "hours": float(hours),
                "mean_entropy": mean.tolist(),
                "standard_deviation": np.std(calibration.entropy, axis=0).tolist(),
                "slope": float(slope),
                "intercept": float(intercept),
                "r_squared": float(r_squared),
            }
        )
        cells = [name, str(count), f"{hours:.3g}", *(f"{value:.3f}" for value in mean)]
        body.append([*cells, f"{slope:.4f}", f"{r_squared:.3f}"])
        lines.append(Line(f"{name} (r² {r_squared:.2f})", mean, intercept + slope * layers))
    header = ["data set", "utterances", "hours", *map(str, layers), "slope", "r squared"]
    folder, name = pathlib.Path(config.output), config.model or "daisy-tiny"
    with shown_after("\n".join(table(header, body))):
        if config.output:
            write_json(folder / "entropy.json", {"model": name, "sets": sets})
    if config.output:
        say(f"written: {folder / 'entropy.json'}")
        save_picture(folder / "entropy.png", lambda: draw(lines, name))


def draw(lines: list[Line], model: str) -> "Figure":
    """Mean entropy over depth, with the fitted lines: figure 2."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for line in lines:
        layers = range(1, len(line.mean) + 1)
        (points,) = axes.plot(layers, line.mean, "o", label=line.label)
        axes.plot(layers, line.fitted, "-", color=points.get_color(), linewidth=1)
    axes.set(xlabel="layer", ylabel="mean entropy, nats", title=model)
    axes.legend()
    return figure


if __name__ == "__main__":
    run_command(main)
