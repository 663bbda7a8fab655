r"""Probes every layer of a model: how well does a linear classifier find phones in its frames?

    python eval/probe.py --data corpora/LibriSpeech --splits train-clean-100 \
        --test-splits test-clean --labels runs/aligned --noise corpora/MUSAN/noise

The classifiers are trained on clean speech and tested on other speakers, clean and under noise. Any
frame labels will do: TextGrids (train/align.py, extra "align"), a feature store of labels or units,
a .km file of fairseq. Prints Markdown: a row a condition, the share of the frames whose label is
found, by layer, 0 being what enters the first one; with --output also probe.json, with intervals by
a bootstrap over utterances, and probe.png. With --compute-of-layer a second table compares leaving
early, by one threshold for all conditions, with a static exit that costs as much: each utterance is
judged by the probe of the layer at which it leaves.
"""

# First, so that Ctrl-C ends the program while everything else is loaded.
from daisy_jax import InputError, audio, load

# isort: split

import dataclasses
import functools
import pathlib
from typing import TYPE_CHECKING, Literal

import numpy as np
import tyro

from daisy_jax.accelerator import Accelerator, use_accelerator
from daisy_jax.console.pages import table
from daisy_jax.console.pictures import save_picture
from daisy_jax.console.terminal import run_command, say, shown_after
from daisy_jax.data.corpus import open_corpus
from daisy_jax.data.noisy_corpus import CLEAN, NoisyCorpus, draw_noises, label, require_snrs
from daisy_jax.exits import fixed_layer
from daisy_jax.study.probed_exits import Compared, compare_exits
from daisy_jax.study.probes import Hits, fit_probes, probe_hits, probe_labels
from daisy_jax.tasks.metrics import bootstrap_interval, quotient
from daisy_jax.whole_files import write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Config:
    """What to probe for."""

    data: str
    """Speech."""
    labels: str
    """Frame labels of it: a folder of TextGrids, a feature store of labels or units, or a .km
    file. Utterances without any are left out."""
    splits: tuple[str, ...] = ()
    """Parts of the data to train on (folders right below it); empty: everything."""
    test_data: str = ""
    """Speech of other speakers to test on; empty: the same folder."""
    test_splits: tuple[str, ...] = ()
    """Its parts."""
    test_labels: str = ""
    """Frame labels of it; empty: those of --labels."""
    tier: str = "phones"
    """The tier of the TextGrids."""
    ignore: tuple[str, ...] = ("", "SIL", "sil", "sp", "spn", "+NSN+", "+SPN+")
    """Labels that do not count, in training and test: silence and noise."""
    noise: str = ""
    """Recordings of noise; empty: test on clean speech alone."""
    snrs: tuple[float, ...] = (10.0, 5.0, 0.0)
    """Signal-to-noise ratios of the test under noise, dB."""
    level: Literal["mean", "active"] = "mean"
    """The speech's power: "mean", over the whole utterance, or "active" (ITU-T P.56)."""
    model: str = ""
    """A model folder or a checkpoint; empty: the packaged model."""
    frames: int = 60_000
    """Frames to train on, drawn evenly."""
    seed: int = 0
    """Of everything that is drawn."""
    compute_of_layer: tuple[int, ...] = ()
    """Static exits, 1 to L, with which leaving early is compared at equal compute."""
    output: str = ""
    """Folder for probe.json and probe.png; empty: print only."""
    accelerator: Accelerator = "auto"
    """Where to compute."""


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    use_accelerator(config.accelerator)
    if config.frames < 1:
        raise InputError(f"--frames is {config.frames}; give at least 1")
    require_snrs(config.snrs)
    model = load(config.model or None)
    if config.compute_of_layer and model.branches is None:
        raise InputError(
            "--compute-of-layer: this model has no branches; train/branches.py trains them"
        )
    for layer in config.compute_of_layer:
        fixed_layer(layer, model.config.num_layers)  # says what is wrong, if anything is

    # ---- probes ----
    speech = open_corpus(config.data, config.splits)
    heard = probe_labels(config.labels, speech, config.tier, ignored=config.ignore)
    probes = fit_probes(model, heard, config.frames, config.seed)

    # ---- test ----
    speech = open_corpus(config.test_data or config.data, config.test_splits)
    tested = probe_labels(config.test_labels or config.labels, speech, config.tier, of=heard)
    found = functools.partial(probe_hits, model, probes, entropies=bool(config.compute_of_layer))
    conditions = {label(CLEAN): found(tested)}
    if config.noise:
        clean, noises = tested.corpus, open_corpus(config.noise)
        draws = draw_noises(clean, noises, config.seed, {})
        for snr in sorted(config.snrs, reverse=True):
            snrs = np.full(len(clean.names), snr)
            noisy = NoisyCorpus(clean, noises, draws, snrs, config.level)
            conditions[label(snr)] = found(tested._replace(corpus=noisy))

    # ---- results ----
    lengths = np.minimum(tested.corpus.lengths, audio.WIDTHS[-1])
    exits = {
        layer: compare_exits(model.config, conditions, lengths, layer)
        for layer in config.compute_of_layer
    }
    report(config, len(heard.classes), conditions, exits)


def report(
    config: Config, classes: int, conditions: dict[str, Hits], exits: dict[int, list[Compared]]
) -> None:
    """Prints the tables, and writes what --output asks for."""
    rows, body = [], []
    for name, hits in conditions.items():
        weights = np.repeat(hits.frames[:, None], hits.right.shape[1], axis=1)
        accuracy = quotient(hits.right, weights)
        intervals = [bootstrap_interval((right, hits.frames)) for right in hits.right.T]
        rows.append(
            {
                "condition": name,
                "utterances": len(hits.names),
                "frames": int(hits.frames.sum()),
                "accuracy": accuracy.tolist(),
                "intervals": [list(ends) for ends in intervals],
                "best_layer": int(np.argmax(accuracy)),
            }
        )
        body.append([name, *(f"{value:.3f}" for value in accuracy)])
    header = ["layer", *map(str, range(len(body[0]) - 1))]
    widest = max(high - low for row in rows for low, high in row["intervals"]) / 2
    said = (
        f"{classes} classes, {rows[0]['frames']} frames of {rows[0]['utterances']} "
        f"utterances; 95 % intervals within {widest:.3f} on each side"
    )
    folder = pathlib.Path(config.output)
    with shown_after("\n".join([*table(header, body), said, *exit_table(exits)])):
        if config.output:
            settings = dataclasses.asdict(config)
            compared = {
                str(layer): [row._asdict() for row in compared] for layer, compared in exits.items()
            }
            results = {"settings": settings, "conditions": rows, "compute_of_layer": compared}
            write_json(folder / "probe.json", results)
    if config.output:
        say(f"written: {folder / 'probe.json'}")
        save_picture(folder / "probe.png", functools.partial(draw, rows, config.model))


def exit_table(exits: dict[int, list[Compared]]) -> list[str]:
    """Lines of the second table; none if nothing is compared."""
    if not exits:
        return []
    header = ["compute of layer", "condition", "mean exit", "early", "static", "early - static"]
    body = [
        [
            str(layer),
            row.condition,
            f"{row.mean_exit_layer:.2f}",
            f"{row.early:.3f}",
            f"{row.static:.3f}",
            f"{row.early - row.static:+.3f} ({row.interval[0]:+.3f} to {row.interval[1]:+.3f})",
        ]
        for layer, compared in exits.items()
        for row in compared
    ]
    return table(header, body)


def draw(rows: list[dict], model: str) -> "Figure":
    """Accuracy over depth."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for row in rows:
        low, high = np.transpose(row["intervals"])
        layers = np.arange(len(low))
        (line,) = axes.plot(layers, row["accuracy"], "o-", label=row["condition"])
        axes.fill_between(layers, low, high, color=line.get_color(), alpha=0.15)
    title = model or "daisy-tiny"
    axes.set(xlabel="layer", ylabel="frames whose label is found", title=title)
    axes.legend()
    return figure


if __name__ == "__main__":
    run_command(main)
