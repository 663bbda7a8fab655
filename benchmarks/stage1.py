"""What a training step of stage 1 costs, and how much memory.

    python benchmarks/stage1.py [--accelerator=gpu --dtype=bfloat16 --batches 32]

For every batch size: the trunk's forward pass alone, a step on a batch that is already in memory,
and a step whose batch is read from FLAC files, in turns; medians. Then the hours that the paper's
88 000 steps would take, and the memory of a step as XLA plans it (with what the process itself
reached), and the largest batch that fits. Weights are random: time does not depend on what they
say. The files are made of the package's own sample clips.
"""

# First, so that Ctrl-C ends the program while everything else is loaded.
import daisy_jax

# isort: split

import dataclasses
import functools
import itertools
import pathlib
import resource
import sys
import tempfile
from collections.abc import Callable, Iterable

import jax
import numpy as np
import tyro
from flax import nnx
from jaxtyping import Array, DTypeLike, Float, PyTree
from timing import StepOptions

from daisy_jax import Hubert, parallel
from daisy_jax.accelerator import use_accelerator
from daisy_jax.console.terminal import run_command, say
from daisy_jax.data import side_work
from daisy_jax.data.batches import Augmentation, EpochBatches, read_crops
from daisy_jax.data.corpus import open_corpus
from daisy_jax.data.side_work import Batch
from daisy_jax.model.branches import Branches
from daisy_jax.model.hubert import embed
from daisy_jax.model.layer_loops import last_block
from daisy_jax.parallel import medians

PAPER_STEPS, PAPER_BATCH = 88_000, 32  # section 4
MEAN_SECONDS = 12.3  # of a LibriSpeech utterance: 961 h in 281 241
STEPS = 3  # of a loop that is timed


@dataclasses.dataclass(frozen=True)
class Config(StepOptions):
    """What to time."""

    batches: tuple[int, ...] = (2, 4)
    """Utterances in a batch."""
    seconds: float = 12.3
    """Length of each."""
    memory_batches: tuple[int, ...] = (8, 32)
    """Batches of 15 s whose memory, on each device, is planned."""
    memory: float = 24.0
    """GiB that the largest batch must fit into."""
    run_largest: bool = False
    """Take one step with the last of these, for the memory that the process really reaches."""
    workers: int = 0
    """Processes that read; 0: threads."""


State = PyTree[Array]
"""Branches and the optimizer's state."""
Step = Callable[[State, Hubert, Batch], tuple[State, dict[str, Array]]]


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    device = use_accelerator(config.accelerator, dtype=config.dtype)

    configs = {
        "tiny": lambda: dataclasses.replace(daisy_jax.load().config, num_classes=0),
        "base": lambda: daisy_jax.HubertConfig.base(num_clusters=504),
        "large": lambda: daisy_jax.HubertConfig.large(num_clusters=504),
    }
    trunk, step, new_state = set_up(configs[config.size](), config.dtype)
    say(f"HuBERT {config.size}, {config.dtype}, {jax.device_count()} x {device}\n")
    say("| batch | forward, s | step, s | / forward | reading / step | audio s / s | hours |")
    say("| --- |" + " ---: |" * 6, flush=True)
    batches: list[dict[str, object]] = []
    samples = round(config.seconds * daisy_jax.audio.SAMPLE_RATE)
    with tempfile.TemporaryDirectory() as folder:
        write_files(pathlib.Path(folder), 4 * max(config.batches), samples)
        for rows in config.batches:
            times = step_times(config, step, new_state(), trunk, reader(folder, rows, samples))
            speed = rows * config.seconds / times["with reading"]
            hours = PAPER_STEPS * PAPER_BATCH * MEAN_SECONDS / speed / 3600
            batches.append({"batch": rows, "times": times, "hours": hours})
            say(
                f"| {rows} x {config.seconds:g} s | {times['forward']:.3f} | {times['step']:.3f} "
                f"| {times['step'] / times['forward']:.2f} "
                f"| {times['with reading'] / times['step']:.2f} | {speed:.1f} | {hours:.1f} |",
                flush=True,
            )
    memory = measure_memory(config, step, new_state(), trunk)
    stats = jax.local_devices()[0].memory_stats() or {}
    peak = stats.get("peak_bytes_in_use") or (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    where = "the device" if stats else "this process"
    say(f"peak memory of {where} in all of this: {peak / 2**30:.2f} GiB")
    versions = {"device": device, "jax": jax.__version__, "devices": jax.device_count()}
    config.write({**versions, "batches": batches, **memory, "peak_bytes": peak})


def set_up(
    config: daisy_jax.HubertConfig, dtype: DTypeLike
) -> tuple[Hubert, Step, Callable[[], State]]:
    """A trunk with random weights, a step of stage 1, and what makes new branches for it."""
    from daisy_jax.training.branches import branch_optimizer, branch_step
    from daisy_jax.training.loop import warmup_then_decay

    trunk = jax.jit(lambda: Hubert(config, rngs=nnx.Rngs(0)))().replace(branches=None)
    head = trunk.head
    trunk = jax.tree.map(lambda leaf: leaf.astype(dtype), trunk).replace(head=head)
    optimizer = branch_optimizer(warmup_then_decay(5e-5, 7_040, PAPER_STEPS), 0.01, 10.0)

    def new_state() -> State:
        branches = Branches(config.num_layers, config.dim, config.num_clusters, rngs=nnx.Rngs(0))
        return parallel.replicate((branches, jax.jit(optimizer.init)(branches)))

    return parallel.replicate(trunk), branch_step(optimizer), new_state


def step_times(
    config: Config, step: Step, state: State, trunk: Hubert, read: Callable[[int], Batch]
) -> dict[str, float]:
    """Seconds of the forward pass alone, of a step on a stored batch, and of one with reading."""
    stored = parallel.place(read(0))
    upcoming = side_work.batches(read, 0, sys.maxsize >> 32, config.workers)

    @jax.jit
    def forward(trunk: Hubert, batch: Batch) -> Float[Array, "batch frames dim"]:
        return last_block(trunk, embed(trunk, **batch))

    def forward_alone() -> None:
        jax.block_until_ready([forward(trunk, stored) for _ in range(STEPS)][-1])

    def steps_on(batches: Iterable[Batch]) -> None:
        nonlocal state
        for batch in batches:
            state, metrics = step(state, trunk, parallel.place(batch))
        jax.block_until_ready(metrics)

    tasks = {
        "forward": forward_alone,
        "step": lambda: steps_on([stored] * STEPS),
        "with reading": lambda: steps_on(itertools.islice(upcoming, STEPS)),
    }
    times = {name: seconds / STEPS for name, seconds in medians(tasks, config.runs).items()}
    upcoming.close()
    return times


def measure_memory(config: Config, step: Step, state: State, trunk: Hubert) -> dict[str, object]:
    """What steps of 15 s take by plan, and the largest batch; `--run-largest` runs it."""
    samples = 15 * daisy_jax.audio.SAMPLE_RATE
    say("\n| batch | planned memory of a step on each device, GiB |")
    say("| --- | ---: |")
    planned = {}
    for rows in config.memory_batches:
        one = functools.partial(jax.ShapeDtypeStruct, sharding=parallel.by_row())
        batch = {"waveform": one((rows, samples), np.float32), "lengths": one((rows,), np.int32)}
        plan = step.lower(state, trunk, batch).compile().memory_analysis()
        size = plan.argument_size_in_bytes + plan.temp_size_in_bytes
        planned[rows] = size + plan.output_size_in_bytes - plan.alias_size_in_bytes
        say(f"| {rows} x 15 s | {planned[rows] / 2**30:.2f} |", flush=True)
    memory: dict[str, object] = {
        "memory": [{"batch": rows, "bytes": size} for rows, size in planned.items()]
    }
    if len(planned) > 1:
        (first, least), *_, (last, most) = planned.items()
        each = (most - least) / (last - first)
        memory["largest"] = int((config.memory * 2**30 - (least - each * first)) / each)
        say(f"the largest batch of 15 s in {config.memory:g} GiB: {memory['largest']}")
    if config.run_largest:
        rows = config.memory_batches[-1]
        batch = {
            "waveform": np.zeros((rows, samples), np.float32),
            "lengths": np.full(rows, samples, np.int32),
        }
        jax.block_until_ready(step(state, trunk, parallel.place(batch)))
    return memory


def write_files(folder: pathlib.Path, count: int, samples: int) -> None:
    """FLAC files of one length, cut from the package's sample clips put one after the other."""
    import soundfile

    clips = sorted((pathlib.Path(daisy_jax.__file__).parent / "samples").glob("*.flac"))
    speech = np.concatenate([daisy_jax.audio.load(clip) for clip in clips])
    for number in range(count):
        rolled = np.resize(np.roll(speech, -16_000 * number), samples)
        soundfile.write(folder / f"{number}.flac", rolled, 16_000, subtype="PCM_16")


def reader(folder: str, rows: int, samples: int) -> Callable[[int], Batch]:
    """Batches as the training script reads them."""
    corpus = open_corpus(folder)
    draw = EpochBatches(corpus.lengths, rows, samples, 0)

    def read(number: int) -> Batch:
        rng = np.random.default_rng(number)
        waveform, lengths = read_crops(corpus, draw(number), samples, Augmentation(), rng)
        return {"waveform": waveform, "lengths": lengths}

    return read


if __name__ == "__main__":
    run_command(main)
