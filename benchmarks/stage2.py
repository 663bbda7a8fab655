"""What a training step of stage 2 costs with stored features, and with the upstream in the step.

    python benchmarks/stage2.py [--accelerator=gpu --dtype=bfloat16 --batch 8 --seconds 10]

For each task, with the head of a preset on full-size HuBERT: a step on stored features, a step that
runs the upstream up to each utterance's exit (spread, 6 on average), and one that runs all layers;
in turns, medians. Weights are random and exits are forced: time does not depend on what they say.
"""

import dataclasses
import json
import pathlib
import sys
from typing import Any, Literal

import tyro

from daisy_jax.accelerator import Accelerator, use_accelerator
from daisy_jax.console.terminal import run_command
from daisy_jax.devices import medians

sys.path.append(str(pathlib.Path(__file__).parents[1] / "eval"))  # for forced_exits


@dataclasses.dataclass(frozen=True)
class Config:
    """What to time."""

    tasks: tuple[Literal["asr", "sid", "se", "ss"], ...] = ("asr", "sid", "se", "ss")
    """Tasks."""
    preset: str = "superb"
    """Whose heads."""
    size: Literal["tiny", "base", "large"] = "base"
    """The upstream's architecture."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """What the upstream computes in."""
    batch: int = 4
    """Utterances."""
    seconds: float = 8.0
    """Length of each."""
    runs: int = 3
    """Measurements of each, in turn, after a warm-up."""
    output: str = ""
    """A JSON file for the results; empty: print only."""
    accelerator: Accelerator = "auto"
    """Where to compute."""


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    device = use_accelerator(config.accelerator, dtype=config.dtype)

    import jax
    import numpy as np
    from forced_exits import Forced

    from daisy_jax import audio, parallel
    from daisy_jax.tasks.asr import CHARACTERS
    from daisy_jax.tasks.presets import make_task, read_preset
    from daisy_jax.tasks.training import downstream_step, head_optimizer, new_params

    forced = Forced(config.size, config.dtype)
    upstream = parallel.replicate(forced.model)
    layers, dim = forced.layers, forced.model.config.dim
    exits = forced.spread(config.batch)
    samples = round(config.seconds * audio.SAMPLE_RATE)
    frames = int(audio.frame_count(samples))
    rng = np.random.default_rng(0)

    def noise(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    rows, lengths = config.batch, np.full(config.batch, samples, np.int32)
    mixture = noise(rows, samples)
    targets: dict[str, dict[str, np.ndarray]] = {
        "asr": {"characters": rng.integers(4, 32, (rows, round(14 * config.seconds)), np.int32)},
        "sid": {"speaker": rng.integers(0, 1251, rows, np.int32)},
        "se": {"mixture": mixture, "sources": noise(rows, 1, samples), "samples": lengths},
        "ss": {"mixture": mixture, "sources": noise(rows, 2, samples), "samples": lengths},
    }
    stored = {
        "items": noise(rows, layers + 1, frames, dim).astype(np.float16),
        "num_frames": np.full(rows, frames, np.int32),
        "exit_layer": np.asarray(exits, np.int32),
        "forced": np.zeros(rows, bool),
    }
    everywhere = np.ones(layers, bool)
    result: dict[str, Any] = {
        "settings": dataclasses.asdict(config),
        "device": device,
        "exits": exits,
        "seconds": {},
    }
    print(
        f"HuBERT {config.size}, {config.dtype}, {config.preset} heads, {rows} x "
        f"{config.seconds:g} s, mean exit layer {np.mean(exits):.2f}, on {device}; medians of "
        f"{config.runs}\n"
    )
    print("| task | stored features, s | with exits, s | all layers, s | with exits / all layers |")
    print("| --- | ---: | ---: | ---: | ---: |", flush=True)
    for name in config.tasks:
        settings = read_preset(name, config.preset)
        task = make_task(name, settings)
        classes = CHARACTERS if name == "asr" else tuple(map(str, range(1251)))
        optimizer = head_optimizer(1e-4, settings.weight_decay, settings.clip)
        common = {"targets": targets[name], "number": np.asarray(0, np.int32)}
        live = {"waveform": mixture, "lengths": lengths} | common
        states: dict[str, Any] = {}
        step = downstream_step(task, optimizer, 0)
        ways = {
            "stored features": (None, None, everywhere, stored | common),
            "with exits": (upstream, forced.thresholds(exits), everywhere, live),
            "all layers": (upstream, None, everywhere, live),
        }

        def timed(way: str, arguments: tuple, step: Any = step, states: Any = states) -> Any:
            placed = (*arguments[:3], parallel.place(arguments[3]))

            def one_step() -> None:
                states[way], metrics = step(states[way], *placed)
                jax.block_until_ready(metrics)

            return one_step

        steps = {}
        for way, arguments in ways.items():
            params = parallel.replicate(new_params(task, dim, layers, classes, 0))
            states[way] = (params, jax.jit(optimizer.init)(params))
            steps[way] = timed(way, arguments)
        times = medians(steps, config.runs)
        result["seconds"][name] = times
        print(
            f"| {name} | {times['stored features']:.3f} | {times['with exits']:.3f} "
            f"| {times['all layers']:.3f} | {times['with exits'] / times['all layers']:.2f} |",
            flush=True,
        )
    if config.output:
        path = pathlib.Path(config.output)
        path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        print(f"written: {path}")


if __name__ == "__main__":
    run_command(main)
