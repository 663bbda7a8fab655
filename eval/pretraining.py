"""How well a pretrained model predicts its targets on speech that it has not seen.

    python eval/pretraining.py --run RUN --data SPEECH

Labels SPEECH with the centroids of the run (train/pretrain.py without --targets) and prints the
share of frames that the prediction head gets right: masked frames, unmasked frames beside them, and
without any mask.
"""

# First, so that Ctrl-C ends the program while everything else is loaded.
from daisy_jax import InputError, audio, load

# isort: split

import dataclasses
import pathlib
from typing import NotRequired, TypedDict

import jax
import numpy as np
import tyro
from jaxtyping import Array, Bool, Float, Int

from daisy_jax.accelerator import Accelerator, use_accelerator
from daisy_jax.console.terminal import run_command, say
from daisy_jax.data.corpus import open_corpus
from daisy_jax.model.frame_labels import block_features, label_frames
from daisy_jax.model.hubert import embed
from daisy_jax.model.layer_loops import last_block
from daisy_jax.parallel import fetched_behind
from daisy_jax.reporting import followed, leave_out_item
from daisy_jax.training.cluster_targets import load_targets, mfcc, nearest_centroid
from daisy_jax.training.pretraining import span_mask
from daisy_jax.whole_files import read_json


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure."""

    run: str
    """The run folder of train/pretrain.py."""
    data: str
    """Unseen speech: a folder of sound files or a prepared folder."""
    seed: int = 0
    """Of the masks."""
    accelerator: Accelerator = "auto"
    """Where to compute."""


class Trained(TypedDict):
    """What is read of the run's config.json."""

    targets_from: str
    targets_layer: int
    targets: NotRequired[str]


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    use_accelerator(config.accelerator)
    folder = pathlib.Path(config.run)
    remedy = "give a run of train/pretrain.py"
    settings = read_json(folder / "config.json", Trained, remedy)
    if labels := settings.get("targets"):
        raise InputError(
            f"{config.run}: predicts the labels of {labels} and no clusters of its own; "
            "eval/probe.py --labels says what its layers know of them"
        )
    model = load(folder / "model")
    _, centroids = load_targets(folder / "targets.npz")
    if settings["targets_from"]:
        features = block_features(load(settings["targets_from"]), settings["targets_layer"])
    else:
        features = mfcc
    corpus = open_corpus(config.data)

    @jax.jit
    def predict(
        waveform: Float[Array, "batch samples"],
        lengths: Int[Array, " batch"],
        masked: Bool[Array, "batch frames"],
    ) -> Int[Array, "batch frames"]:
        embedded = embed(model, waveform, lengths, masked)
        return label_frames(model, last_block(model, embedded), embedded.frame_mask)

    def start(index: int) -> tuple[np.ndarray, np.ndarray, jax.Array, jax.Array] | None:
        """Waveform and mask of an utterance, and what is predicted with and without the mask."""
        try:
            waveform = corpus.read(index, 0, int(corpus.lengths[index]))
        except Exception as error:
            leave_out_item(corpus.names[index], error)
            return None
        batch = audio.batch_of_one(waveform)
        frames = np.asarray([audio.frame_count(len(waveform))])
        width = audio.frame_count(batch[0].shape[1])
        mask = span_mask(frames, width, np.random.default_rng([config.seed, index]))
        return waveform, mask, predict(*batch, mask), predict(*batch, np.zeros_like(mask))

    count = len(corpus.names)
    hits: dict[str, list[np.ndarray]] = {"masked": [], "unmasked": [], "without mask": []}
    computed = fetched_behind(map(start, range(count)))
    for utterance in followed(computed, "predicting", count):
        if utterance is None:
            continue
        waveform, mask, with_mask, without = utterance
        labels = nearest_centroid(features(waveform), centroids)
        right, plain = (
            np.asarray(each[0, : len(labels)] == labels) for each in (with_mask, without)
        )
        mask = mask[0, : len(labels)]
        hits["masked"].append(right[mask])
        hits["unmasked"].append(right[~mask])
        hits["without mask"].append(plain)
    if not hits["masked"]:
        raise InputError(f"{config.data}: none of {count} utterances can be read")
    say(f"{len(hits['masked'])} utterances of {config.data}, {len(centroids)} clusters")
    for name, parts in hits.items():
        frames = np.concatenate(parts)
        say(f"accuracy, {name}: {frames.mean():.3f} of {len(frames)} frames")


if __name__ == "__main__":
    run_command(main)
