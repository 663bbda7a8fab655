"""Whole models: part of benchmarks/first_gpu.py."""

import pathlib
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from gpu_sizes import Sizes, milliseconds
from gpu_steps import Line, cast, drawn, error_of

import daisy_jax
from daisy_jax import audio
from daisy_jax.features import files
from daisy_jax.model import slices
from daisy_jax.model.forms import one_form
from daisy_jax.model.hubert import embed
from daisy_jax.training.branches import branch_optimizer, branch_step

PAPER_STEPS = 88_000  # section 4


def measure_packaged(shapes: Sizes) -> Iterator[Line]:
    """The packaged model in three ways of computing, against the CPU of the same machine."""
    folder = pathlib.Path(daisy_jax.__file__).parent / "samples"
    rng = np.random.default_rng(0)
    try:
        clips = [audio.load(path) for path in sorted(folder.glob("*.flac"))]
        what = f"{len(clips)} sample clips"
    except ImportError:  # no audio reader on this machine
        clips, what = [0.1 * rng.standard_normal(n) for n in (48_000, 16_000, 9_000)], "made noise"
    waveform, lengths = audio.pad_batch(clips)
    model = daisy_jax.load()
    on_cpu = jax.device_put((model, waveform, lengths), jax.devices("cpu")[0])

    label = jax.jit(daisy_jax.frame_labels)

    def run(model: Any, waveform: Any, lengths: Any) -> tuple[Any, ...]:
        full = daisy_jax.encode(model, waveform, lengths, threshold=-np.inf)
        # The same program again, for other thresholds do not compile.
        exits = daisy_jax.encode(model, waveform, lengths, threshold=0.3).exit_layer
        labels = label(model, waveform, lengths)
        return jax.device_get((full.last_hidden, full.entropy, exits, labels))

    hidden, entropy, exits, labels = run(*on_cpu)
    ways = (
        ("bfloat16", None, "bfloat16"),
        ("float32, highest", "highest", "float32"),
        ("float32, JAX's own precision", None, "float32"),
    )
    for name, precision, dtype in ways[:1] if shapes.name == "tiny" else ways:
        with jax.default_matmul_precision(precision):
            out = run(daisy_jax.load(dtype=dtype), waveform, lengths)
        yield {
            "computed": name,
            "data": what,
            "hidden_error": error_of(out[0], hidden),
            "entropy_error": float(np.max(np.abs(out[1] - entropy))),
            "same_exits": float(np.mean(out[2] == exits)),
            "same_labels": float(np.mean((out[3] == labels)[labels >= 0])),
        }


def measure_full_depth(shapes: Sizes) -> Iterator[Line]:
    """Without a condition, and with one a layer, as `allowed` asks for."""
    from forced_exits import Forced

    forced = Forced(shapes.name, "bfloat16")
    waveform = drawn(0, shapes.rows, round(shapes.seconds * audio.SAMPLE_RATE))
    allowed = jnp.ones(forced.layers, bool)
    # Traced: of an array whose values it sees, `encode` takes the conditions out.
    conditional = jax.jit(
        lambda model, waveform, allowed: (
            daisy_jax.encode(model, waveform, allowed=allowed).last_hidden
        )
    )
    front = jax.jit(lambda model, waveform, lengths: embed(model, waveform, lengths).hidden)
    lengths = jnp.full(shapes.rows, waveform.shape[1])
    tasks = {
        "no condition": lambda: daisy_jax.encode(forced.model, waveform).last_hidden,
        "a condition a layer": lambda: conditional(forced.model, waveform, allowed),
        "all branches": lambda: (
            daisy_jax.encode(forced.model, waveform, threshold=-np.inf).last_hidden
        ),
        "front end": lambda: front(forced.model, waveform, lengths),
    }
    for name, taken in milliseconds(tasks, shapes).items():
        yield {"what": name, "milliseconds": taken}


def measure_exits(shapes: Sizes) -> Iterator[Line]:
    """Exits of mean 6 of 12 in loops and with smallest slices of four sizes, against the ideal."""
    from forced_exits import Forced

    forced = Forced(shapes.name, "bfloat16")
    waveform = drawn(0, shapes.rows, round(shapes.seconds * audio.SAMPLE_RATE))
    exits = forced.spread(shapes.rows)
    threshold = jnp.asarray(forced.thresholds(exits))
    lengths = jnp.full(shapes.rows, waveform.shape[1])
    front = jax.jit(lambda model, waveform, lengths: embed(model, waveform, lengths).hidden)
    tasks: dict[Any, Any] = {
        "full": lambda: daisy_jax.encode(forced.model, waveform).last_hidden,
        "front": lambda: front(forced.model, waveform, lengths),
    }

    def run(model: Any, waveform: Any, threshold: Any) -> Any:
        return daisy_jax.encode(model, waveform, threshold=threshold).last_hidden

    def compiled() -> Any:
        jax.clear_caches()
        program = jax.jit(run).lower(forced.model, waveform, threshold).compile()
        return lambda: program(forced.model, waveform, threshold)

    with one_form("layer", "loops"):
        tasks["loops"] = compiled()
    before = slices.LEAST_FRAMES
    for least in (512, 1024, 2048, 4096):
        slices.LEAST_FRAMES = least  # which is read while a program is traced
        with one_form("layer", "switch"):
            tasks[least] = compiled()
    slices.LEAST_FRAMES = before
    jax.clear_caches()
    times = milliseconds(tasks, shapes)
    full, front_time, looped = (times.pop(name) for name in ("full", "front", "loops"))
    # What a row costs in a layer, if it costs the same in every slice.
    row = (full - front_time) / forced.layers / shapes.rows
    ideal = front_time + row * sum(exits)
    yield {"form": "loops", "milliseconds": looped, "over_ideal": round(looped / ideal, 3)}
    frames = int(audio.frame_count(waveform.shape[1]))
    for least, taken in times.items():
        computed = rows_computed(exits, slice_sizes(shapes.rows, frames, least), forced.layers)
        yield {
            "form": "switch",
            "least_frames": least,
            "milliseconds": taken,
            "full_depth_milliseconds": full,
            "over_ideal": round(taken / ideal, 3),
            # Of what its slices would take if neither their size nor the host cost anything.
            "over_slices": round(taken / (front_time + row * computed), 3),
        }


def slice_sizes(rows: int, frames: int, least: int) -> tuple[int, ...]:
    """Those of the library, with another smallest one."""
    before, slices.LEAST_FRAMES = slices.LEAST_FRAMES, least
    sizes = slices.switch_sizes(rows, frames)
    slices.LEAST_FRAMES = before
    return sizes


def rows_computed(exits: list[int], sizes: tuple[int, ...], layers: int) -> int:
    """Rows in the slices of all layers: those inside, and those that fill a slice."""
    inside = [sum(exit_layer >= layer for exit_layer in exits) for layer in range(1, layers + 1)]
    return sum(next(size for size in sizes if size >= count) for count in inside if count)


def measure_encode_files(shapes: Sizes) -> Iterator[Line]:
    """A folder of sound files through `encode_files`, with batches of two sizes."""
    try:
        import soundfile
    except ImportError:
        yield {"skipped": "no audio reader (soundfile) on this machine"}
        return
    from forced_exits import Forced

    model = Forced(shapes.name, "bfloat16").model
    rng = np.random.default_rng(0)
    before = files.BATCH_SECONDS_ELSEWHERE
    with tempfile.TemporaryDirectory() as folder:
        # Of two lengths, so that two programs are compiled for each size of a batch.
        paths, seconds = [], shapes.seconds * rng.choice([0.5, 1.0], shapes.files)
        for number, length in enumerate(seconds):
            samples = 0.1 * rng.standard_normal(round(length * audio.SAMPLE_RATE))
            paths.append(pathlib.Path(folder, f"{number}.wav"))
            soundfile.write(paths[-1], samples, audio.SAMPLE_RATE)
        for batch_seconds in (80, 160):
            files.BATCH_SECONDS_ELSEWHERE = batch_seconds
            for _ in range(2):  # the first compiles
                start = time.perf_counter()
                errors = [r.error for r in daisy_jax.encode_files(model, paths) if r.error]
                taken = time.perf_counter() - start
            yield {
                "batch_seconds": batch_seconds,
                "seconds": taken,
                "times_real_time": float(np.sum(seconds)) / taken,
                "errors": errors[:1],
            }
    files.BATCH_SECONDS_ELSEWHERE = before


def measure_stage1(shapes: Sizes) -> Iterator[Line]:
    """A step of stage 1 on a batch that is on the device, and the hours of the paper's 88 000."""
    rows, seconds = shapes.stage1
    model = jax.jit(lambda: daisy_jax.Hubert(shapes.config, rngs=nnx.Rngs(0)))()
    head, branches = model.head, model.branches
    trunk = cast(model.replace(branches=None), jnp.bfloat16).replace(head=head)
    optimizer = branch_optimizer(5e-5, 0.01, 10.0)
    step, state = branch_step(optimizer), (branches, jax.jit(optimizer.init)(branches))
    samples = round(seconds * audio.SAMPLE_RATE)
    batch = {"waveform": drawn(0, rows, samples), "lengths": jnp.full(rows, samples)}

    def one_step() -> Any:
        nonlocal state
        state, metrics = step(state, trunk, batch)
        return metrics["loss"]

    one_step()  # the first step's state lies elsewhere, so that it is another program
    taken = milliseconds({"step": one_step}, shapes)["step"]
    hours = taken * PAPER_STEPS / 3_600_000
    yield {"rows": rows, "seconds": seconds, "milliseconds": taken, "hours_of_88000": hours}


def measure_transformers(shapes: Sizes) -> Iterator[Line]:
    """Transformers' HuBERT in bfloat16 with SDPA, as it comes and compiled."""
    from torch_place import torch_place

    place = torch_place()
    if place is None:
        yield {"skipped": "torch is not installed"}
        return
    import torch
    import transformers

    small = shapes.name == "tiny"
    fields: dict[str, Any] = {}
    if small:
        sizes = ("num_hidden_layers", "num_attention_heads", "num_conv_pos_embedding_groups")
        fields = dict.fromkeys(sizes, 1) | {"hidden_size": 16, "intermediate_size": 16}
        fields |= {"conv_dim": (8,) * 7, "num_conv_pos_embeddings": 4}
    settings = transformers.HubertConfig(attn_implementation="sdpa", **fields)
    model: Any = transformers.HubertModel(settings).eval().to(place, torch.bfloat16)
    samples = round(shapes.seconds * audio.SAMPLE_RATE)
    batch = torch.randn(shapes.rows, samples, device=place, dtype=torch.bfloat16)

    wait = torch.cuda.synchronize if place == "cuda" else lambda: None

    def time_of(function: Any) -> float:
        def run() -> Any:
            with torch.no_grad():
                function(batch)
            return wait

        return milliseconds({"torch": run}, shapes)["torch"]

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
