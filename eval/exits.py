"""Where utterances leave the model, clean and noisy, and each layer's entropy.

    python eval/exits.py --data SPEECH --noise NOISE

Prints Markdown: mean entropy of each layer with its correlation with depth (figure 2 of the paper),
then mean exit layers per signal-to-noise ratio (figure 4), all under one threshold a ratio, which
comes from the calibration stored with the model. Noise is looped or cropped at a seeded offset, one
recording an utterance, the same at every level. SPEECH and NOISE are folders of sound files or
prepared folders.
"""

import dataclasses

import tyro

from daisy_jax.terminal import Accelerator, progress_bar, run_command, use_accelerator


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure."""

    data: str
    """Clean speech."""
    noise: str = ""
    """Noise recordings; empty: clean speech only."""
    model: str = ""
    """A model folder with calibration; empty: the packaged model."""
    snrs: tuple[float, ...] = (10.0, 5.0, 0.0)
    """Signal-to-noise ratios, dB, over the whole utterance."""
    ratios: tuple[float, ...] = (0.7, 0.76, 1.0)
    """Of eq. (3)."""
    seed: int = 0
    """Of the choice of noise."""
    accelerator: Accelerator = "auto"
    """Where to compute."""


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    use_accelerator(config.accelerator)

    import numpy as np

    from daisy_jax import audio
    from daisy_jax.checkpoints import load
    from daisy_jax.data.corpus import open_corpus
    from daisy_jax.data.noise import draw_noise, mix
    from daisy_jax.encode import encode
    from daisy_jax.errors import InputError
    from daisy_jax.exits import exit_layers, exit_threshold

    model = load(config.model or None)
    if model.calibration is None:
        raise InputError("this model has no calibration; run daisy-jax calibrate first")
    corpus = open_corpus(config.data)
    noises = open_corpus(config.noise) if config.noise else None

    def entropies(snr: float | None) -> np.ndarray:
        """[utterances, L], nats."""
        rows = []
        for index in progress_bar("clean" if snr is None else f"{snr:g} dB")(
            range(len(corpus.names))
        ):
            waveform = corpus.read(index, 0, int(corpus.lengths[index]))
            if noises is not None and snr is not None:
                rng = np.random.default_rng([config.seed, index])
                waveform = mix(waveform, draw_noise(noises, len(waveform), rng), snr)
            batch = audio.batch_of_one(waveform)
            rows.append(np.asarray(encode(model, *batch, threshold=-np.inf).entropy)[0])
        return np.stack(rows)

    conditions: dict[str, float | None] = {"clean": None}
    if noises is not None:
        conditions |= {f"{snr:g} dB": snr for snr in config.snrs}
    measured = {name: entropies(snr) for name, snr in conditions.items()}

    layers = np.arange(1, model.config.num_layers + 1)
    print(f"{len(corpus.names)} utterances of {config.data}; mean entropy, nats\n")
    print("| condition | " + " | ".join(f"{layer}" for layer in layers) + " | min / max | r |")
    print("| --- |" + " ---: |" * (len(layers) + 2))
    for name, entropy in measured.items():
        mean = entropy.mean(axis=0)
        cells = " | ".join(f"{value:.3f}" for value in mean)
        correlation = np.corrcoef(layers, mean)[0, 1]
        print(f"| {name} | {cells} | {mean.min() / mean.max():.2f} | {correlation:.3f} |")

    print("\nmean exit layer ± standard deviation (forced to the last layer)\n")
    print("| ratio | threshold | " + " | ".join(measured) + " |")
    print("| --- | ---: |" + " ---: |" * len(measured))
    for ratio in config.ratios:
        threshold = float(exit_threshold(model.calibration.mean_entropy, ratio))
        cells = []
        for entropy in measured.values():
            exits, forced = exit_layers(entropy, threshold)
            cells.append(f"{exits.mean():.2f} ± {exits.std():.2f} ({forced.mean():.0%})")
        print(f"| {ratio:g} | {threshold:.4f} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    run_command(main)
