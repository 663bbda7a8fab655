"""Throughput of `daisy-jax encode --manifest` with one process, with two, and with Ray's workers.

    python benchmarks/corpora.py [--count 600] [--workers 2]

Writes so many WAV files of 1 to 20 s with drawn samples. The ways take turns; each is timed as a
whole command, start included, with compiled programs in a cache that a first run has filled. Then
`--stream` files of half a second go through `encode_shard`, and resident memory is printed on the
way. The model is daisy-tiny at ratio 0.7.
"""

import dataclasses
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import tyro
from files import resident_bytes

from daisy_jax.accelerator import Accelerator, use_accelerator
from daisy_jax.console.terminal import run_command

PROGRAM = [sys.executable, "-c", "from daisy_jax.commands.main import main; main()"]


@dataclasses.dataclass(frozen=True)
class Config:
    """What to time."""

    count: int = 600
    """Files that are timed."""
    workers: int = 2
    """Processes side by side, and Ray's workers."""
    runs: int = 3
    """Measurements of each, in turn."""
    ray: bool = True
    """Also Ray (extra ray)."""
    stream: int = 20_000
    """Files of half a second for the memory."""
    accelerator: Accelerator = "auto"
    """Where to compute."""


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        times(config, folder)
        memory(config, folder)


def times(config: Config, folder: pathlib.Path) -> None:
    """Prints each way's seconds, and their ratio to one process'."""
    import numpy as np
    import soundfile

    rng = np.random.default_rng(0)
    lengths = rng.integers(16_000, 20 * 16_000, config.count)
    (folder / "speech").mkdir()
    for number, length in enumerate(lengths):
        samples = 0.1 * rng.standard_normal(length)
        soundfile.write(folder / "speech" / f"{number}.wav", samples, 16_000, subtype="PCM_16")
    names = [f"{number}.wav" for number in range(config.count)]
    (folder / "list").write_text("\n".join([str(folder / "speech"), *names]) + "\n")

    def command(*options: object) -> list[str]:
        usual = ["encode", "--manifest", folder / "list", "--output", folder / "store"]
        usual += ["--compilation-cache", folder / "cache", "--accelerator", config.accelerator]
        return [*PROGRAM, *map(str, [*usual, *options])]

    shares = [command("--shard", f"{n}/{config.workers}") for n in range(config.workers)]
    size = -(-config.count // config.workers)
    ways = {
        "one process": [command("--shard-files", size)],
        f"{config.workers} processes": shares,
    }
    if config.ray:
        ray = command("--shard-files", size // 4, "--ray", "--workers", config.workers)
        ways[f"Ray, {config.workers} workers"] = [ray]
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(config.runs + 1):  # the first fills the cache
        for way, commands in ways.items():
            shutil.rmtree(folder / "store", ignore_errors=True)
            start = time.perf_counter()
            started = [
                subprocess.Popen(each, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
                for each in commands
            ]
            for process in started:
                _, errors = process.communicate()
                if process.returncode:
                    raise SystemExit(errors.decode())
            if turn:
                seconds[way].append(time.perf_counter() - start)
    audio = lengths.sum() / 16_000
    alone = statistics.median(seconds["one process"])
    print(f"{config.count} files, {audio / 3600:.2f} h; medians of {config.runs}\n")
    print("| way | seconds | times real time | throughput / one process |")
    print("| --- | ---: | ---: | ---: |")
    for way, found in seconds.items():
        median = statistics.median(found)
        print(f"| {way} | {median:.1f} | {audio / median:.0f} | {alone / median:.2f} |")


def memory(config: Config, folder: pathlib.Path) -> None:
    """Prints resident memory while many short files are encoded."""
    use_accelerator(config.accelerator)

    import numpy as np
    import soundfile

    import daisy_jax
    from daisy_jax.data.file_list import FileList
    from daisy_jax.exits import ExitRule
    from daisy_jax.features.contents import AtExit
    from daisy_jax.features.extract import Extractor, encode_shard

    if not config.stream:
        return
    samples = 0.1 * np.random.default_rng(0).standard_normal(8_000)
    (folder / "short").mkdir()
    soundfile.write(folder / "short" / "0.wav", samples, 16_000, subtype="PCM_16")
    for number in range(1, config.stream):
        (folder / "short" / f"{number}.wav").hardlink_to(folder / "short" / "0.wav")
    model = daisy_jax.load()
    assert model.calibration is not None
    threshold = float(daisy_jax.exit_threshold(model.calibration.mean_entropy, 0.7))
    everywhere = np.ones(model.config.num_layers, bool)
    extractor = Extractor(model, AtExit(ExitRule("", threshold, everywhere)))
    names = [f"{number}.wav" for number in range(config.stream)]
    files = FileList(folder / "short", names, {}, 0)
    shards = -(-config.stream // 500)
    print(f"\n{config.stream} files of 0.5 s in {shards} shards: files, resident memory in MB")
    for number in range(shards):
        encode_shard(extractor, files, number, shards, folder / "stream")
        if (number + 1) % max(1, shards // 8) == 0 or number == 0:
            done = min((number + 1) * 500, config.stream)
            print(f"{done:7d} {resident_bytes() / 1e6:8.0f}", flush=True)


if __name__ == "__main__":
    run_command(main)
