"""What a training step of stage 1 costs, and how much memory.

    python benchmarks/stage1.py [--accelerator=gpu --dtype=bfloat16 --batches 32]

For every batch size: the trunk's forward pass alone, a step on a batch that is already in memory,
and a step whose batch is read from FLAC files, in turns; medians. Then the hours that the paper's
88 000 steps would take, and the memory of a step as XLA plans it (with what the process itself
reached), and the largest batch that fits. Weights are random: time does not depend on what they
say. The files are made of the package's own sample clips.
"""

import dataclasses
import itertools
import json
import pathlib
import resource
import sys
import tempfile
from collections.abc import Callable
from typing import Any, Literal

import tyro

from daisy_jax.accelerator import Accelerator, use_accelerator
from daisy_jax.console.terminal import run_command
from daisy_jax.devices import medians

PAPER_STEPS, PAPER_BATCH = 88_000, 32  # section 4
MEAN_SECONDS = 12.3  # of a LibriSpeech utterance: 961 h in 281 241
STEPS = 3  # of a loop that is timed


@dataclasses.dataclass(frozen=True)
class Config:
    """What to time."""

    batches: tuple[int, ...] = (2, 4)
    """Utterances in a batch."""
    seconds: float = 12.3
    """Length of each."""
    size: Literal["tiny", "base", "large"] = "base"
    """Architecture."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """What the trunk computes in."""
    runs: int = 3
    """Measurements of each, in turn, after a warm-up."""
    memory_batches: tuple[int, ...] = (8, 32)
    """Batches of 15 s whose memory, on each device, is planned."""
    memory: float = 24.0
    """GiB that the largest batch must fit into."""
    run_largest: bool = False
    """Take one step with the last of these, for the memory that the process really reaches."""
    workers: int = 0
    """Processes that read; 0: threads."""
    output: str = ""
    """A JSON file for the results; empty: print only."""
    accelerator: Accelerator = "auto"
    """Where to compute."""


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    device = use_accelerator(config.accelerator, dtype=config.dtype)

    import jax
    from flax import nnx

    import daisy_jax
    from daisy_jax import audio, parallel
    from daisy_jax.model.branches import Branches
    from daisy_jax.model.hubert import embed
    from daisy_jax.model.layer_loops import last_block
    from daisy_jax.training.branches import branch_optimizer, branch_step
    from daisy_jax.training.loop import warmup_then_decay

    configs = {
        "tiny": lambda: dataclasses.replace(daisy_jax.load().config, num_classes=0),
        "base": lambda: daisy_jax.HubertConfig.base(num_clusters=504),
        "large": lambda: daisy_jax.HubertConfig.large(num_clusters=504),
    }
    model_config = configs[config.size]()
    trunk = jax.jit(lambda: daisy_jax.Hubert(model_config, rngs=nnx.Rngs(0)))()
    head = trunk.head
    trunk = jax.tree.map(lambda leaf: leaf.astype(config.dtype), trunk).replace(head=head)
    trunk = parallel.replicate(trunk)
    optimizer = branch_optimizer(warmup_then_decay(5e-5, 7_040, PAPER_STEPS), 0.01, 10.0)
    step = branch_step(optimizer)
    num_classes = model_config.num_clusters

    def new_state() -> Any:
        branches = Branches(
            model_config.num_layers, model_config.dim, num_classes, rngs=nnx.Rngs(0)
        )
        return parallel.replicate((branches, jax.jit(optimizer.init)(branches)))

    @jax.jit
    def forward(trunk, waveform, lengths):
        return last_block(trunk, embed(trunk, waveform, lengths))

    result: dict[str, Any] = {"settings": dataclasses.asdict(config), "device": device}
    result |= {"jax": jax.__version__, "devices": jax.device_count(), "batches": [], "memory": []}
    print(f"HuBERT {config.size}, {config.dtype}, {jax.device_count()} x {device}\n")
    print("| batch | forward, s | step, s | / forward | reading / step | audio s / s | hours |")
    print("| --- |" + " ---: |" * 6, flush=True)
    samples = round(config.seconds * audio.SAMPLE_RATE)
    with tempfile.TemporaryDirectory() as folder:
        write_files(pathlib.Path(folder), 4 * max(config.batches), samples)
        for rows in config.batches:
            read = reader(folder, rows, samples)
            state = new_state()
            one = parallel.place(read(0))

            def on_stored(one: Any = one) -> None:
                nonlocal state
                for _ in range(STEPS):
                    state, metrics = step(state, trunk, one)
                jax.block_until_ready(metrics)

            upcoming = endless(read, config.workers)

            def on_read(upcoming: Any = upcoming) -> None:
                nonlocal state
                for batch in itertools.islice(upcoming, STEPS):
                    state, metrics = step(state, trunk, parallel.place(batch))
                jax.block_until_ready(metrics)

            def forward_alone(one: Any = one) -> None:
                for _ in range(STEPS):
                    last = forward(trunk, **one)
                jax.block_until_ready(last)

            tasks: dict[str, Callable[[], object]] = {
                "forward": forward_alone,
                "step": on_stored,
                "with reading": on_read,
            }
            times = {name: s / STEPS for name, s in medians(tasks, config.runs).items()}
            upcoming.close()
            speed = rows * config.seconds / times["with reading"]
            hours = PAPER_STEPS * PAPER_BATCH * MEAN_SECONDS / speed / 3600
            result["batches"].append({"batch": rows, "times": times, "hours": hours})
            print(
                f"| {rows} x {config.seconds:g} s | {times['forward']:.3f} | {times['step']:.3f} "
                f"| {times['step'] / times['forward']:.2f} "
                f"| {times['with reading'] / times['step']:.2f} | {speed:.1f} | {hours:.1f} |",
                flush=True,
            )

    state = new_state()
    measure_memory(config, step, state, trunk, result)
    stats = jax.local_devices()[0].memory_stats() or {}
    result["peak_bytes"] = stats.get("peak_bytes_in_use") or (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    where = "the device" if stats else "this process"
    print(f"peak memory of {where} in all of this: {result['peak_bytes'] / 2**30:.2f} GiB")
    if config.output:
        pathlib.Path(config.output).write_text(
            json.dumps(result, indent=2) + "\n", encoding="utf-8"
        )


def measure_memory(
    config: Config, step: Any, state: Any, trunk: Any, result: dict[str, Any]
) -> None:
    """What steps of 15 s take by plan, and the largest batch; `--run-largest` runs it."""
    import jax
    import numpy as np

    from daisy_jax import audio, parallel

    print("\n| batch | planned memory of a step on each device, GiB |")
    print("| --- | ---: |")
    for rows in config.memory_batches:
        shapes = {
            "waveform": ((rows, 15 * audio.SAMPLE_RATE), np.float32),
            "lengths": ((rows,), np.int32),
        }
        shapes = {
            name: jax.ShapeDtypeStruct(*shape, sharding=parallel.by_row())
            for name, shape in shapes.items()
        }
        plan = step.lower(state, trunk, shapes).compile().memory_analysis()
        size = plan.argument_size_in_bytes + plan.temp_size_in_bytes
        size += plan.output_size_in_bytes - plan.alias_size_in_bytes
        result["memory"].append({"batch": rows, "bytes": size})
        print(f"| {rows} x 15 s | {size / 2**30:.2f} |", flush=True)
    if len(result["memory"]) > 1:
        first, last = result["memory"][0], result["memory"][-1]
        each = (last["bytes"] - first["bytes"]) / (last["batch"] - first["batch"])
        rest = config.memory * 2**30 - (first["bytes"] - each * first["batch"])
        result["largest"] = int(rest / each)
        print(f"the largest batch of 15 s in {config.memory:g} GiB: {result['largest']}")
    if config.run_largest:
        rows = config.memory_batches[-1]
        batch = {
            "waveform": np.zeros((rows, 15 * audio.SAMPLE_RATE), np.float32),
            "lengths": np.full(rows, 15 * audio.SAMPLE_RATE, np.int32),
        }
        jax.block_until_ready(step(state, trunk, parallel.place(batch)))


def write_files(folder: pathlib.Path, count: int, samples: int) -> None:
    """FLAC files of one length, cut from the package's sample clips put one after the other."""
    import numpy as np
    import soundfile

    import daisy_jax

    clips = sorted((pathlib.Path(daisy_jax.__file__).parent / "samples").glob("*.flac"))
    speech = np.concatenate([daisy_jax.audio.load(clip) for clip in clips])
    for number in range(count):
        rolled = np.resize(np.roll(speech, -16_000 * number), samples)
        soundfile.write(folder / f"{number}.flac", rolled, 16_000, subtype="PCM_16")


def reader(folder: str, rows: int, samples: int) -> Callable[[int], dict[str, Any]]:
    """Batches as the training script reads them."""
    import numpy as np

    from daisy_jax.data.batches import Augmentation, EpochBatches, read_crops
    from daisy_jax.data.corpus import open_corpus

    corpus = open_corpus(folder)
    draw = EpochBatches(corpus.lengths, rows, samples, 0)

    def read(number: int) -> dict[str, Any]:
        rng = np.random.default_rng(number)
        waveform, lengths = read_crops(corpus, draw(number), samples, Augmentation(), rng)
        return {"waveform": waveform, "lengths": lengths}

    return read


def endless(read: Callable[[int], dict[str, Any]], workers: int) -> Any:
    """Batches one after the other, read ahead."""
    from daisy_jax.data.prefetch import batches

    return batches(read, 0, sys.maxsize >> 32, workers)


if __name__ == "__main__":
    run_command(main)
