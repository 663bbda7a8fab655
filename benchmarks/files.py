"""Time of `encode_files` over many files, against one compiled call for each file.

    python benchmarks/files.py [--count 1000]

Writes so many WAV files of 1 to 20 s with drawn samples, and compares their way through
`encode_files` (reading included) with the sum of calls on each file alone, at the width it has
there (without reading). Compilation is
left out of both; medians are compared. The model is daisy-tiny at ratio 0.7.
Then `--stream` short files go through it one by one, and resident memory is printed on the way.
"""

import dataclasses
import itertools
import pathlib
import resource
import tempfile

import tyro

from daisy_jax.accelerator import Accelerator, use_accelerator
from daisy_jax.console.terminal import run_command
from daisy_jax.devices import medians


@dataclasses.dataclass(frozen=True)
class Config:
    """What to time."""

    count: int = 1000
    """Files that are timed."""
    runs: int = 3
    """Measurements of each, in turn, after a warm-up."""
    stream: int = 20_000
    """Files of half a second for the memory."""
    model: str = ""
    """A model folder with calibration; empty: the packaged model."""
    accelerator: Accelerator = "auto"
    """Where to compute."""


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    device = use_accelerator(config.accelerator)

    import jax
    import numpy as np
    import soundfile

    import daisy_jax

    model = daisy_jax.load(config.model or None)
    threshold = daisy_jax.exit_threshold(model.calibration.mean_entropy, 0.7)
    rng = np.random.default_rng(0)
    lengths = rng.integers(16_000, 20 * 16_000, config.count)
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(pathlib.Path(folder, f"{number}.wav")) for number in range(config.count)]
        for path, length in zip(paths, lengths, strict=True):
            soundfile.write(path, 0.1 * rng.standard_normal(length), 16_000, subtype="PCM_16")
        waveforms = [daisy_jax.audio.load(path) for path in paths]

        def together() -> None:
            for _ in daisy_jax.encode_files(model, paths, threshold=threshold):
                pass

        def alone() -> None:
            for waveform in waveforms:
                batch = daisy_jax.audio.pad_batch(
                    [waveform], daisy_jax.audio.padded_width(len(waveform))
                )
                jax.device_get(daisy_jax.encode(model, *batch, threshold=threshold))

        seconds = medians({"together": together, "alone": alone}, config.runs)
        print("stream of files of 0.5 s: file, resident memory in MB")
        short = str(pathlib.Path(folder, "short.wav"))
        soundfile.write(short, waveforms[0][:8_000], 16_000)
        results = daisy_jax.encode_files(
            model, itertools.repeat(short, config.stream), threshold=threshold
        )
        for number, _ in enumerate(results, start=1):
            if number % max(1, config.stream // 5) == 0:
                print(f"{number:7d} {resident_bytes() / 1e6:8.0f}")
    audio_seconds = lengths.sum() / 16_000
    print(f"{config.count} files, {audio_seconds:.0f} s of audio, on {device}")
    for name, value in seconds.items():
        print(f"{name}: {value:.1f} s, {audio_seconds / value:.0f} times real time")
    print(f"encode_files / calls alone: {seconds['together'] / seconds['alone']:.2f}")


def resident_bytes() -> int:
    """Memory that this process holds now (Linux)."""
    pages = pathlib.Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * resource.getpagesize()


if __name__ == "__main__":
    run_command(main)
