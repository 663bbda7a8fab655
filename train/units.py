"""Finds discrete units: k-means centroids of one layer's output.

    python train/units.py all.tsv --layer 9 --clusters 500 --output runs/units

Frames are drawn evenly over all files, at most as many as --frames. Printed are the mean squared
distance of these frames to their centroids and, where the model has HuBERT's prediction head, how
well units agree with its labels in some of the files. The folder is what `--centroids` of
`daisy-jax encode --units` and `daisy-jax extract --store units` takes.
"""

# First, so that Ctrl-C ends the program while everything else is loaded.
from daisy_jax.accelerator import Accelerator, use_accelerator

# isort: split

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Annotated, Literal

import tyro

from daisy_jax.console.terminal import run_command, say

CHECKED = 50
"""Files in which units are held against labels."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What to find units in."""

    files: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILE...")]
    """Sound files, folders that are searched for them, or one list (.tsv, .txt of fairseq, .scp of
    Kaldi)."""
    output: str = "runs/units"
    """The codebook's folder."""
    model: str = ""
    """A model folder, a checkpoint, or OWNER/NAME of the Hugging Face hub; empty: the packaged
    model."""
    layer: int = 9
    """Whose output is clustered, 1 to L."""
    clusters: int = 500
    """How many units."""
    frames: int = 250_000
    """How many frames are drawn."""
    seed: int = 0
    """Of the frames that are drawn, and of k-means."""
    window: Annotated[float, tyro.conf.arg(metavar="S")] = 30.0
    """Longer recordings are encoded in windows of S seconds."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """What the model computes in; float32 without TF32, which GPUs take otherwise."""
    accelerator: Accelerator = "auto"
    """Where to compute."""


def main() -> int:
    config = tyro.cli(Config, description=__doc__)
    device = use_accelerator(config.accelerator, dtype=config.dtype)

    import numpy as np

    import daisy_jax
    from daisy_jax import InputError
    from daisy_jax.data.file_list import listed_files
    from daisy_jax.exits import fixed_layer
    from daisy_jax.features.codebook import Codebook, save_codebook, trunk_digest
    from daisy_jax.model.frame_labels import nearest_centroid
    from daisy_jax.training.cluster_targets import fit_centroids
    from daisy_jax.training.units import draw_frames, inertia, purity

    if config.clusters < 1 or config.frames < 1:
        raise InputError("--clusters and --frames: give at least 1")
    model = daisy_jax.load(config.model or None, config.dtype)
    rule = fixed_layer(config.layer, model.config.num_layers)
    files = listed_files(config.files)
    options = {"window_seconds": config.window, "allowed": rule.allowed}
    say(f"{len(files)} files, layer {config.layer} of {model.config.num_layers}, on {device}")

    # ---- frames ----

    failed = 0

    def features() -> Iterator[np.ndarray]:
        nonlocal failed
        results = daisy_jax.encode_files(model, files, **options)
        for result in results:
            if result.last_hidden is None:
                failed += 1
                say(f"error: {result.error}", to_stderr=True)
            else:
                yield np.asarray(result.last_hidden, np.float32)

    frames = draw_frames(features(), config.frames, config.seed, len(files))

    # ---- units ----

    centroids = fit_centroids(frames, config.clusters, config.seed)
    save_codebook(config.output, Codebook(centroids, config.layer, trunk_digest(model)))
    distance, spread = inertia(frames, centroids), float(np.sum(np.var(frames, axis=0)))
    say(
        f"{config.output}: {len(centroids)} units of {len(frames)} frames; mean squared distance "
        f"{distance:.4g}, {distance / spread:.1%} of the variance"
    )

    # ---- held against labels ----

    if model.head is not None:
        units, labels = [], []
        for result in daisy_jax.encode_files(model, itertools.islice(files, CHECKED), **options):
            if result.last_hidden is None or len(result.windows) > 1:
                continue  # labels are those of whole recordings
            whole = daisy_jax.audio.batch_of_one(daisy_jax.audio.load(result.path))
            of_frames = np.asarray(daisy_jax.frame_labels(model, *whole))[0]
            labels.append(of_frames[: result.num_frames])
            units.append(nearest_centroid(np.asarray(result.last_hidden), centroids))
        if units:
            found = purity(np.concatenate(units), np.concatenate(labels))
            say(
                f"against the model's own labels, {sum(map(len, units))} frames: label purity "
                f"{found.label:.3f}, unit purity {found.unit:.3f}, information "
                f"{found.information:.3f}"
            )
    return 1 if failed else 0


if __name__ == "__main__":
    run_command(main)
