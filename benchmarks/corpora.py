"""Throughput of `daisy-jax extract` with one process, with two, and with Ray's workers.

    python benchmarks/corpora.py [--count 600] [--workers 2]

Writes so many WAV files of 1 to 20 s with drawn samples. The ways take turns; each is timed as a
whole command, start included, with compiled programs in a cache that a first run has filled. Then
`--stream` files of half a second go through `encode_shard`, and resident memory is printed on the
way. The model is daisy-tiny.
"""

# First, so that Ctrl-C ends the program while everything else is loaded.
import daisy_jax

# isort: split

import dataclasses
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable

import numpy as np
import tyro
from timing import TimingOptions, resident_bytes, write_noise

from daisy_jax.accelerator import use_accelerator
from daisy_jax.console.terminal import run_command, say
from daisy_jax.parallel import medians

PROGRAM = [sys.executable, "-c", "from daisy_jax.commands.main import main; main()"]


@dataclasses.dataclass(frozen=True)
class Config(TimingOptions):
    """What to time."""

    count: int = 600
    """Files that are timed."""
    workers: int = 2
    """Processes side by side, and Ray's workers."""
    ray: bool = True
    """Also Ray (extra ray)."""
    stream: int = 20_000
    """Files of half a second for the memory."""


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        times(config, folder)
        memory(config, folder)


def times(config: Config, folder: pathlib.Path) -> None:
    """Prints each way's seconds, and their ratio to one process'."""
    lengths = np.random.default_rng(0).integers(16_000, 20 * 16_000, config.count)
    names = [path.name for path in write_noise(folder / "speech", lengths)]
    (folder / "list").write_text("\n".join([str(folder / "speech"), *names]) + "\n")

    def command(*options: object) -> list[str]:
        usual = ["extract", folder / "list", "--output", folder / "store"]
        usual += ["--compilation-cache", folder / "cache", "--accelerator", config.accelerator]
        return [*PROGRAM, *map(str, [*usual, *options])]

    def way(*commands: list[str]) -> Callable[[], None]:
        def run() -> None:
            shutil.rmtree(folder / "store", ignore_errors=True)
            started = [
                subprocess.Popen(each, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
                for each in commands
            ]
            for process in started:
                _, errors = process.communicate()
                if process.returncode:
                    raise SystemExit(errors.decode())

        return run

    workers = config.workers
    size = -(-config.count // workers)
    shares = [command("--shard", f"{number}/{workers}") for number in range(workers)]
    ways = {
        "one process": way(command("--shard-files", size)),
        f"{workers} processes": way(*shares),
    }
    if config.ray:
        ray = command("--shard-files", size // 4, "--ray", "--workers", workers)
        ways[f"Ray, {workers} workers"] = way(ray)
    seconds = medians(ways, config.runs)  # whose warm-up fills the cache
    audio, alone = lengths.sum() / 16_000, seconds["one process"]
    say(f"{config.count} files, {audio / 3600:.2f} h; medians of {config.runs}\n")
    say("| way | seconds | times real time | throughput / one process |")
    say("| --- | ---: | ---: | ---: |")
    for name, median in seconds.items():
        say(f"| {name} | {median:.1f} | {audio / median:.0f} | {alone / median:.2f} |")


def memory(config: Config, folder: pathlib.Path) -> None:
    """Prints resident memory while many short files are encoded."""
    use_accelerator(config.accelerator)

    from daisy_jax.data.file_list import FileList
    from daisy_jax.features import contents
    from daisy_jax.features.extract import Extractor, encode_shard

    if not config.stream:
        return
    (first,) = write_noise(folder / "short", [8_000])
    names = [f"{number}.wav" for number in range(config.stream)]
    for name in names[1:]:
        (folder / "short" / name).hardlink_to(first)
    model = daisy_jax.load()
    extractor = Extractor(model, contents.layers((model.config.num_layers,)))
    files = FileList(folder / "short", names, {}, 0)
    shards = -(-config.stream // 500)
    say(f"\n{config.stream} files of 0.5 s in {shards} shards: files, resident memory in MB")
    for number in range(shards):
        encode_shard(extractor, files, number, shards, folder / "stream")
        if (number + 1) % max(1, shards // 8) == 0 or number == 0:
            done = min((number + 1) * 500, config.stream)
            say(f"{done:7d} {resident_bytes() / 1e6:8.0f}", flush=True)


if __name__ == "__main__":
    run_command(main)
