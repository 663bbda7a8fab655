"""Stage 1 of DAISY: trains one early-exit branch a layer, once, for all tasks.

    python train/branches.py --accelerator=gpu --model runs/hubert-base --data corpora/LibriSpeech

The trunk stays frozen and labels the frames itself, with HuBERT's own prediction head on unmasked
input. The defaults are the paper's (section 4), on LibriSpeech's 960 h where they are there. When
it has ended, OUTPUT/model is the model with its branches and a calibration: daisy-jax encode takes
it. docs/training.md leads through it.
"""

# First, so that Ctrl-C ends the program while everything else is loaded.
from daisy_jax import InputError

# isort: split

import dataclasses
import functools
import pathlib
from typing import Literal

from daisy_jax.accelerator import trunk_dtype
from daisy_jax.console.terminal import parse_config, run_command, say
from daisy_jax.data.corpus import Corpus
from daisy_jax.features.store import FeatureStore, StoredLabels
from daisy_jax.training.metrics_log import Values
from daisy_jax.training.settings import (
    DistributedOptions,
    SpeechOptions,
    as_begun,
    own_options_first,
)


@own_options_first
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(SpeechOptions, DistributedOptions):
    """One stage 1 run."""

    preset: Literal["paper", "daisy-tiny"] = "paper"
    """Where the other defaults come from: the paper, or the packaged model's own training."""
    model: str = "runs/hubert-base"
    """A model folder, with HuBERT's prediction head unless there are labels."""
    data: str = "corpora/LibriSpeech"
    """Speech: a folder of sound files such as LibriSpeech's, a prepared folder (train/prepare.py),
    or one of tensorflow-datasets."""
    output: str = "runs/branches"
    """The run folder."""
    splits: str = ""
    """Parts of the data, such as train-clean-100,train-other-500; empty: LibriSpeech's 960 h where
    its folders are there, else everything."""
    validation: str = ""
    """A part of the data, or another folder, that branches are scored on before each checkpoint;
    empty: LibriSpeech's dev-clean where it is there and not trained on; none: no validation."""
    labels: str = ""
    """A feature store of frame labels (train/labels.py); empty: the model's own prediction head."""
    steps: int = 88_000  # as the batch and the rate from section 4 of the paper
    batch_size: int = 32
    learning_rate: float = 5e-5
    crop_seconds: float = 15.625  # HuBERT's 250 000 samples
    save_every: int = 1_000
    warmup_share: float = 0.08
    """Share of the steps with a growing learning rate (HuBERT)."""
    clip: float = 10.0
    """Largest norm of one branch's gradient (HuBERT)."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What the frozen trunk computes in; auto: float32 on a CPU, float16 on NVIDIA GPUs before
    Ampere (V100, T4), else bfloat16. Branches are float32. With float32 all products are, on every
    accelerator; a GPU's TF32 and a TPU's bfloat16 are not taken in its place."""


PRESETS = {
    "paper": {},
    "daisy-tiny": {
        "steps": 2_500,
        "batch_size": 8,
        "crop_seconds": 4.0,
        "learning_rate": 1e-2,
        "save_every": 500,
    },
}
CALIBRATION_UTTERANCES = 500  # of the training data, where there is no validation set


def main() -> None:
    config: Config = parse_config(Config, PRESETS, __doc__)
    config = as_begun(config, config.output)
    with config.started(config.dtype, config.strict) as device:
        train(config, device)


def train(config: Config, device: str) -> None:
    """One run on the device of this name."""
    import jax
    import numpy as np
    from flax import nnx

    from daisy_jax import Calibration, load, parallel, save
    from daisy_jax.data.batches import EpochBatches, crop_width, read_batch
    from daisy_jax.data.corpus import Selection, corpus_name, fingerprint
    from daisy_jax.model.branches import Branches
    from daisy_jax.model.hubert import require_head
    from daisy_jax.training.branches import Validation, branch_optimizer, branch_step
    from daisy_jax.training.loop import fit, warmup_then_decay
    from daisy_jax.training.run_folder import Run

    dtype = trunk_dtype(jax.devices()[0]) if config.dtype == "auto" else config.dtype
    why = " (no bfloat16 before Ampere)" if (config.dtype, dtype) == ("auto", "float16") else ""
    config = dataclasses.replace(config, dtype=dtype)

    # ---- model ----
    trunk = load(config.model, config.dtype).replace(branches=None, calibration=None)
    stored = FeatureStore(config.labels) if config.labels else None
    if stored is None:
        require_head(trunk)
        num_classes = trunk.config.num_clusters
    else:
        num_classes = StoredLabels(stored, np.arange(0)).num_classes
        changed = stored.verify()
        if changed:
            raise InputError(changed[0])
    trunk = parallel.replicate(trunk)

    # ---- data ----
    samples = config.crop_samples
    opened = functools.partial(open_data, stored, f"on {device}, trunk in {dtype}{why}")
    splits, held_out, inside = parts(config)
    corpus, labels = opened(config.data, splits)
    data = {"utterances": fingerprint(corpus)}
    augmentation = config.augmentation()
    draw = EpochBatches(corpus.lengths, config.batch_size, samples, config.seed)
    mine = parallel.local_rows(config.batch_size)
    if augmentation.noises is not None:
        data["noises"] = fingerprint(augmentation.noises)
    if held_out == "none":
        scored, rng = "training utterances", np.random.default_rng([config.seed, 3])
        chosen = rng.permutation(len(corpus.names))[:CALIBRATION_UTTERANCES]
        held_out_corpus, held_out_labels = Selection(corpus, chosen), labels and labels.part(chosen)
    else:
        scored = f"{corpus_name(config.data)}/{held_out}" if inside else corpus_name(held_out)
        where = (config.data, (held_out,)) if inside else (held_out, ())
        held_out_corpus, held_out_labels = opened(*where)
        data["held_out"] = fingerprint(held_out_corpus)
    validation = Validation(trunk, held_out_corpus, held_out_labels, config.batch_size * samples)

    def batch(number: int) -> dict[str, np.ndarray]:
        crops = draw(number)
        rng = np.random.default_rng([config.seed, number, 1])
        width = crop_width(crops, samples)
        return read_batch(corpus, labels, crops, width, augmentation, rng, mine)

    # ---- branches and optimizer ----
    output = pathlib.Path(config.output)
    run = Run(output, config, config.resume, data=data, tensorboard=config.tensorboard)
    rngs = nnx.Rngs(config.seed)
    branches = Branches(trunk.config.num_layers, trunk.config.dim, num_classes, rngs=rngs)
    warmup = max(round(config.warmup_share * config.steps), 1)
    schedule = warmup_then_decay(config.learning_rate, warmup, config.steps)
    optimizer = branch_optimizer(schedule, config.weight_decay, config.clip)
    state = (branches, jax.jit(optimizer.init)(branches))
    step = branch_step(optimizer)

    # ---- loop ----
    branches, _ = fit(
        run,
        state,
        lambda state, batch: step(state, trunk, batch),
        batch,
        steps=config.steps,
        save_every=config.save_every,
        log_every=config.log_every,
        workers=config.workers,
        validate=None if held_out == "none" else (lambda state: validation.summary(state[0])),
        describe=first_middle_last,
    )

    # ---- calibrated model ----
    scores = validation.scores(branches)
    count = len(scores.entropy)
    name = scored if held_out != "none" else f"{corpus_name(config.data)}, {count} {scored}"
    if not parallel.is_first():
        return
    whole = load(config.model)
    whole = whole.replace(
        config=dataclasses.replace(whole.config, num_classes=num_classes),
        branches=jax.device_get(branches),
        calibration=Calibration(np.asarray(scores.entropy), name, np.asarray(scores.agreement)),
    )
    save(whole, run.folder / "model")
    say(f"{run.folder / 'model'}: calibrated on {name}; next, daisy-jax encode FILES --model ...")


def open_data(
    stored: FeatureStore | None, where: str, folder: str, splits: tuple[str, ...]
) -> tuple[Corpus, StoredLabels | None]:
    """A corpus, and its labels if there is a store of them."""
    from daisy_jax import parallel
    from daisy_jax.data.corpus import open_corpus, size_of

    corpus = open_corpus(folder, splits)
    if parallel.is_first():
        say(f"{' '.join([folder, *splits])}: {size_of(corpus.lengths)}; {where}")
    if stored is None:
        return corpus, None
    corpus, numbers = stored.of(corpus)
    return corpus, StoredLabels(stored, numbers)


def parts(config: Config) -> tuple[tuple[str, ...], str, bool]:
    """Parts of the data to train on, the held-out part or "none", and whether it is of the data."""
    from daisy_jax.data.librispeech import VALIDATION, has_split, training_splits

    splits = training_splits(config.data, config.splits)
    held_out = config.validation
    if not held_out:  # only where it is a part of its own
        held_out = VALIDATION if splits and has_split(config.data, VALIDATION) else "none"
    inside = has_split(config.data, held_out)
    if inside and (not splits or held_out in splits):
        raise InputError(
            f"{held_out} is trained on, too; name the parts to train on with --splits, without it"
        )
    return splits, held_out, inside


def first_middle_last(values: Values) -> str:
    """Loss and accuracy of three layers, for the progress."""

    def shown(numbers: float | list[float]) -> str:
        assert isinstance(numbers, list)
        return " ".join(f"{numbers[i]:.3f}" for i in (0, (len(numbers) - 1) // 2, -1))

    return f"loss {shown(values['layer_loss'])}  accuracy {shown(values['layer_accuracy'])}"


if __name__ == "__main__":
    run_command(main)
