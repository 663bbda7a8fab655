"""Stage 1 of DAISY: trains one early-exit branch a layer, once, for all tasks.

    python train/branches.py --accelerator=gpu --model runs/hubert-base --data corpora/LibriSpeech

The trunk stays frozen and labels the frames itself, with HuBERT's own prediction head on unmasked
input. The defaults are the paper's (section 4), on LibriSpeech's 960 h where they are there. When
it has ended, OUTPUT/model is the model with its branches and a calibration: daisy-jax encode takes
it. docs/training.md leads through it.
"""

import contextlib
import dataclasses
import functools
import pathlib
from typing import Any, ClassVar, Literal

from daisy_jax import InputError
from daisy_jax.accelerator import trunk_dtype
from daisy_jax.console.terminal import parse_config, run_command
from daisy_jax.reporting import strictly
from daisy_jax.signals import delayed_signals
from daisy_jax.training.settings import DistributedOptions, own_options_first


@own_options_first
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(DistributedOptions):
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
    noise: str = ""
    """Noise recordings, mixed into some of the crops; empty: none (the paper)."""
    noise_probability: float = 0.5
    """Share of the crops that get noise."""
    snr_range: tuple[float, float] = (0.0, 20.0)
    """Signal-to-noise ratio of those crops, dB, uniform."""
    steps: int = 88_000
    """Optimizer steps (section 4)."""
    batch_size: int = 32
    """Utterances a step (section 4)."""
    crop_seconds: float = 15.625
    """Longest crop; HuBERT's 250 000 samples."""
    learning_rate: float = 5e-5
    """Peak of Adam's learning rate (section 4)."""
    warmup_share: float = 0.08
    """Share of the steps with a growing learning rate; linear decay to 0 afterwards (HuBERT)."""
    weight_decay: float = 0.01
    """Decoupled weight decay (HuBERT)."""
    clip: float = 10.0
    """Largest norm of one branch's gradient (HuBERT)."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What the frozen trunk computes in; auto: float32 on a CPU, float16 on NVIDIA GPUs before
    Ampere (V100, T4), else bfloat16. Branches are float32. With float32 all products are, on every
    accelerator; a GPU's TF32 and a TPU's bfloat16 are not taken in its place."""
    save_every: int = 1_000
    """Steps between two checkpoints, and between two validations."""

    least: ClassVar[dict[str, float]] = {
        **DistributedOptions.least,
        **{"crop_seconds": 0.025, "learning_rate": 0, "clip": 0},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.snr_range[0] > self.snr_range[1]:
            raise InputError(f"snr_range is {self.snr_range}; give the lower ratio first")


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
    device = config.start(config.dtype)
    with strictly(config.strict):
        train(config, device)


def train(config: Config, device: str) -> None:
    """One run on the device of this name."""
    import jax
    import numpy as np
    from flax import nnx

    from daisy_jax import Calibration, audio, load, parallel, save
    from daisy_jax.data.batches import (
        Augmentation,
        EpochBatches,
        crop_width,
        read_crops,
        read_labels,
    )
    from daisy_jax.data.corpus import Selection, corpus_name, fingerprint, open_corpus
    from daisy_jax.data.prefetch import Batch
    from daisy_jax.features.store import FeatureStore, StoredLabels
    from daisy_jax.model.branches import Branches
    from daisy_jax.model.hubert import require_head
    from daisy_jax.training.branch_validation import Validation
    from daisy_jax.training.branches import branch_optimizer, branch_step
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
    trunk = parallel.replicate(trunk)

    # ---- data ----
    samples = round(config.crop_seconds * audio.SAMPLE_RATE)

    opened = functools.partial(open_data, stored, f"on {device}, trunk in {dtype}{why}")
    splits, held_out, inside = parts(config)
    corpus, labels = opened(config.data, splits)
    data = {"utterances": fingerprint(corpus)}
    noises = open_corpus(config.noise) if config.noise else None
    augmentation = Augmentation(noises, config.noise_probability, config.snr_range)
    draw = EpochBatches(corpus.lengths, config.batch_size, samples, config.seed)
    mine = parallel.local_rows(config.batch_size)
    if noises is not None:
        data["noises"] = fingerprint(noises)
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

    def batch(number: int) -> Batch:
        crops = draw(number)
        rng = np.random.default_rng([config.seed, number, 1])
        width = crop_width(crops, samples)
        waveform, lengths = read_crops(corpus, crops, width, augmentation, rng, mine)
        read = {"waveform": waveform, "lengths": lengths}
        if labels is not None:
            read["labels"] = read_labels(labels, crops[mine], audio.frame_count(width))
        return read

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
    # One of several processes must not leave the others waiting for it.
    alone = jax.process_count() == 1
    with contextlib.nullcontext() if alone else delayed_signals():
        entropy = np.asarray(validation.scores(branches).entropy)
    name = scored if held_out != "none" else f"{corpus_name(config.data)}, {len(entropy)} {scored}"
    if not parallel.is_first():
        return
    whole = load(config.model)
    whole = whole.replace(
        config=dataclasses.replace(whole.config, num_classes=num_classes),
        branches=jax.device_get(branches),
        calibration=Calibration(entropy, name),
    )
    save(whole, run.folder / "model")
    print(f"{run.folder / 'model'}: calibrated on {name}; next, daisy-jax encode FILES --model ...")


def open_data(stored: Any, where: str, folder: str, splits: tuple[str, ...]) -> tuple[Any, Any]:
    """A corpus and its labels out of a store, which may be None, as the labels then are."""
    from daisy_jax import audio, parallel
    from daisy_jax.data.corpus import open_corpus
    from daisy_jax.features.store import StoredLabels

    corpus = open_corpus(folder, splits)
    if parallel.is_first():
        hours = corpus.lengths.sum() / audio.SAMPLE_RATE / 3600
        print(
            f"{' '.join([folder, *splits])}: {len(corpus.names)} utterances, {hours:.2f} h; {where}"
        )
    if stored is None:
        return corpus, None
    corpus, places = stored.of(corpus)
    return corpus, StoredLabels(stored, places)


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


def first_middle_last(values: dict[str, Any]) -> str:
    """Loss and accuracy of three layers, for the progress."""
    losses, accuracies = values["layer_loss"], values["layer_accuracy"]
    shown = (0, (len(losses) - 1) // 2, -1)
    loss = " ".join(f"{losses[layer]:.3f}" for layer in shown)
    return f"loss {loss}  accuracy " + " ".join(f"{accuracies[layer]:.3f}" for layer in shown)


if __name__ == "__main__":
    run_command(main)
