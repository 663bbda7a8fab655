"""What windows cost: how far features are from those of the whole recording, and memory.

    python benchmarks/windows.py FILES --window 10 [--hour]

Files are joined to one recording of up to `--seconds`. Its features at full depth, cut into
windows, are compared with those of the whole recording, by distance from the nearest cut: the norm
of the difference as a share of the norm that frames have, root mean square. With --hour, noise of
48 kHz in two channels, a minute and an hour of it, goes through `daisy-jax encode`, and the most
memory that each process held is printed.
"""

# First, so that Ctrl-C ends the program while everything else is loaded.
import daisy_jax

# isort: split

import dataclasses
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Annotated

import numpy as np
import tyro
from jaxtyping import Float

from daisy_jax.accelerator import Accelerator, use_accelerator
from daisy_jax.console.terminal import run_command, say
from daisy_jax.data.file_list import expand_folders

CONTEXTS = (0.0, 0.5, 1.0, 2.0)
BOUNDS = (0.1, 0.5, 1.0, 2.0, np.inf)
"""Seconds from a cut."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What to compare."""

    files: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Sound files, or folders of them."""
    model: str = ""
    """A model; empty: the packaged one."""
    window: float = 10.0
    """Seconds."""
    seconds: float = 60.0
    """Length of the joined recording; attention takes the square of it."""
    hour: bool = False
    """Measure memory, too."""
    accelerator: Accelerator = "auto"
    """Where to compute."""


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    if config.hour:  # while this process is small: Linux counts its memory as a child's, too
        with tempfile.TemporaryDirectory() as folder:
            for minutes in (1, 60):
                held = memory(pathlib.Path(folder), minutes, config)
                say(f"{minutes} min: {held / 1e6:.0f} MB", flush=True)
    device = use_accelerator(config.accelerator)
    model = daisy_jax.load(config.model or None)
    wanted = round(config.seconds * daisy_jax.audio.SAMPLE_RATE)
    joined = [daisy_jax.audio.load(file) for file in expand_folders(config.files)]
    recording = np.concatenate(joined)[:wanted]
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "joined.wav")
        write(path, recording, daisy_jax.audio.SAMPLE_RATE)
        whole = features(model, path, None, 0)
        seconds = len(recording) / daisy_jax.audio.SAMPLE_RATE
        say(f"{seconds:.1f} s in windows of {config.window:g} s, on {device}")
        say("context | " + " | ".join(bands()) + " | all")
        scale = float(np.sqrt(np.mean(np.sum(whole**2, axis=1))))
        frame = daisy_jax.audio.FRAME_HOP / daisy_jax.audio.SAMPLE_RATE
        at = (np.arange(len(whole)) + 0.5) * frame
        cuts = np.arange(config.window, seconds, config.window)
        distance = np.abs(at[:, None] - cuts[None]).min(axis=1, initial=np.inf)
        band = np.searchsorted(BOUNDS, distance)
        for context in CONTEXTS:
            cut = features(model, path, config.window, context)
            squares = np.sum((cut - whole) ** 2, axis=1)
            parts = [squares[band == number] for number in range(len(BOUNDS))]
            errors = [np.sqrt(part.mean()) / scale for part in [*parts, squares] if len(part)]
            say(f"{context:g} s | " + " | ".join(f"{error:.4f}" for error in errors))


def bands() -> list[str]:
    """Distances from a cut in words."""
    lower = [0.0, *BOUNDS[:-1]]
    return [
        f"{low:g} to {high:g} s" if np.isfinite(high) else f"beyond {low:g} s"
        for low, high in zip(lower, BOUNDS, strict=True)
    ]


def features(
    model: daisy_jax.Hubert, path: pathlib.Path, window: float | None, context: float
) -> Float[np.ndarray, "frames dim"]:
    """Of one file at full depth."""
    (result,) = daisy_jax.encode_files(
        model, [path], max_seconds=1e9, window_seconds=window, context_seconds=context
    )
    assert result.last_hidden is not None, result.error
    return np.asarray(result.last_hidden, np.float32)


def write(path: pathlib.Path, sound: Float[np.ndarray, "samples *channels"], rate: int) -> None:
    """A WAV file."""
    import soundfile

    soundfile.write(path, sound, rate, subtype="PCM_16")


def memory(folder: pathlib.Path, minutes: int, config: Config) -> int:
    """The most bytes that `daisy-jax encode` held for so many minutes of 48 kHz in two channels."""
    import soundfile

    path = folder / f"{minutes}.wav"
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, (48_000, 2))
    with soundfile.SoundFile(path, "w", 48_000, 2, "PCM_16") as file:
        for _ in range(60 * minutes):
            file.write(noise)
    program = pathlib.Path(sys.executable).with_name("daisy-jax")
    words = [str(program), "encode", str(path), "--window", str(config.window), "--layer", "1"]
    words += ["--model", config.model] if config.model else []
    with subprocess.Popen(words, stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = status
    assert not status, f"{minutes} min: status {status}"
    return usage.ru_maxrss * 1024


if __name__ == "__main__":
    run_command(main)
