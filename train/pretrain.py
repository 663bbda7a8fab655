"""Pretrains a HuBERT from audio: masked prediction of k-means clusters.

    python train/pretrain.py --data SPEECH --output RUN
    python train/pretrain.py --data SPEECH --targets-from RUN/model --output RUN2
    python train/pretrain.py --data SPEECH --targets LABELS --output RUN

The first iteration predicts clusters of MFCC, further ones clusters of an earlier model's features.
LABELS are frame labels from anywhere: a feature store of labels or units, a .km file of fairseq
with its .tsv beside it, or a folder of TextGrids (train/align.py).
The defaults are the recipe of the packaged `daisy-tiny`; see its model card. SPEECH and NOISE are
folders of sound files or prepared folders (train/prepare.py).
"""

# First, so that Ctrl-C ends the program while everything else is loaded.
from daisy_jax.console.terminal import run_command, say

# isort: split

import dataclasses
import functools
import pathlib

import tyro

from daisy_jax import InputError
from daisy_jax.training.cluster_targets import load_targets
from daisy_jax.training.settings import SpeechOptions, own_options_first
from daisy_jax.training.speeds import AtSpeeds, LabelsAtSpeeds, require_speeds


@own_options_first
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(SpeechOptions):
    """One pretraining run."""

    data: str
    """Speech: a folder of sound files or a prepared folder."""
    output: str
    """The run folder."""
    targets_from: str = ""
    """A model folder whose features are clustered; empty: MFCC."""
    targets_layer: int = 6
    """The layer whose block outputs are clustered."""
    clusters: int = 100
    """Classes, where they are clusters."""
    targets: str = ""
    """Frame labels that are predicted in the place of clusters: a store, a .km file, or a folder of
    TextGrids. Utterances without any are left out."""
    tier: str = "phones"
    """The tier of the TextGrids."""
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
    mask_probability: float = 0.08
    """Share of the frames that begin a masked span of ten."""
    unmasked_steps: int = 1_000
    """Unmasked frames count too in the beginning, with a weight that falls to 0 over so many steps.
    Without them a small model does not get off the labels' plain frequencies."""
    unmasked_weight: float = 1.0
    """That weight at first; a masked frame's is 1."""
    steps: int = 2_400
    batch_size: int = 8
    learning_rate: float = 8e-4
    crop_seconds: float = 4.0
    speeds: tuple[float, ...] = (1.0,)
    """Each utterance is taken once at each of these speeds, its pitch with it."""
    equalizer: float = 0.0
    """Largest gain of a random equalizer for each crop, dB up and down; 0: none."""
    save_every: int = 500
    warmup_steps: int = 300
    """Steps of the warm-up."""
    clip: float = 1.0
    """Largest global norm of the gradient."""


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    if config.targets and config.targets_from:
        raise InputError("--targets and --targets-from exclude each other; give one of them")
    require_speeds(config.speeds)
    if not config.equalizer >= 0:
        raise InputError(f"--equalizer is {config.equalizer}; give at least 0 dB")
    if not 0 < config.mask_probability <= 1 or not config.unmasked_weight >= 0:
        raise InputError(
            f"--mask-probability is {config.mask_probability} and --unmasked-weight "
            f"{config.unmasked_weight}; give a share above 0 and a weight of at least 0"
        )
    strict = True  # as targets follow the corpus, file by file
    with config.started("float32", strict) as device:
        train(config, device)


def train(config: Config, device: str) -> None:
    """One run on the device of this name."""
    import jax
    import librosa  # noqa: F401 (this and sklearn: missed before the run folder is made, not after)
    import numpy as np
    import optax
    import sklearn  # noqa: F401
    from flax import nnx

    import daisy_jax
    from daisy_jax import Hubert, HubertConfig, load, save
    from daisy_jax.data.batches import LabelsInOrder, draw_by_duration, read_batch
    from daisy_jax.data.corpus import open_corpus, size_of
    from daisy_jax.features.label_sources import open_labels
    from daisy_jax.model.frame_labels import block_features
    from daisy_jax.model.hubert import Head
    from daisy_jax.training.cluster_targets import cluster_targets, mfcc, save_targets
    from daisy_jax.training.loop import fit, loss_and_accuracy, warmup_then_decay
    from daisy_jax.training.pretraining import masked_prediction_loss, span_mask
    from daisy_jax.training.run_folder import Run

    # ---- data ----
    corpus = open_corpus(config.data)
    augmentation = dataclasses.replace(config.augmentation(), equalizer=config.equalizer)
    say(f"{config.data}: {size_of(corpus.lengths)}; on {device}")

    # ---- run folder ----
    run = Run(pathlib.Path(config.output), config, config.resume)

    # ---- targets ----
    target_file = run.folder / "targets.npz"
    if config.targets:
        corpus, targets, names = open_labels(config.targets, corpus, config.tier)
        classes = len(names)
        say(f"{config.targets}: {classes} classes; {size_of(corpus.lengths)}")
    else:
        if not (config.resume and target_file.exists()):
            if config.targets_from:
                features = block_features(load(config.targets_from), config.targets_layer)
            else:
                features = mfcc
            clusters = cluster_targets(corpus, features, config.clusters, config.seed)
            save_targets(target_file, *clusters)
        targets, classes = LabelsInOrder(corpus, load_targets(target_file)[0]), config.clusters
    corpus = AtSpeeds(corpus, config.speeds)
    targets = LabelsAtSpeeds(corpus, targets)

    # ---- model and optimizer ----
    if config.start_from:
        model = load(config.start_from).replace(branches=None, calibration=None)
        model_config = dataclasses.replace(
            model.config, num_classes=0, num_clusters=classes, head_dim=config.head_dim
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
            num_clusters=classes,
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

    samples = config.crop_samples
    frames = daisy_jax.audio.frame_count(samples)

    def batch(number: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng([config.seed, number])
        crops = draw_by_duration(corpus.lengths, config.batch_size, samples, rng)
        read = read_batch(corpus, targets, crops, samples, augmentation, rng)
        counts = daisy_jax.audio.frame_count(read["lengths"])
        masked = span_mask(counts, frames, rng, config.mask_probability)
        left = max(1 - number / max(config.unmasked_steps, 1), 0)
        weight = np.asarray(config.unmasked_weight * left, np.float32)
        return read | {"masked": masked, "unmasked_weight": weight}

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
    say(f"{run.folder / 'model'}: next, train branches: python train/branches.py --model ...")


if __name__ == "__main__":
    run_command(main)
