"""Stores HuBERT's own frame labels of a corpus, for train/branches.py --labels.

    python train/labels.py --model runs/hubert-base --data corpora/LibriSpeech --output runs/labels

For a trunk without a prediction head whose labels another model gives, and to label once what is
trained on often. Labels are those of whole utterances on unmasked input, at most a minute long. A
run that was interrupted goes on when it is started again.
"""

import dataclasses
import hashlib
import pathlib
from typing import Literal

import tyro

from daisy_jax.accelerator import Accelerator, use_accelerator
from daisy_jax.console.terminal import leave_out, progress_bar, run_command


@dataclasses.dataclass(frozen=True)
class Config:
    """What to label."""

    model: str = "runs/hubert-base"
    """A model folder with HuBERT's prediction head."""
    data: str = "corpora/LibriSpeech"
    """Speech, as for train/branches.py."""
    output: str = "runs/labels"
    """The label folder; two bytes a frame."""
    splits: str = ""
    """Parts of the data; empty: LibriSpeech's 960 h and dev-clean where they are there, else
    everything."""
    batch_seconds: float = 160.0
    """Audio in a batch."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """What the model computes in; float32 without TF32, which GPUs take otherwise."""
    accelerator: Accelerator = "auto"
    """Where to compute."""


def main() -> int:
    config = tyro.cli(Config, description=__doc__)
    use_accelerator(config.accelerator, dtype=config.dtype)

    import jax
    import numpy as np

    from daisy_jax import audio
    from daisy_jax.checkpoints import TENSORS, load
    from daisy_jax.data.batches import WholeBatches, read_whole
    from daisy_jax.data.corpus import Selection, open_corpus
    from daisy_jax.data.labels import new_label_folder
    from daisy_jax.data.librispeech import VALIDATION, has_split, training_splits
    from daisy_jax.data.loading import Batch, batches
    from daisy_jax.devices import fetched_behind
    from daisy_jax.errors import InputError
    from daisy_jax.model.hubert import frame_labels, require_head

    model = load(config.model, config.dtype)
    require_head(model)
    splits = training_splits(config.data, config.splits)
    if splits and not config.splits and has_split(config.data, VALIDATION):
        splits += (VALIDATION,)
    on_error = leave_out()
    corpus = open_corpus(config.data, splits, on_error, progress_bar("measuring files"))
    longest = int(np.argmax(corpus.lengths))
    if corpus.lengths[longest] > audio.WIDTHS[-1]:
        raise InputError(
            f"{corpus.names[longest]}: {corpus.lengths[longest] / audio.SAMPLE_RATE:.0f} s long; "
            "labels are those of utterances of up to a minute, so split it"
        )
    with open(pathlib.Path(config.model) / TENSORS, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    source = {"sha256": digest, "dtype": config.dtype}
    folder = new_label_folder(config.output, corpus, model.config.num_clusters, source)
    wanted = folder.unlabelled()
    if len(wanted):
        part = Selection(corpus, wanted)
        samples = round(config.batch_seconds * audio.SAMPLE_RATE)
        draw = WholeBatches(part.lengths, samples)

        def read(number: int) -> Batch:
            crops = draw(number)
            waveform, lengths = read_whole(part, crops, on_error)
            places = np.asarray([wanted[crop.index] if crop.samples else -1 for crop in crops])
            return {"waveform": waveform, "lengths": lengths, "places": places}

        label = jax.jit(frame_labels)

        def start(batch: Batch) -> Batch:
            labels = label(model, batch["waveform"], batch["lengths"])
            return {"labels": labels, "places": batch["places"], "lengths": batch["lengths"]}

        def seconds_of(batch: Batch) -> float:
            return float(batch["lengths"].sum()) / audio.SAMPLE_RATE

        bar = progress_bar("labelling", len(draw), seconds_of)
        for batch in bar(fetched_behind(map(start, batches(read, 0, len(draw), workers=0)))):
            columns = (batch["labels"], batch["places"], batch["lengths"])
            for row, place, length in zip(*columns, strict=True):
                if length:
                    folder.write(int(place), row[: audio.frame_count(int(length))])
                elif place >= 0:
                    folder.give_up(int(place))
    failed = len(folder.given_up())
    print(f"{config.output}: labels of {len(corpus.names) - failed} utterances, {failed} missing")
    return 1 if failed else 0


if __name__ == "__main__":
    run_command(main)
