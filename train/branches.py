"""Stage 1 of DAISY: trains one early-exit branch a layer, once, for all tasks.

    python train/branches.py --model runs/hubert-base --data SPEECH --output RUN --accelerator=gpu

The trunk stays frozen and labels the frames itself, with HuBERT's own prediction head on unmasked
input. The defaults are the paper's (section 4); with LibriSpeech's folder as SPEECH it trains on
its 960 h. RUN/model is the model with its branches; `daisy-jax calibrate` is next.
"""

import dataclasses
import functools
import pathlib
import sys

import tyro

from daisy_jax.terminal import (
    Accelerator,
    printable,
    progress_bar,
    run_command,
    use_accelerator,
)


@dataclasses.dataclass(frozen=True)
class Config:
    """One stage 1 run."""

    model: str
    """A model folder with HuBERT's prediction head."""
    data: str
    """Speech: a folder of sound files such as LibriSpeech's, a prepared folder (train/prepare.py),
    or one of tensorflow-datasets."""
    output: str
    """The run folder."""
    splits: str = ""
    """Parts of the data, such as train-clean-100,train-other-500; empty: LibriSpeech's 960 h where
    its folders are there, else everything."""
    strict: bool = False
    """End at the first file that cannot be read, instead of leaving it out."""
    workers: int = 0
    """Processes that read and decode; 0: threads."""
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
    dtype: str = "float32"
    """What the frozen trunk computes in: float32 or bfloat16; branches are float32."""
    seed: int = 0
    """Of initial weights and batches."""
    save_every: int = 1_000
    """Steps between two checkpoints."""
    log_every: int = 50
    """Steps between two lines of metrics.jsonl."""
    resume: bool = False
    """Continue the run in the output folder."""
    accelerator: Accelerator = "auto"
    """Where to compute."""


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    device = use_accelerator(config.accelerator)

    import jax
    import numpy as np
    import optax
    from flax import nnx

    from daisy_jax import audio
    from daisy_jax.branch_training import branches_loss, clip_each_branch
    from daisy_jax.branches import Branches
    from daisy_jax.checkpoints import load, save
    from daisy_jax.data.batches import Augmentation, EpochBatches, crop_width, read_crops
    from daisy_jax.data.corpus import open_corpus, raise_error
    from daisy_jax.data.librispeech import training_splits
    from daisy_jax.data.loading import Batch
    from daisy_jax.hubert import require_head
    from daisy_jax.training import Run, fit, warmup_then_decay

    # ---- model ----
    trunk = load(config.model, config.dtype).replace(branches=None, calibration=None)
    require_head(trunk)
    num_classes = trunk.config.num_clusters

    # ---- data ----
    left_out: list[str] = []

    def leave_out(line: str) -> None:
        if line not in left_out:
            left_out.append(line)
            print(f"left out ({len(left_out)} so far): {printable(line)}", file=sys.stderr)

    on_error = raise_error if config.strict else leave_out
    splits = training_splits(config.data, config.splits)
    corpus = open_corpus(config.data, splits, on_error, progress_bar("measuring files"))
    noises = open_corpus(config.noise, on_error=on_error) if config.noise else None
    augmentation = Augmentation(noises, config.noise_probability, config.snr_range)
    samples = round(config.crop_seconds * audio.SAMPLE_RATE)
    hours = corpus.lengths.sum() / audio.SAMPLE_RATE / 3600
    what = " ".join([config.data, *splits])
    print(f"{what}: {len(corpus.names)} utterances, {hours:.2f} h; on {device}")
    draw = EpochBatches(corpus.lengths, config.batch_size, samples, config.seed)

    def batch(number: int) -> Batch:
        crops = draw(number)
        rng = np.random.default_rng([config.seed, number, 1])
        width = crop_width(crops, samples)
        waveform, lengths = read_crops(corpus, crops, width, augmentation, rng, on_error)
        return {"waveform": waveform, "lengths": lengths}

    # ---- branches and optimizer ----
    run = Run(pathlib.Path(config.output), config, config.resume)
    rngs = nnx.Rngs(config.seed)
    branches = Branches(trunk.config.num_layers, trunk.config.dim, num_classes, rngs=rngs)
    warmup = max(round(config.warmup_share * config.steps), 1)
    schedule = warmup_then_decay(config.learning_rate, warmup, config.steps)
    optimizer = optax.chain(
        clip_each_branch(config.clip),
        optax.adamw(schedule, b1=0.9, b2=0.98, eps=1e-6, weight_decay=config.weight_decay),
    )
    state = (branches, jax.jit(optimizer.init)(branches))

    # ---- one step ----
    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, trunk, batch):
        branches, optimizer_state = state
        gradient = jax.grad(branches_loss, has_aux=True)
        gradients, metrics = gradient(branches, trunk, **batch)
        updates, optimizer_state = optimizer.update(gradients, optimizer_state, branches)
        return (optax.apply_updates(branches, updates), optimizer_state), metrics

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
    )
    whole = load(config.model)
    model_config = dataclasses.replace(whole.config, num_classes=num_classes)
    whole = whole.replace(config=model_config, branches=branches, calibration=None)
    save(whole, run.folder / "model")
    print(f"{run.folder / 'model'}: next, daisy-jax calibrate {run.folder / 'model'} FILES...")


if __name__ == "__main__":
    run_command(main)
