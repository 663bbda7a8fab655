"""Mean entropy of every branch on any number of data sets: figure 2 of the paper.

    python eval/entropy.py clean=corpora/LibriSpeech/dev-clean other=corpora/LibriSpeech/dev-other

    python eval/entropy.py asr=runs/asr-ratio-0.7 sid=runs/sid-ratio-0.7 se=runs/se-ratio-0.7

Prints Markdown: a row a data set, with the straight line fitted to mean entropy over depth and its
r squared. With --output also entropy.json and, where matplotlib is installed, entropy.png.
"""

# First, so that Ctrl-C ends the program while everything else is loaded.
from daisy_jax import Hubert, InputError, audio, calibrate, load

# isort: split

import dataclasses
import functools
import pathlib
from typing import TYPE_CHECKING, Annotated, NamedTuple, TypedDict

import numpy as np
import tyro
from jaxtyping import Float

from daisy_jax.accelerator import Accelerator, use_accelerator
from daisy_jax.console.pages import table
from daisy_jax.console.pictures import save_picture
from daisy_jax.console.terminal import run_command, say, shown_after
from daisy_jax.data.batches import WholeBatches, read_whole
from daisy_jax.data.corpus import hours_of, open_corpus
from daisy_jax.reporting import followed
from daisy_jax.tasks.trained_heads import TrainedHead, load_head, require_trunk
from daisy_jax.whole_files import json_text, read_json, whole_files

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure."""

    sets: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="NAME=FOLDER...")]
    """Data sets: a name for the table and the picture, and a folder of sound files, a prepared
    folder, one of tensorflow-datasets, or a run of train/downstream.py, whose task head has stored
    the mean entropies of its training set."""
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


class _Run(TypedDict):
    """What is read of a run's config.json."""

    model: str


class Found(NamedTuple):
    """What is known of a data set."""

    mean_entropy: Float[np.ndarray, " layers"]
    """Nats."""
    standard_deviation: list[float] | None
    """Over the utterances, by layer; None where a task head does not say."""
    utterances: int
    hours: float | None
    """As `standard_deviation`."""
    head: TrainedHead | None
    """The task head whose training set it is; it knows its model."""


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    use_accelerator(config.accelerator)
    pairs = [text.partition("=") for text in config.sets]
    for text, (name, _, folder) in zip(config.sets, pairs, strict=True):
        if not name or not folder:
            raise InputError(f"{text!r} is no NAME=FOLDER; give for example clean=SPEECH/dev-clean")
    found = [
        of_head(folder) if (folder / "head").is_dir() else measured(name, folder, config)
        for name, _, folder in ((name, _, pathlib.Path(folder)) for name, _, folder in pairs)
    ]
    sets, body, lines = [], [], []
    require_one_model([folder for _, _, folder in pairs], found, config.model)
    for (name, _, folder), each in zip(pairs, found, strict=True):
        mean = each.mean_entropy.astype(np.float64)
        layers = np.arange(1, len(mean) + 1)
        slope, intercept = np.polyfit(layers, mean, 1)
        r_squared = np.corrcoef(layers, mean)[0, 1] ** 2
        sets.append(
            {
                "name": name,
                "folder": folder,
                "utterances": each.utterances,
                "hours": each.hours,
                "mean_entropy": mean.tolist(),
                "standard_deviation": each.standard_deviation,
                "slope": float(slope),
                "intercept": float(intercept),
                "r_squared": float(r_squared),
            }
        )
        hours = "" if each.hours is None else f"{each.hours:.3g}"
        cells = [name, str(each.utterances), hours, *(f"{value:.3f}" for value in mean)]
        body.append([*cells, f"{slope:.4f}", f"{r_squared:.3f}"])
        lines.append(Line(f"{name} (r² {r_squared:.2f})", mean, intercept + slope * layers))
    numbers = map(str, range(1, len(found[0].mean_entropy) + 1))
    header = ["data set", "utterances", "hours", *numbers, "slope", "r squared"]
    folder, name = pathlib.Path(config.output), config.model or named_model(found, pairs[0][2])
    with shown_after("\n".join(table(header, body))):
        if config.output:
            content = json_text({"model": name, "sets": sets})
            with whole_files(folder / "entropy.json", replaces=[folder / "entropy.png"]) as (
                partial,
            ):
                partial.write_text(content, encoding="utf-8")
    if config.output:
        say(f"written: {folder / 'entropy.json'}")
        save_picture(folder / "entropy.png", lambda: draw(lines, name))


def require_one_model(folders: list[str], found: list[Found], model: str) -> None:
    """Raises an InputError if a task head is of another model than the other data sets."""
    heads = {folder: each.head for folder, each in zip(folders, found, strict=True) if each.head}
    for folder, head in heads.items():
        wrong = f"{folder}: is of another model than the other data sets; give those of one model"
        if model or len(heads) < len(found):
            require_trunk(head, the_model(model), wrong)
        elif head.trunk != next(iter(heads.values())).trunk:
            raise InputError(wrong)


def named_model(found: list[Found], run: str) -> str:
    """What the model is called where the command line does not say: as the first run has it."""
    if any(each.head is None for each in found):
        return "daisy-tiny"
    settings = read_json(pathlib.Path(run, "config.json"), _Run, "give another run")
    return settings["model"]


def of_head(run: pathlib.Path) -> Found:
    """What a task head knows of the data set that it was trained on."""
    head = load_head(run / "head")
    if not len(head.mean_entropy):
        raise InputError(f"{run}: was trained without branches; give a run of a model with them")
    return Found(head.mean_entropy, None, sum(head.exits["exit_counts"]), None, head)


def measured(name: str, folder: pathlib.Path, config: Config) -> Found:
    """Runs the model over a folder."""
    corpus, model = open_corpus(folder), the_model(config.model)
    draw_batch = WholeBatches(corpus.lengths, round(config.batch_seconds * audio.SAMPLE_RATE))
    numbers = followed(range(len(draw_batch)), name)
    batches = (read_whole(corpus, draw_batch(number)) for number in numbers)
    calibration = calibrate(model, batches, str(folder))
    hours = hours_of(corpus.lengths)
    mean, deviation = calibration.mean_entropy, np.std(calibration.entropy, axis=0).tolist()
    return Found(mean, deviation, len(calibration.entropy), hours, None)


@functools.cache
def the_model(folder: str) -> Hubert:
    """The model of all data sets, read once if it is needed."""
    return load(folder or None)


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
