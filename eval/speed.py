"""Times of HuBERT with and without early exit, side by side in one run.

    python eval/speed.py --output runs/speed [--accelerator=gpu] [--dtype=bfloat16]

For every batch size and length: transformers' eager HuBERT (where torch is installed), ours at full
depth without branches and with all of them, and ours with exits; then one utterance leaving at each
layer, a ragged batch, and the cost of an eager call. Weights are random, and thresholds force the
exits wanted: time does not depend on what the weights say. Measurements take turns; medians are
printed as ratios, and stored with versions and device in speed.json and speed.png.

The ideal that exits are compared with is computed from the same run: the time of everything in
front of the layers, plus the mean exit layer times the mean time of a layer without branches.
"""

# First, so that Ctrl-C ends the program while everything else is loaded.
import daisy_jax

# isort: split

import dataclasses
import functools
import os
import pathlib
import platform
import resource
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import jax
import jax.numpy as jnp
import numpy as np
import peers
import tyro
from jaxtyping import Array, Float, Int
from peers import Task, torch_place

from daisy_jax import audio, multiply_adds
from daisy_jax.accelerator import Accelerator, installed_versions, use_accelerator
from daisy_jax.console.pages import table
from daisy_jax.console.pictures import save_picture
from daisy_jax.console.terminal import run_command, say
from daisy_jax.model.hubert import embed
from daisy_jax.parallel import medians
from daisy_jax.reporting import followed
from daisy_jax.study.forced_exits import Forced
from daisy_jax.whole_files import write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RAGGED = (1.2, 2.1, 2.9, 3.4, 4.8, 5.5, 7.0, 8.1, 9.3, 10.2, 11.6, 12.4, 13.3, 14.1, 15.0, 15.8)
"""Durations of a ragged batch, seconds: spread like read speech."""
LAYER_SECONDS = 10.0
"""Duration of the utterance that leaves at each layer."""
REST = 0.4
"""Seconds between two peers' turns."""
CALLS = 30
"""Measurements of a short call, at least."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What to time."""

    batches: tuple[int, ...] = (1, 4, 16)
    """Utterances in a batch."""
    seconds: tuple[float, ...] = (2.0, 10.0, 30.0)
    """Length of each."""
    most_audio: float = 500.0
    """Larger batches than so many seconds in all are left out."""
    size: Literal["tiny", "base", "large"] = "base"
    """Architecture; transformers is timed for the last two."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """What the trunk computes in; transformers' too."""
    runs: int = 3
    """Measurements of each task, after a warm-up."""
    layer_runs: int = 7
    """Measurements of one utterance at each exit layer: neighbours differ by a few per cent."""
    reference: bool = True
    """Time transformers too, if torch is installed."""
    peers: bool = False
    """Time what else people would run on a CPU in the place of all this, full depth only:
    transformers as it comes and compiled, and ONNX Runtime and OpenVINO where the extra "peers" is
    installed. All take turns, with rests between them."""
    low_precision: bool = False
    """With --peers: their bfloat16 and int8, too. Ours computes in float32 on a CPU, whatever its
    weights are stored in."""
    output: str = ""
    """Folder for speed.json and speed.png; empty: print only."""
    accelerator: Accelerator = "auto"
    """Where to compute."""

    @property
    def cells(self) -> list[tuple[int, float]]:
        """Batches, and the seconds of their utterances."""
        cells = [(rows, seconds) for seconds in self.seconds for rows in self.batches]
        return [(rows, seconds) for rows, seconds in cells if rows * seconds <= self.most_audio]


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    device = use_accelerator(config.accelerator, dtype=config.dtype, share_memory=True)
    if config.peers:
        peers.require(config.size, jax.default_backend())
    timed = Timed(config)
    say(f"HuBERT {config.size}, {config.dtype}, on {device}; seconds, medians of {config.runs}")
    kept: dict[str, object] = {"settings": dataclasses.asdict(config), "versions": versions(device)}
    picture = None
    if config.peers:
        kept["peers"] = time_peers(config, timed)
    else:
        kept["batches"] = time_batches(config, timed, torch_reference(config))
        kept["layers"] = layers = time_layers(config, timed)
        kept["ragged"] = time_ragged(config, timed)
        kept["calls"] = time_calls(config, timed)
        picture = functools.partial(savings_by_layer, layers)
    kept["peak_bytes"] = peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    say(f"peak memory of this process: {peak / 1e9:.1f} GB")
    say("; ".join(f"{name} {version}" for name, version in versions(device).items()))
    if config.output:
        folder = pathlib.Path(config.output)
        write_json(folder / "speed.json", kept)
        say(f"written: {folder / 'speed.json'}")
        if picture is not None:
            save_picture(folder / "speed.png", picture)


def torch_reference(config: Config) -> Callable[[np.ndarray], Task] | None:
    """From a batch to a task that runs transformers' HuBERT; None where it is not to be timed."""
    where = torch_place() if config.reference and config.size != "tiny" else None
    if where is None or peers.missing("transformers"):
        return None
    say(f"transformers on {where}")
    return peers.in_torch("", config.size, config.dtype, where, compiled=False).prepare


class Timed:
    """The model that is timed, whose utterances leave where they are told to."""

    def __init__(self, config: Config):
        self.forced = Forced(config.size, config.dtype)
        self._front_end = jax.jit(lambda model, *batch: embed(model, *batch).hidden)
        self._rng = np.random.default_rng(0)

    def draw(self, rows: int, seconds: float) -> Float[Array, "batch samples"]:
        """Noise."""
        samples = round(audio.SAMPLE_RATE * seconds)
        return jnp.asarray(self._rng.standard_normal((rows, samples), np.float32))

    def encoding(
        self,
        waveform: Float[Array, "batch samples"] | Float[np.ndarray, "batch samples"],
        threshold: float | Float[np.ndarray, " batch"] | None = None,
        lengths: Int[np.ndarray, " batch"] | None = None,
    ) -> Task:
        """Encoding, as `encode` does it."""
        return lambda: jax.block_until_ready(
            daisy_jax.encode(self.forced.model, waveform, lengths, threshold=threshold).last_hidden
        )

    def front_end(self, waveform: Float[Array, "batch samples"]) -> Task:
        """Everything in front of the layers."""
        lengths = jnp.full(len(waveform), waveform.shape[1], jnp.int32)
        return lambda: jax.block_until_ready(self._front_end(self.forced.model, waveform, lengths))

    def ideal(self, times: dict[str, float], exits: Sequence[int]) -> float:
        """Seconds that exits could take: the front end, and the mean exit layer's layers."""
        layer = (times["full depth"] - times["front end"]) / self.forced.layers
        return times["front end"] + layer * float(np.mean(exits))


def time_batches(
    config: Config, timed: Timed, reference: Callable[[np.ndarray], Task] | None
) -> list[dict[str, object]]:
    """Batches of every size and length."""
    batches: list[dict[str, object]] = []
    body = []
    for rows, seconds in followed(config.cells, "batches"):
        waveform, exits = timed.draw(rows, seconds), timed.forced.spread(rows)
        tasks = {
            "front end": timed.front_end(waveform),
            "full depth": timed.encoding(waveform),
            "all branches": timed.encoding(waveform, -np.inf),
            "exits": timed.encoding(waveform, timed.forced.thresholds(exits)),
        }
        if reference:
            tasks["transformers"] = reference(np.asarray(waveform))
        times = medians(tasks, config.runs)
        ideal = timed.ideal(times, exits)
        batches.append(
            {"batch": rows, "seconds": seconds, "exits": exits, "times": times, "ideal": ideal}
        )
        _, full, branches, some, *others = times.values()
        theirs = others[0] if others else float("nan")
        body.append([f"{rows} x {seconds:g} s", f"{theirs:.3f}"])
        body[-1] += [f"{full:.3f}", f"{full / theirs:.2f}", f"{branches:.3f}"]
        body[-1] += [f"{branches / full:.2f}", f"{some:.3f}", f"{some / ideal:.2f}"]
    header = ["batch", "transformers", "full depth", "ratio", "all branches", "ratio", "exits"]
    say("\n".join(table([*header, "/ ideal"], body)), flush=True)
    return batches


def time_layers(config: Config, timed: Timed) -> list[dict[str, float]]:
    """One utterance, leaving at each layer."""
    waveform, depth = timed.draw(1, LAYER_SECONDS), timed.forced.layers
    layers = range(1, depth + 1)
    tasks = {
        str(layer): timed.encoding(waveform, timed.forced.thresholds([layer])) for layer in layers
    }
    tasks |= {"full depth": timed.encoding(waveform), "front end": timed.front_end(waveform)}
    times = medians(tasks, config.layer_runs)
    model, samples = timed.forced.model.config, waveform.shape[1]
    costs = multiply_adds(model, samples, np.arange(1, depth + 1))
    full = multiply_adds(model, samples, depth, np.zeros(depth, bool))
    rows: list[dict[str, float]] = []
    body = []
    for layer, cost in zip(layers, costs, strict=True):
        spent = times[str(layer)]
        saved, fewer = 1 - spent / times["full depth"], float(1 - cost / full)
        rows.append({"layer": layer, "time": spent, "saved": saved, "fewer": fewer})
        ratio = spent / timed.ideal(times, [layer])
        body.append([str(layer), f"{saved:.1%}", f"{fewer:.1%}", f"{ratio:.2f}"])
    header = [
        f"exit layer, 1 x {LAYER_SECONDS:g} s",
        "time saved",
        "multiply-adds saved",
        "time / ideal",
    ]
    say("\n".join(table(header, body)))
    return rows


def time_ragged(config: Config, timed: Timed) -> dict[str, float]:
    """Seconds of a batch of read speech's durations, at full depth and with exits."""
    widths = [round(audio.SAMPLE_RATE * seconds) for seconds in RAGGED]
    waveform, lengths = audio.pad_batch([np.ones(width) for width in widths])
    exits = timed.forced.spread(len(RAGGED))
    tasks = {
        "full depth": timed.encoding(waveform, None, lengths),
        "exits": timed.encoding(waveform, timed.forced.thresholds(exits), lengths),
    }
    times = medians(tasks, config.runs)
    say(
        f"ragged, {len(RAGGED)} x {RAGGED[0]:g} to {RAGGED[-1]:g} s: full depth "
        f"{times['full depth']:.3f} s, exits {times['exits'] / times['full depth']:.2f} of it"
    )
    return times


def time_calls(config: Config, timed: Timed) -> dict[str, float]:
    """Seconds of an eager and of a jitted call of the packaged model, and of a compilation."""
    packaged, second = daisy_jax.load(), timed.draw(1, 1.0)
    threshold = jnp.full(1, 0.3, jnp.float32)
    ways = {"eager": daisy_jax.encode, "jitted": jax.jit(daisy_jax.encode)}
    tasks = {
        way: lambda call=call: jax.block_until_ready(call(packaged, second, threshold=threshold))
        for way, call in ways.items()
    }
    times = medians(tasks, max(config.runs, CALLS))
    start = time.perf_counter()
    jax.jit(daisy_jax.encode).lower(timed.forced.model, timed.draw(1, 9.0), threshold=0.5).compile()
    times["compile"] = time.perf_counter() - start
    say(f"eager call / jitted call, daisy-tiny, 1 s: {times['eager'] / times['jitted']:.2f}")
    say(f"compiling one shape: {times['compile']:.1f} s")
    return times


def time_peers(config: Config, timed: Timed) -> list[dict[str, object]]:
    """Ours and what else people would run, at full depth, all taking turns."""
    rows: list[dict[str, object]] = []
    body, header = [], ["batch"]
    with peers.on_cpu(config.size, low_precision=config.low_precision) as others:
        labels = [f"{peer.name}, {peer.precision}" for peer in others]
        header += [*labels, "ours, float32", "ours / fastest float32"]
        for count, seconds in followed(config.cells, "batches"):
            waveform = timed.draw(count, seconds)
            tasks = {"ours, float32": timed.encoding(waveform)}
            for label, peer in zip(labels, others, strict=True):
                tasks[label] = peer.prepare(np.asarray(waveform))
            times = medians(tasks, config.runs, rest=REST)
            fastest = min(times[label] for label in labels if label.endswith(", float32"))
            ratio = times["ours, float32"] / fastest
            rows.append({"batch": count, "seconds": seconds, "times": times, "ratio": ratio})
            body.append([f"{count} x {seconds:g} s", *(f"{times[label]:.3f}" for label in labels)])
            body[-1] += [f"{times['ours, float32']:.3f}", f"{ratio:.2f}"]
    say("\n".join(table(header, body)), flush=True)
    return rows


def versions(device: str) -> dict[str, str]:
    """Device and versions of what was timed."""
    texts = {"device": device, "processor": platform.machine(), "cores": str(os.cpu_count())}
    libraries = ("daisy-jax", "jax", "jaxlib", "flax", "torch", "transformers")
    libraries += ("onnxruntime", "openvino")
    return texts | installed_versions(*libraries)


def savings_by_layer(rows: list[dict[str, float]]) -> "Figure":
    """Savings by exit layer."""
    from matplotlib import pyplot

    layers = [row["layer"] for row in rows]
    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    axes.plot(layers, [100 * row["saved"] for row in rows], "o-", label="time")
    axes.plot(layers, [100 * row["fewer"] for row in rows], "s--", label="multiply-adds")
    axes.set(xlabel="exit layer", ylabel="saved, %", title=f"one utterance of {LAYER_SECONDS:g} s")
    axes.legend()
    return figure


if __name__ == "__main__":
    run_command(main)
