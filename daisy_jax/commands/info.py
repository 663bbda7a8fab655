"""`daisy-jax info`: what a model folder holds."""

import dataclasses

import jax
import numpy as np
import tyro

import daisy_jax
from daisy_jax import Calibration, HubertConfig, InputError, audio
from daisy_jax.accelerator import use_accelerator
from daisy_jax.checkpoints import PACKAGED
from daisy_jax.console.terminal import say
from daisy_jax.exits import exit_layers, threshold_for_agreement
from daisy_jax.reporting import printable

RATIOS = (0.7, 0.76, 1.0)  # the paper's
AGREEMENTS = (0.99, 0.95, 0.9)
"""Shares of frames that keep the last layer's label."""
CONFIDENCE = 0.9
TYPICAL = 10 * audio.SAMPLE_RATE
"""Samples of an utterance for which costs are told; shares differ little with duration."""


@dataclasses.dataclass(frozen=True)
class Info:
    """Shows a model's architecture, parts, and calibration with the thresholds it gives."""

    model: tyro.conf.Positional[str] = ""
    """A model folder, or any other source that encode takes; empty: the small pretrained model that
    comes with the package."""
    known: bool = False
    """List public HuBERT checkpoints, and where they come from, instead."""

    def run(self) -> None:
        """Prints to stdout."""
        if self.known:
            if self.model:
                raise InputError(f"--known lists checkpoints; leave {self.model} out")
            say(known_table())
            return
        use_accelerator("cpu")
        model = daisy_jax.load(self.model or None)
        config = model.config
        count = sum(leaf.size for leaf in jax.tree.leaves(model))
        say(f"{self.model or PACKAGED}: {count / 1e6:.2f} million parameters")
        for field in dataclasses.fields(config):
            say(f"  {field.name:16} {getattr(config, field.name)}")
        head = f"{config.num_clusters} clusters" if model.head is not None else "none"
        say(f"prediction head: {head}")
        branches = f"{config.num_classes} classes a layer" if model.branches is not None else "none"
        say(f"branches: {branches}")
        cost = int(daisy_jax.multiply_adds(config, 160_000, config.num_layers))
        say(f"full depth on 10 s: {cost / 1e9:.2f} billion multiply-adds")
        if model.calibration is not None:
            say(entropy_table(model.calibration))
            say(agreement_table(model.calibration, config))
        else:
            advice = "run daisy-jax calibrate" if model.branches else "it needs branches first"
            say(f"calibration: none; {advice}")


def known_table() -> str:
    """The public checkpoints, a few lines each."""
    return "\n\n".join(
        f"{each.name}\n  {each.model} ({each.size}): {', '.join(each.parts)}\n"
        f"  {each.source}; licence: {each.licence}"
        for each in daisy_jax.known_checkpoints()
    )


def entropy_table(calibration: Calibration) -> str:
    """Mean entropy of each layer and the thresholds of the paper's ratios, in words."""
    mean = calibration.mean_entropy
    lines = [
        f"calibration: {len(calibration.entropy)} utterances of {printable(calibration.dataset)}"
    ]
    lines.append("  layer         " + " ".join(f"{k:6d}" for k in range(1, len(mean) + 1)))
    lines.append("  mean entropy  " + " ".join(f"{value:6.3f}" for value in mean))
    for ratio in RATIOS:
        threshold = float(daisy_jax.exit_threshold(mean, ratio))
        lines.append(f"  ratio {ratio:<4}  threshold {threshold:.4f} nats")
    return "\n".join(lines)


def agreement_table(calibration: Calibration, config: HubertConfig) -> str:
    """What certified thresholds cost and save, in words."""
    agreement = calibration.agreement
    if agreement is None:
        return (
            "  agreement with the last layer: earlier versions kept none; run daisy-jax calibrate"
            " again"
        )
    lines = [
        f"  agreement with the last layer, certified with {CONFIDENCE:.0%} confidence for new "
        "utterances of this kind (encode --agreement):"
    ]
    for wanted in AGREEMENTS:
        line = f"  at least {wanted:.0%}  "
        try:
            threshold = threshold_for_agreement(calibration, wanted, CONFIDENCE)
        except InputError as error:
            lines.append(line + str(error))
            continue
        layers, _ = exit_layers(calibration.entropy, threshold)
        costs = daisy_jax.multiply_adds(config, TYPICAL, layers)
        full = daisy_jax.multiply_adds(
            config, TYPICAL, config.num_layers, np.zeros(config.num_layers, bool)
        )
        saved = 1 - float(np.mean(costs)) / int(full)
        kept = agreement[np.arange(len(layers)), layers - 1]
        lines.append(
            f"{line}threshold {threshold:.4f} nats, mean exit layer {layers.mean():.2f}, "
            f"multiply-adds saved {saved:.1%}, agreement here {np.mean(kept, dtype=np.float64):.1%}"
        )
    return "\n".join(lines)
