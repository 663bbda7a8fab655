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

import dataclasses
import pathlib
import platform
import resource
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import tyro

from daisy_jax.accelerator import Accelerator, use_accelerator
from daisy_jax.console.pictures import save_picture
from daisy_jax.console.terminal import run_command
from daisy_jax.devices import medians
from daisy_jax.reporting import followed
from daisy_jax.whole_files import write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RAGGED = (1.2, 2.1, 2.9, 3.4, 4.8, 5.5, 7.0, 8.1, 9.3, 10.2, 11.6, 12.4, 13.3, 14.1, 15.0, 15.8)
"""Durations of a ragged batch, seconds: spread like read speech."""


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
    output: str = ""
    """Folder for speed.json and speed.png; empty: print only."""
    accelerator: Accelerator = "auto"
    """Where to compute."""


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    device = use_accelerator(config.accelerator, dtype=config.dtype, share_memory=True)

    import jax
    import jax.numpy as jnp
    import numpy as np
    from forced_exits import Forced
    from torch_place import torch_place

    import daisy_jax
    from daisy_jax import multiply_adds
    from daisy_jax.model.hubert import embed

    forced = Forced(config.size, config.dtype)
    model = forced.model
    place = torch_place() if config.reference and config.size != "tiny" else None
    reference = torch_reference(config, place) if place else None
    rng = np.random.default_rng(0)
    front_end = jax.jit(lambda model, waveform, lengths: embed(model, waveform, lengths).hidden)
    result: dict[str, Any] = {"settings": dataclasses.asdict(config), "versions": versions(device)}

    def ours(waveform: Any, lengths: Any = None, **options: Any) -> Callable[[], object]:
        return lambda: jax.block_until_ready(
            daisy_jax.encode(model, waveform, lengths, **options).last_hidden
        )

    def draw(rows: int, seconds: float) -> jax.Array:
        return jnp.asarray(rng.standard_normal((rows, round(16_000 * seconds)), np.float32))

    def ideal(times: dict[str, float], exits: Any) -> float:
        layer = (times["full depth"] - times["front end"]) / forced.layers
        return times["front end"] + layer * float(np.mean(exits))

    # ---- batches ----
    cells = [
        (rows, seconds)
        for seconds in config.seconds
        for rows in config.batches
        if rows * seconds <= config.most_audio
    ]
    result["batches"] = []
    beside = f", transformers on {place}" if reference else ""
    print(
        f"HuBERT {config.size}, {config.dtype}, on {device}{beside}; seconds, medians of "
        f"{config.runs}\n"
    )
    print("| batch | transformers | full depth | ratio | all branches | ratio | exits | / ideal |")
    print("| --- |" + " ---: |" * 7, flush=True)
    for rows, seconds in followed(cells, "batches"):
        waveform, exits = draw(rows, seconds), forced.spread(rows)
        lengths = jnp.full(rows, waveform.shape[1], jnp.int32)
        tasks = {
            "front end": lambda w=waveform, n=lengths: jax.block_until_ready(
                front_end(model, w, n)
            ),
            "full depth": ours(waveform),
            "all branches": ours(waveform, threshold=-np.inf),
            "exits": ours(waveform, threshold=forced.thresholds(exits)),
        }
        if reference:
            tasks["transformers"] = reference(np.asarray(waveform))
        times = medians(tasks, config.runs)
        best = ideal(times, exits)
        result["batches"].append(
            {"batch": rows, "seconds": seconds, "exits": exits, "times": times, "ideal": best}
        )
        theirs = times.get("transformers", float("nan"))
        print(
            f"| {rows} x {seconds:g} s | {theirs:.3f} | {times['full depth']:.3f} "
            f"| {times['full depth'] / theirs:.2f} | {times['all branches']:.3f} "
            f"| {times['all branches'] / times['full depth']:.2f} | {times['exits']:.3f} "
            f"| {times['exits'] / best:.2f} |",
            flush=True,
        )

    # ---- one utterance leaving at each layer ----
    waveform = draw(1, 10.0)
    lengths = jnp.full(1, waveform.shape[1], jnp.int32)
    tasks = {
        str(k): ours(waveform, threshold=forced.thresholds([k]))
        for k in range(1, forced.layers + 1)
    }
    tasks["full depth"] = ours(waveform)
    tasks["front end"] = lambda: jax.block_until_ready(front_end(model, waveform, lengths))
    times = medians(tasks, config.layer_runs)
    cost = np.asarray(multiply_adds(model.config, 160_000, np.arange(1, forced.layers + 1)))
    whole = float(
        multiply_adds(model.config, 160_000, forced.layers, np.zeros(forced.layers, bool))
    )
    result["layers"] = []
    print("\n| exit layer, 1 x 10 s | time saved | multiply-adds saved | time / ideal |")
    print("| ---: | ---: | ---: | ---: |")
    for k in range(1, forced.layers + 1):
        saved = 1 - times[str(k)] / times["full depth"]
        fewer = 1 - float(cost[k - 1]) / whole
        apart = times[str(k)] / ideal(times, [k])
        result["layers"].append({"layer": k, "time": times[str(k)], "saved": saved, "fewer": fewer})
        print(f"| {k} | {saved:.1%} | {fewer:.1%} | {apart:.2f} |")

    # ---- a ragged batch ----
    result["ragged"] = ragged_batch(config, forced, ours)

    # ---- what a call costs ----
    calls = result["calls"] = call_costs(config, model, draw)
    result["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"eager call / jitted call, daisy-tiny, 1 s: {calls['eager'] / calls['jitted']:.2f}")
    print(f"compiling one shape: {calls['compile']:.1f} s")
    print(f"peak memory of this process: {result['peak_bytes'] / 1e9:.1f} GB")
    print("; ".join(f"{name} {version}" for name, version in result["versions"].items()))
    if config.output:
        folder = pathlib.Path(config.output)
        write_json(folder / "speed.json", result)
        print(f"written: {folder / 'speed.json'}")
        save_picture(folder / "speed.png", lambda: savings_by_layer(result))


def ragged_batch(config: Config, forced: Any, ours: Callable[..., Any]) -> dict[str, float]:
    """Seconds of a batch of read speech's durations, at full depth and with exits."""
    import numpy as np

    import daisy_jax

    widths = [round(16_000 * seconds) for seconds in RAGGED]
    ragged, lengths = daisy_jax.audio.pad_batch([np.ones(width) for width in widths])
    exits = forced.spread(len(RAGGED))
    times = medians(
        {
            "full depth": ours(ragged, lengths),
            "exits": ours(ragged, lengths, threshold=forced.thresholds(exits)),
        },
        config.runs,
    )
    print(
        f"\nragged, {len(RAGGED)} x {RAGGED[0]:g} to {RAGGED[-1]:g} s: full depth "
        f"{times['full depth']:.3f} s, exits {times['exits'] / times['full depth']:.2f} of it"
    )
    return times


def call_costs(config: Config, model: Any, draw: Callable[[int, float], Any]) -> dict[str, float]:
    """Seconds of an eager and of a jitted call of the packaged model, and of a compilation."""
    import jax
    import jax.numpy as jnp

    import daisy_jax

    packaged, second = daisy_jax.load(), draw(1, 1.0)
    compiled = jax.jit(daisy_jax.encode)
    options: dict[str, Any] = {"threshold": jnp.full(1, 0.3, jnp.float32)}
    calls = medians(
        {
            "eager": lambda: jax.block_until_ready(daisy_jax.encode(packaged, second, **options)),
            "jitted": lambda: jax.block_until_ready(compiled(packaged, second, **options)),
        },
        max(config.runs, 30),
    )
    start = time.perf_counter()
    jax.jit(daisy_jax.encode).lower(model, draw(1, 9.0), threshold=0.5).compile()
    calls["compile"] = time.perf_counter() - start
    return calls


def torch_reference(config: Config, place: str) -> Callable[[Any], Callable[[], object]] | None:
    """From a batch to a task that runs transformers' eager HuBERT; None without transformers."""
    import torch

    try:
        import transformers
    except ImportError:
        return None
    large: dict[str, Any] = {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
    }
    large |= {"intermediate_size": 4096, "feat_extract_norm": "layer", "do_stable_layer_norm": True}
    fields: dict[str, Any] = large if config.size == "large" else {}
    dtype = getattr(torch, config.dtype)
    model: Any = transformers.HubertModel(transformers.HubertConfig(**fields)).eval()
    model = model.to(place, dtype)

    def task(waveform: Any) -> Callable[[], object]:
        batch = torch.from_numpy(waveform.copy()).to(place, dtype)

        def run() -> object:
            with torch.no_grad():
                hidden = model(batch).last_hidden_state
            if place == "cuda":
                torch.cuda.synchronize()
            return hidden

        return run

    return task


def versions(device: str) -> dict[str, str]:
    """Device and versions of what was timed."""
    import importlib.metadata
    import os

    found = {"device": device, "processor": platform.machine(), "cores": str(os.cpu_count())}
    for name in ("daisy-jax", "jax", "jaxlib", "flax", "torch", "transformers"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def savings_by_layer(result: dict[str, Any]) -> "Figure":
    """Savings by exit layer."""
    from matplotlib import pyplot

    layers = [row["layer"] for row in result["layers"]]
    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    axes.plot(layers, [100 * row["saved"] for row in result["layers"]], "o-", label="time")
    axes.plot(
        layers, [100 * row["fewer"] for row in result["layers"]], "s--", label="multiply-adds"
    )
    axes.set(xlabel="exit layer", ylabel="saved, %", title="one utterance of 10 s")
    axes.legend()
    return figure


if __name__ == "__main__":
    run_command(main)
