"""Time of `encode_files` over many files, against one compiled call for each file.

    python benchmarks/files.py [--count 1000]

Writes so many WAV files of 1 to 20 s with drawn samples, and compares their way through
`encode_files` (reading included) with the sum of calls on each file alone, at the width it has
there (without reading). Compilation is left out of both; medians are compared. The model is
daisy-tiny at ratio 0.7. Then `--stream` short files go through it one by one, and resident memory
is printed on the way.
"""

# First, so that Ctrl-C ends the program while everything else is loaded.
import daisy_jax

# isort: split

import dataclasses
import itertools
import pathlib
import tempfile

import jax
import numpy as np
import tyro
from timing import TimingOptions, resident_bytes, write_noise

from daisy_jax.accelerator import use_accelerator
from daisy_jax.console.terminal import run_command, say
from daisy_jax.parallel import medians


@dataclasses.dataclass(frozen=True)
class Config(TimingOptions):
    """What to time."""

    count: int = 1000
    """Files that are timed."""
    stream: int = 20_000
    """Files of half a second for the memory."""
    model: str = ""
    """A model folder with calibration; empty: the packaged model."""


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    device = use_accelerator(config.accelerator)
    model = daisy_jax.load(config.model or None)
    threshold = daisy_jax.exit_threshold(model.calibration.mean_entropy, 0.7)
    lengths = np.random.default_rng(0).integers(16_000, 20 * 16_000, config.count)
    with tempfile.TemporaryDirectory() as folder:
        paths = write_noise(pathlib.Path(folder), lengths)
        waveforms = [daisy_jax.audio.load(path) for path in paths]

        def together() -> None:
            for _ in daisy_jax.encode_files(model, paths, threshold=threshold):
                pass

        def alone() -> None:
            for waveform in waveforms:
                width = daisy_jax.audio.padded_width(len(waveform))
                batch = daisy_jax.audio.pad_batch([waveform], width)
                jax.device_get(daisy_jax.encode(model, *batch, threshold=threshold))

        seconds = medians({"together": together, "alone": alone}, config.runs)
        say("stream of files of 0.5 s: file, resident memory in MB")
        (short,) = write_noise(pathlib.Path(folder, "short"), [8_000])
        stream = itertools.repeat(short, config.stream)
        results = daisy_jax.encode_files(model, stream, threshold=threshold)
        for number, _ in enumerate(results, start=1):
            if number % max(1, config.stream // 5) == 0:
                say(f"{number:7d} {resident_bytes() / 1e6:8.0f}")
    audio_seconds = lengths.sum() / 16_000
    say(f"{config.count} files, {audio_seconds:.0f} s of audio, on {device}")
    for name, value in seconds.items():
        say(f"{name}: {value:.1f} s, {audio_seconds / value:.0f} times real time")
    say(f"encode_files / calls alone: {seconds['together'] / seconds['alone']:.2f}")


if __name__ == "__main__":
    run_command(main)
