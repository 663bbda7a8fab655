r"""Checks a converted model against PyTorch on the checkpoint that it was converted from.

    python conversions/verify.py DST --against SRC [--audio FILE]

Runs transformers on its own folders, and a plain PyTorch forward pass on other formats, in float64;
prints the largest difference of every hidden state relative to its rms, of the branches' entropies
and of the frame labels. Exit status 1 if one is beyond the tolerance.

With the reference features that fairseq publishes for its checkpoints (`sample.base.L9.npy` and its
kin, of `6313-76958-0021.flac`) those are checked as well:

    python conversions/verify.py DST --against hubert_base_ls960.pt --audio 6313-76958-0021.flac \
        --features sample.base.L9.npy --features-layer 9
"""

# First, so that Ctrl-C ends the program while everything else is loaded.
import daisy_jax

# isort: split

import dataclasses
import importlib
import math
import pathlib
from collections.abc import Sequence
from typing import Annotated

import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Float, Float64, Int

from daisy_jax import InputError
from daisy_jax.accelerator import use_accelerator
from daisy_jax.console.terminal import run_command, say
from daisy_jax.conversions.rules import Source
from daisy_jax.conversions.sources import open_source, saved_features
from daisy_jax.conversions.transformers_folder import PREPROCESSORS

SAMPLE = pathlib.Path(daisy_jax.__file__).parent / "samples" / "reading-3.flac"
Frames = Float64[np.ndarray, "frames dim"]
States = Float64[np.ndarray, "items frames dim"]
SPECIALS = 4  # rows of fairseq's label embeddings that belong to no cluster


@dataclasses.dataclass(frozen=True)
class Config:
    """What to compare."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DST")]
    """The model folder."""
    against: str
    """The checkpoint it was converted from."""
    audio: str = str(SAMPLE)
    """A sound file."""
    tolerance: float = 2e-5
    """Largest difference allowed, relative to the rms of the hidden state; nats for entropies.
    Double of what is promised, as single numbers of a long file stray further."""
    features: str = ""
    """A .npy file [frames, dim] with fairseq's features of the audio."""
    features_layer: int = 0
    """The layer that they come from, from 1."""
    features_tolerance: float = 1e-3
    """Their tolerance; they were computed on another machine, in lower precision."""


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    use_accelerator("cpu")  # whose float32 products are exact to the last bits
    model = daisy_jax.load(config.model)
    waveform = daisy_jax.audio.load(config.audio)
    source = open_source(config.against, model.config.num_heads)
    for part, ours_has, theirs_has in (
        ("prediction head", model.head, source.config.num_clusters),
        ("branches", model.branches, source.config.num_classes),
    ):
        if bool(ours_has) != bool(theirs_has):
            where = config.model if ours_has else config.against
            say(f"{part}: not compared, as only {where} has one")
    threshold = -np.inf if model.branches else None
    out = daisy_jax.encode(model, waveform[None], threshold=threshold, return_hidden_states=True)
    ours = np.asarray(out.hidden_states, np.float64)[0]
    say(f"{config.model} against {config.against} ({source.format}), {ours.shape[1]} frames")
    say(
        f"taken as the checkpoint's configuration has it: {source.config.num_heads} heads, input "
        f"normalisation {'on' if source.config.normalize_input else 'off'}"
    )
    if source.config.normalize_input != model.config.normalize_input:
        raise InputError(f"{config.model} treats input normalisation otherwise; convert again")
    differences = Differences(config.tolerance)
    if source.format == "transformers folder":
        hidden = transformers_states(config.against, waveform, source.config.normalize_input)
        differences.add_states(hidden, ours)
    else:
        batch = jnp.asarray(waveform)[None]
        labels = np.asarray(daisy_jax.frame_labels(model, batch)[0]) if model.head else None
        compare_everything(source, waveform, ours, out.entropy[0], labels, differences)
    if config.features:
        layers = model.config.num_layers
        if not 1 <= config.features_layer <= layers:
            raise InputError(f"--features-layer is {config.features_layer}; give 1 to {layers}")
        reference = saved_features(config.features)
        name = f"{config.features}, layer {config.features_layer}"
        differences.add_array(
            name, reference, ours[config.features_layer], config.features_tolerance
        )
    differences.finish()


def row_numbers(symbols: Sequence[str], clusters: int) -> list[int]:
    """The number that a dictionary gives to each row of a checkpoint; else rows are counted."""
    numbers = [int(symbol) for symbol in symbols if symbol.isdecimal()]
    return numbers if set(numbers) == set(range(clusters)) else list(range(clusters))


def compare_everything(
    source: Source,
    waveform: Float[np.ndarray, " samples"],
    ours: States,
    entropy: Float[Array, " layers"],
    labels: Int[np.ndarray, " frames"] | None,
    differences: "Differences",
) -> None:
    """Hidden states, entropies and labels against the plain PyTorch forward pass."""
    import torch
    from torch_forward import TorchHubert

    settings = source.config
    theirs = TorchHubert(source.tensors, settings.num_heads, settings.norm_first)
    with torch.no_grad():
        states = theirs.run(waveform, settings.normalize_input)
        differences.add_states([state.numpy() for state in states.hidden], ours)
        if settings.num_classes and math.isfinite(entropy[0]):
            tapped = states.ffn if settings.tap == "ffn" else states.hidden[1:]
            for layer, reference in enumerate(theirs.entropies(tapped)):
                difference = abs(reference - float(entropy[layer]))
                differences.add(f"entropy {layer + 1}, nats", difference)
        if settings.num_clusters and labels is not None:
            specials = 0 if "torchaudio" in source.format else SPECIALS
            scores = theirs.label_scores(states.final, settings.num_clusters, specials)
            numbers = row_numbers(source.symbols, settings.num_clusters)
            rows = torch.tensor([numbers.index(label) for label in labels.tolist()])
            chosen = scores[torch.arange(len(scores)), rows]
            equal = int((scores.argmax(dim=-1) == rows).sum())
            say(f"frame labels: {equal} of {len(scores)} equal")
            # A label may only differ where two clusters score the same.
            lost = float((scores.max(dim=-1).values - chosen).max())
            differences.add("score lost by the labels", lost)


def transformers_states(
    folder: str, waveform: Float[np.ndarray, " samples"], normalize: bool
) -> list[Frames]:
    """Hidden states of transformers' whole pipeline: its feature extractor, then its HubertModel.

    Where the folder says nothing of a feature extractor, `normalize` does.
    """
    import torch

    # By name, since type checkers would take twenty seconds to read all of its models.
    transformers = importlib.import_module("transformers")
    model = transformers.HubertModel.from_pretrained(folder, dtype=torch.float64).eval()
    kind = transformers.Wav2Vec2FeatureExtractor
    if any((pathlib.Path(folder) / name).is_file() for name, _ in PREPROCESSORS):
        extractor = kind.from_pretrained(folder)
    else:
        extractor = kind(do_normalize=normalize)
    extracted = extractor(waveform, sampling_rate=daisy_jax.audio.SAMPLE_RATE, return_tensors="pt")
    x = extracted["input_values"].double()
    with torch.no_grad():
        states = model(x, output_hidden_states=True).hidden_states
    return [state[0].numpy() for state in states]


class Differences:
    """Prints differences and remembers which are too large."""

    def __init__(self, tolerance: float):
        self.tolerance = tolerance
        self.beyond: list[str] = []

    def add(self, name: str, difference: float, tolerance: float | None = None) -> None:
        """One difference; not a number is too large, too."""
        tolerance = self.tolerance if tolerance is None else tolerance
        fits = difference <= tolerance
        say(f"{name}: {difference:.1e}{'' if fits else f', beyond {tolerance:g}'}")
        if not fits:
            self.beyond.append(name)

    def add_array(
        self, name: str, theirs: Frames, ours: Frames, tolerance: float | None = None
    ) -> None:
        """The largest difference of two arrays, relative to the rms of the first."""
        if theirs.shape != ours.shape:
            raise InputError(f"{name}: {theirs.shape}, where ours has {ours.shape}")
        scale = np.sqrt(np.mean(theirs**2))
        self.add(name, float(np.max(np.abs(theirs - ours)) / scale), tolerance)

    def add_states(self, theirs: Sequence[Frames], ours: States) -> None:
        """All hidden states of a model."""
        if len(theirs) != len(ours):
            raise InputError(f"{len(theirs) - 1} layers, where ours has {len(ours) - 1}")
        for layer, (reference, mine) in enumerate(zip(theirs, ours, strict=True)):
            self.add_array(f"hidden state {layer}", reference, mine)

    def finish(self) -> None:
        """Ends the command with status 1 if anything was too large."""
        if self.beyond:
            raise InputError(f"the models differ in {len(self.beyond)} places: {self.beyond[0]}")
        say("equal within the tolerance")


if __name__ == "__main__":
    run_command(main)
