"""Writes the numbers that `daisy-jax check` compares with, from HuBERT in float64 (reference.py).

python tests/make_check_references.py
"""

import json
import pathlib

import numpy as np
from reference import Reference, parameters
from scipy.special import log_softmax, softmax

from daisy_jax.commands import device_checks

PATH = pathlib.Path(device_checks.__file__).with_name("check_references.json")
CONFIGS = {"small": device_checks.SMALL, "base": device_checks.BASE}


def make(config) -> dict:
    """The reference of one model, as it stands in the file."""
    model = device_checks.random_model(config)
    reference = Reference(config, parameters(model))
    length = device_checks.LENGTHS[0]
    waveform = device_checks.sounds(device_checks.LENGTHS)[0, :length]
    _, hidden, taps = reference.everything(waveform)
    (labels,) = device_checks.labels(config)
    kernels, biases = (reference.weights[f"branches.{part}"] for part in ("kernel", "bias"))
    loss, gradient = 0.0, []
    for tapped, kernel, bias in zip(taps, kernels, biases, strict=True):
        logits = tapped @ kernel + bias
        chosen = np.arange(len(labels)), labels
        loss -= log_softmax(logits, axis=1)[chosen].mean()
        error = softmax(logits, axis=1)
        error[chosen] -= 1
        gradient.append(tapped.T @ error / len(labels))
    entropy = [reference.entropy(k, tapped) for k, tapped in enumerate(taps, 1)]

    def rounded(values):
        return [float(f"{value:.8g}") for value in values]

    return {
        "hidden": rounded(device_checks.sampled(hidden)),
        "entropy": rounded(entropy),
        "loss": float(f"{loss:.8g}"),
        "gradient": rounded(device_checks.sampled(np.stack(gradient))),
    }


if __name__ == "__main__":
    PATH.write_text(json.dumps({name: make(config) for name, config in CONFIGS.items()}) + "\n")
