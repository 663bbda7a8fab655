"""Pretrains a HuBERT from audio: masked prediction of k-means clusters.

    python train/pretrain.py --data SPEECH --output RUN
    python train/pretrain.py --data SPEECH --targets-from RUN/model --output RUN2

The first iteration predicts clusters of MFCC, further ones clusters of an earlier model's features.
The defaults are the recipe of the packaged `daisy-tiny`; see its model card. SPEECH and NOISE are
folders of sound files or prepared folders (train/prepare.py).
"""

import dataclasses
import functools
import pathlib

import tyro

from daisy_jax.accelerator import use_accelerator
from daisy_jax.console.terminal import run_command
from daisy_jax.reporting import strictly
from daisy_jax.training.settings import RunOptions, own_options_first


@own_options_first
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(RunOptions):
    """One pretraining run."""

    data: str
    """Speech: a folder of sound files or a prepared folder."""
    output: str
    """The run folder."""
    noise: str = ""
    """Noise recordings, mixed into half of the crops; empty: none."""
    noise_probability: float = 0.5
    """Share of the crops that get noise."""
    snr_range: tuple[float, float] = (0.0, 20.0)
    """Signal-to-noise ratio of those crops, dB, uniform."""
    targets_from: str = ""
    """A model folder whose features are clustered; empty: MFCC."""
    targets_layer: int = 6
    """The layer whose block outputs are clustered."""
    clusters: int = 100
    """Classes."""
    start_from: str = ""
    """A model folder whose trunk is trained further; empty: a new model."""
    num_layers: int = 12
    """Transformer layers."""
    dim: int = 160
    """Width of the transformer."""
    ffn_dim: int = 640
    """Inner width of the feed-forward networks."""
    num_heads: int = 4
    """Attention heads."""
    conv_dim: int = 64
    """Channels of the front end."""
    pos_conv_kernel: int = 32
    """Taps of the positional convolution."""
    head_dim: int = 96
    """Width of the prediction head."""
    unmasked_steps: int = 1_000
    """Unmasked frames count too in the beginning, with a weight that falls from 1 to 0 over so many
    steps. Without them a small model does not get off the labels' plain frequencies."""
    steps: int = 2_400
    """Optimizer steps."""
    batch_size: int = 8
    """Crops a step."""
    crop_seconds: float = 4.0
    """Longest crop."""
    learning_rate: float = 8e-4
    """Peak of AdamW's learning rate; linear warm-up, then linear decay to 0."""
    warmup_steps: int = 300
    """Steps of the warm-up."""
    weight_decay: float = 0.01
    """Of AdamW."""
    clip: float = 1.0
    """Largest global norm of the gradient."""
    save_every: int = 500
    """Steps between two checkpoints."""


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    device = use_accelerator(config.accelerator)
    with strictly():  # targets follow the corpus, file by file
        train(config, device)


def train(config: Config, device: str) -> None:
    """One run on the device of this name."""
    import jax
    import librosa  # noqa: F401 (this and sklearn: missed before the run folder is made, not after)
    import numpy as np
    import optax
    import sklearn  # noqa: F401
    from flax import nnx

    from daisy_jax import Hubert, HubertConfig, audio, load, save
    from daisy_jax.data.batches import Augmentation, draw_by_duration, read_crops, read_labels
    from daisy_jax.data.corpus import open_corpus
    from daisy_jax.data.labels import LabelsInOrder
    from daisy_jax.data.prefetch import Batch
    from daisy_jax.model.frame_labels import block_features
    from daisy_jax.model.hubert import Head
    from daisy_jax.training.cluster_targets import cluster_targets, mfcc
    from daisy_jax.training.loop import fit, loss_and_accuracy, warmup_then_decay
    from daisy_jax.training.pretraining import masked_prediction_loss, span_mask
    from daisy_jax.training.run_folder import Run
    from daisy_jax.whole_files import whole_files

    # ---- data ----
    corpus = open_corpus(config.data)
    noises = open_corpus(config.noise) if config.noise else None
    augmentation = Augmentation(noises, config.noise_probability, config.snr_range)
    hours = corpus.lengths.sum() / audio.SAMPLE_RATE / 3600
    print(f"{config.data}: {len(corpus.names)} utterances, {hours:.2f} h; on {device}")

    # ---- run folder ----
    run = Run(pathlib.Path(config.output), config, config.resume)

    # ---- targets ----
    target_file = run.folder / "targets.npz"
    if not (config.resume and target_file.exists()):
        if config.targets_from:
            features = block_features(load(config.targets_from), config.targets_layer)
        else:
            features = mfcc
        labels, centroids = cluster_targets(corpus, features, config.clusters, config.seed)
        with whole_files(target_file) as (partial,), open(partial, "wb") as stream:
            np.savez(stream, labels=labels, centroids=centroids)
    targets = LabelsInOrder(corpus, np.load(target_file)["labels"])

    # ---- model and optimizer ----
    if config.start_from:
        model = load(config.start_from).replace(branches=None, calibration=None)
        model_config = dataclasses.replace(
            model.config, num_classes=0, num_clusters=config.clusters, head_dim=config.head_dim
        )
        head = Head(model_config, rngs=nnx.Rngs(config.seed))
        model = model.replace(config=model_config, head=head)
    else:
        model_config = HubertConfig(
            num_layers=config.num_layers,
            dim=config.dim,
            ffn_dim=config.ffn_dim,
            num_heads=config.num_heads,
            conv_dim=config.conv_dim,
            pos_conv_kernel=config.pos_conv_kernel,
            normalize_input=True,
            num_clusters=config.clusters,
            head_dim=config.head_dim,
        )
        model = jax.jit(lambda: Hubert(model_config, rngs=nnx.Rngs(config.seed)))()
    schedule = warmup_then_decay(config.learning_rate, config.warmup_steps, config.steps)
    optimizer = optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(schedule, b1=0.9, b2=0.98, eps=1e-6, weight_decay=config.weight_decay),
    )
    state = (model, jax.jit(optimizer.init)(model))

    # ---- one step ----
    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, batch):
        model, optimizer_state = state
        gradient = jax.value_and_grad(masked_prediction_loss, has_aux=True)
        (loss, metrics), gradients = gradient(model, **batch)
        updates, optimizer_state = optimizer.update(gradients, optimizer_state, model)
        model = optax.apply_updates(model, updates)
        norm = optax.tree.norm(gradients)
        return (model, optimizer_state), {"loss": loss, "gradient_norm": norm, **metrics}

    samples = round(config.crop_seconds * audio.SAMPLE_RATE)
    frames = audio.frame_count(samples)

    def batch(number: int) -> Batch:
        rng = np.random.default_rng([config.seed, number])
        crops = draw_by_duration(corpus.lengths, config.batch_size, samples, rng)
        waveform, lengths = read_crops(corpus, crops, samples, augmentation, rng)
        labels = read_labels(targets, crops, frames)
        masked = span_mask(audio.frame_count(lengths), frames, rng)
        weight = np.asarray(max(1 - number / max(config.unmasked_steps, 1), 0), np.float32)
        return {
            "waveform": waveform,
            "lengths": lengths,
            "masked": masked,
            "labels": labels,
            "unmasked_weight": weight,
        }

    # ---- loop ----
    model, _ = fit(
        run,
        state,
        step,
        batch,
        steps=config.steps,
        save_every=config.save_every,
        log_every=config.log_every,
        describe=lambda values: (
            f"{loss_and_accuracy(values)}  unmasked {values['unmasked_accuracy']:.3f}"
        ),
    )
    save(model, run.folder / "model")
    print(f"{run.folder / 'model'}: next, train branches: python train/branches.py --model ...")


if __name__ == "__main__":
    run_command(main)
