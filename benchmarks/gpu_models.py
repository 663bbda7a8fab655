"""Whole models: part of benchmarks/first_gpu.py."""

import functools
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from gpu_sizes import Line, Sizes
from gpu_steps import drawn, error_of, last_hidden
from jaxtyping import Array, Float, Shaped
from stage1 import PAPER_STEPS, set_up
from timing import Task, milliseconds, write_noise

import daisy_jax
from daisy_jax import Hubert
from daisy_jax.features import files
from daisy_jax.model import slices
from daisy_jax.model.forms import one_form
from daisy_jax.model.hubert import embed
from daisy_jax.study.forced_exits import Forced


def measure_packaged(shapes: Sizes) -> Iterator[Line]:
    """The packaged model on its sample clips, against the CPU of the same machine."""
    folder = pathlib.Path(daisy_jax.__file__).parent / "samples"
    paths = sorted(folder.glob("*.flac"))
    clips = [daisy_jax.audio.load(path) for path in paths[: 1 if shapes.name == "tiny" else None]]
    batch = daisy_jax.audio.pad_batch(clips)
    on_cpu = jax.device_put((daisy_jax.load(), *batch), jax.devices("cpu")[0])

    label = jax.jit(daisy_jax.frame_labels)

    def run(model: Hubert, *batch: Shaped[Array, "..."] | np.ndarray) -> tuple[np.ndarray, ...]:
        full = daisy_jax.encode(model, *batch, threshold=-np.inf)
        # The same program again, for other thresholds do not compile.
        exits = daisy_jax.encode(model, *batch, threshold=0.3).exit_layer
        labels = label(model, *batch)
        return jax.device_get((full.last_hidden, full.entropy, exits, labels))

    hidden, entropy, exits, labels = run(*on_cpu)
    ways = (
        ("bfloat16", None, "bfloat16"),
        ("float32, highest", "highest", "float32"),
        ("float32, JAX's own precision", None, "float32"),
    )
    for name, precision, dtype in ways[:1] if shapes.name == "tiny" else ways:
        with jax.default_matmul_precision(precision):
            out = run(daisy_jax.load(dtype=dtype), *batch)
        yield {
            "computed": name,
            "data": f"{len(clips)} sample clips",
            "hidden_error": error_of(out[0], hidden),
            "entropy_error": float(np.max(np.abs(out[1] - entropy))),
            "same_exits": float(np.mean(out[2] == exits)),
            "same_labels": float(np.mean((out[3] == labels)[labels >= 0])),
        }


def forced_batch(
    shapes: Sizes,
) -> tuple[Forced, Float[Array, "batch samples"], Callable[[], Array]]:
    """A model that leaves where it is told to, waveforms, and a call of the front end alone."""
    forced = Forced(shapes.config, "bfloat16")
    waveform, lengths = drawn(0, shapes.rows, shapes.samples), jnp.full(shapes.rows, shapes.samples)
    front = jax.jit(lambda model, waveform, lengths: embed(model, waveform, lengths).hidden)
    return forced, waveform, functools.partial(front, forced.model, waveform, lengths)


def measure_full_depth(shapes: Sizes) -> Iterator[Line]:
    """Without a condition, and with one a layer, as `allowed` asks for."""
    forced, waveform, front = forced_batch(shapes)

    run = functools.partial(last_hidden, forced.model, waveform)
    # Jitted: of an array whose values it sees, `encode` takes the conditions out.
    conditional = functools.partial(jax.jit(last_hidden), forced.model, waveform)
    tasks = {
        "no condition": run,
        "a condition a layer": functools.partial(
            conditional, allowed=jnp.ones(forced.layers, bool)
        ),
        "all branches": functools.partial(run, threshold=-np.inf),
        "front end": front,
    }
    for name, taken in milliseconds(tasks, shapes.runs, shapes.calls).items():
        yield {"what": name, "milliseconds": taken}


def measure_exits(shapes: Sizes) -> Iterator[Line]:
    """Exits of mean 6 of 12 in loops and with smallest slices of four sizes, against the ideal."""
    forced, waveform, front = forced_batch(shapes)
    exits = forced.spread(shapes.rows)
    arguments = forced.model, waveform, jnp.asarray(forced.thresholds(exits))

    def compiled() -> Task:
        jax.clear_caches()
        return functools.partial(jax.jit(last_hidden).lower(*arguments).compile(), *arguments)

    full_depth = functools.partial(last_hidden, forced.model, waveform)
    tasks: dict[str, Task] = {"full": full_depth, "front": front}
    with one_form("layer", "loops"):
        tasks["loops"] = compiled()
    for least in (512, 1024, 2048, 4096):
        # LEAST_FRAMES is read while a program is traced.
        with mock.patch.object(slices, "LEAST_FRAMES", least), one_form("layer", "switch"):
            tasks[str(least)] = compiled()
    jax.clear_caches()
    times = milliseconds(tasks, shapes.runs, shapes.calls)
    full, front_time, looped = (times.pop(name) for name in ("full", "front", "loops"))
    # What a row costs in a layer, if it costs the same in every slice.
    row = (full - front_time) / forced.layers / shapes.rows
    ideal = front_time + row * sum(exits)
    yield {"form": "loops", "milliseconds": looped, "over_ideal": round(looped / ideal, 3)}
    for least, taken in times.items():
        cut = slice_sizes(shapes.rows, shapes.frames, int(least))
        computed = rows_computed(exits, cut, forced.layers)
        yield {
            "form": "switch",
            "least_frames": int(least),
            "milliseconds": taken,
            "full_depth_milliseconds": full,
            "over_ideal": round(taken / ideal, 3),
            # Of what its slices would take if neither their size nor the host cost anything.
            "over_slices": round(taken / (front_time + row * computed), 3),
        }


def slice_sizes(rows: int, frames: int, least: int) -> tuple[int, ...]:
    """Those of the library, with another smallest one."""
    with mock.patch.object(slices, "LEAST_FRAMES", least):
        return slices.switch_sizes(rows, frames)


def rows_computed(exits: list[int], sizes: tuple[int, ...], layers: int) -> int:
    """Rows in the slices of all layers: those inside, and those that fill a slice."""
    inside = [sum(exit_layer >= layer for exit_layer in exits) for layer in range(1, layers + 1)]
    return sum(next(size for size in sizes if size >= count) for count in inside if count)


def measure_encode_files(shapes: Sizes) -> Iterator[Line]:
    """A folder of sound files through `encode_files`, with batches of two sizes."""
    model = Forced(shapes.config, "bfloat16").model
    # Of two lengths, so that two programs are compiled for each size of a batch.
    lengths = np.random.default_rng(0).choice([shapes.samples // 2, shapes.samples], shapes.files)
    seconds = lengths.sum() / daisy_jax.audio.SAMPLE_RATE
    with tempfile.TemporaryDirectory() as folder:
        paths = write_noise(pathlib.Path(folder), lengths)
        for batch_seconds in (80, 160):
            with mock.patch.object(files, "BATCH_SECONDS_ELSEWHERE", batch_seconds):
                for _ in range(2):  # the first compiles
                    start = time.perf_counter()
                    errors = [r.error for r in daisy_jax.encode_files(model, paths) if r.error]
                    taken = time.perf_counter() - start
            yield {
                "batch_seconds": batch_seconds,
                "seconds": taken,
                "times_real_time": seconds / taken,
                "errors": errors[:1],
            }


def measure_stage1(shapes: Sizes) -> Iterator[Line]:
    """A step of stage 1 on a batch that is on the device, and the hours of the paper's 88 000."""
    rows, seconds = shapes.stage1
    trunk, step, new_state = set_up(shapes.config, "bfloat16")
    state = new_state()
    samples = round(seconds * daisy_jax.audio.SAMPLE_RATE)
    batch = {"waveform": drawn(0, rows, samples), "lengths": jnp.full(rows, samples)}

    def one_step() -> Float[Array, ""]:
        nonlocal state
        state, metrics = step(state, trunk, batch)
        return metrics["loss"]

    one_step()  # the first step's state lies elsewhere, so that it is another program
    taken = milliseconds({"step": one_step}, shapes.runs, shapes.calls)["step"]
    hours = taken * PAPER_STEPS / 3_600_000
    yield {"rows": rows, "seconds": seconds, "milliseconds": taken, "hours_of_88000": hours}


def measure_transformers(shapes: Sizes) -> Iterator[Line]:
    """Transformers' HuBERT in bfloat16 with SDPA, as it comes and compiled."""
    from peers import torch_place

    place = torch_place()
    if place is None:
        yield {"skipped": "torch is not installed"}
        return
    import torch
    import transformers

    small = shapes.name == "tiny"
    fields: dict[str, object] = {}
    if small:
        sizes = ("num_hidden_layers", "num_attention_heads", "num_conv_pos_embedding_groups")
        fields = dict.fromkeys(sizes, 1) | {"hidden_size": 16, "intermediate_size": 16}
        fields |= {"conv_dim": (8,) * 7, "num_conv_pos_embeddings": 4}
    settings = transformers.HubertConfig(attn_implementation="sdpa", **fields)
    model = transformers.HubertModel(settings).eval().to(place, torch.bfloat16)
    batch = torch.randn(shapes.rows, shapes.samples, device=place, dtype=torch.bfloat16)

    wait = torch.cuda.synchronize if place == "cuda" else lambda: None

    def time_of(function: Callable[[torch.Tensor], object]) -> float:
        def run() -> Callable[[], None]:
            with torch.no_grad():
                function(batch)
            return wait

        return milliseconds({"torch": run}, shapes.runs, shapes.calls)["torch"]

    yield {"what": "eager", "place": place, "milliseconds": time_of(model)}
    if not small:  # which needs a C compiler, too
        compiled = time_of(torch.compile(model))
        yield {"what": "compiled", "place": place, "milliseconds": compiled}


MEASUREMENTS = {
    "packaged": measure_packaged,
    "full_depth": measure_full_depth,
    "exits": measure_exits,
    "stage1": measure_stage1,
    "encode_files": measure_encode_files,
    "transformers": measure_transformers,
}
