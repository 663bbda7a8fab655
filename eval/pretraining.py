"""How well a pretrained model predicts its targets on speech that it has not seen.

    python eval/pretraining.py --run RUN --data SPEECH

Labels SPEECH with the centroids of the run (train/pretrain.py) and prints the share of frames that
the prediction head gets right: masked frames, unmasked frames beside them, and without any mask.
"""

import dataclasses
import json
import pathlib

import tyro

from daisy_jax.accelerator import Accelerator, use_accelerator
from daisy_jax.console.terminal import run_command
from daisy_jax.reporting import followed


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


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    use_accelerator(config.accelerator)

    import jax
    import numpy as np

    from daisy_jax import audio, load
    from daisy_jax.data.corpus import open_corpus
    from daisy_jax.devices import fetched_behind
    from daisy_jax.model.frame_labels import block_features, label_frames
    from daisy_jax.model.hubert import embed
    from daisy_jax.model.layer_loops import last_block
    from daisy_jax.training.cluster_targets import mfcc, nearest_centroid
    from daisy_jax.training.pretraining import span_mask

    folder = pathlib.Path(config.run)
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = load(folder / "model")
    centroids = np.load(folder / "targets.npz")["centroids"]
    if settings["targets_from"]:
        features = block_features(load(settings["targets_from"]), settings["targets_layer"])
    else:
        features = mfcc
    corpus = open_corpus(config.data)

    @jax.jit
    def predict(waveform, lengths, masked):
        embedded = embed(model, waveform, lengths, masked)
        return label_frames(model, last_block(model, embedded), embedded.frame_mask)

    def start(index: int):
        waveform = corpus.read(index, 0, int(corpus.lengths[index]))
        batch = audio.batch_of_one(waveform)
        frames = audio.frame_count(len(waveform))
        width = audio.frame_count(batch[0].shape[1])
        rng = np.random.default_rng([config.seed, index])
        mask = span_mask(np.asarray([frames]), width, rng)
        return waveform, mask, predict(*batch, mask), predict(*batch, np.zeros_like(mask))

    count = len(corpus.names)
    hits = {"masked": [0, 0], "unmasked": [0, 0], "without mask": [0, 0]}
    computed = fetched_behind(map(start, range(count)))
    for waveform, mask, right, plain in followed(computed, "predicting", count):
        frames = audio.frame_count(len(waveform))
        labels = nearest_centroid(features(waveform), centroids)
        right, plain = (predicted[0, :frames] == labels for predicted in (right, plain))
        mask = mask[0, :frames]
        for name, counted in (("masked", right[mask]), ("unmasked", right[~mask])):
            hits[name][0] += int(counted.sum())
            hits[name][1] += len(counted)
        hits["without mask"][0] += int(plain.sum())
        hits["without mask"][1] += frames
    print(f"{count} utterances of {config.data}, {len(centroids)} clusters")
    for name, (right, total) in hits.items():
        print(f"accuracy, {name}: {right / total:.3f} of {total} frames")


if __name__ == "__main__":
    run_command(main)
