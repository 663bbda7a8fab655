"""All forms of every step, timed side by side: is the table in daisy_jax/model/forms.py right here?

    python benchmarks/forms.py

Steps are those of HuBERT Base on one batch, in float32; of a branch, on a bfloat16 tap. Forms take
turns; medians are printed, and what each takes of the form that this platform has now.
benchmarks/first_gpu.py does more, for GPUs.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import tyro

from daisy_jax import InputError
from daisy_jax.accelerator import Accelerator, use_accelerator
from daisy_jax.console.terminal import run_command

sys.path.append(str(pathlib.Path(__file__).parents[1] / "eval"))  # for forced_exits


@dataclasses.dataclass(frozen=True)
class Config:
    """What to time."""

    rows: int = 4
    """Utterances in a batch."""
    seconds: float = 10.0
    """Length of each."""
    runs: int = 5
    """Measurements of each form, in turn, after a warm-up."""
    accelerator: Accelerator = "auto"
    """Where to compute."""


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    device = use_accelerator(config.accelerator)

    if config.rows < 1:
        raise InputError(f"rows is {config.rows}; it must be at least one")

    import jax
    from gpu_sizes import milliseconds, sizes
    from gpu_steps import in_form

    from daisy_jax.devices import platform_of
    from daisy_jax.model.forms import ELSEWHERE, FORMS

    shapes = sizes(False, config.runs)._replace(rows=config.rows, seconds=config.seconds, calls=1)
    platform = platform_of(None)
    platform = "cuda" if platform == "gpu" else platform
    print(f"{config.rows} x {config.seconds:g} s, float32, on {device}\n")
    print("| step | form | ms | of today's |\n| --- | --- | ---: | ---: |", flush=True)
    for step, (function, arguments) in steps(shapes).items():
        now = FORMS[step].get(platform, FORMS[step][ELSEWHERE])
        tasks = {}
        for form in sorted(set(FORMS[step].values()) - {"fused"} | {now}):
            jax.clear_caches()  # `encode` keeps what it traced in another form
            program = in_form(step, form, function).lower(*arguments).compile()
            tasks[form] = lambda program=program, given=arguments: program(*given)
        times = milliseconds(tasks, shapes)
        for form, taken in times.items():
            today = " (now)" if form == now else ""
            print(
                f"| {step} | {form}{today} | {taken:.1f} | {taken / times[now]:.2f} |", flush=True
            )


def steps(shapes: Any) -> dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]:
    """A function for each step, and its arguments."""
    import jax
    import jax.numpy as jnp
    from flax import nnx
    from forced_exits import Forced
    from gpu_steps import drawn

    import daisy_jax
    from daisy_jax import audio
    from daisy_jax.model.attention import attend
    from daisy_jax.model.branches import Branches
    from daisy_jax.model.feature_encoder import FeatureEncoder
    from daisy_jax.model.transformer import PositionalConvolution
    from daisy_jax.tasks.lstm import BidirectionalLstm

    config, rows = shapes.config, shapes.rows
    samples = round(shapes.seconds * audio.SAMPLE_RATE)
    frames = int(audio.frame_count(samples))
    hidden, waveform = drawn(0, rows, frames, config.dim), drawn(1, rows, samples)
    lengths, mask = jnp.full(rows, samples), jnp.ones((rows, frames), bool)
    heads = hidden.reshape(rows, frames, config.num_heads, -1)
    branches = Branches(1, config.dim, config.num_classes, rngs=nnx.Rngs(0))
    branch = jax.tree.map(lambda leaf: leaf[0], branches)
    forced = Forced("base", "float32")
    thresholds = jnp.asarray(forced.thresholds(forced.spread(rows)))

    def exits(model: Any, waveform: Any, thresholds: Any) -> Any:
        return daisy_jax.encode(model, waveform, threshold=thresholds).last_hidden

    def call(module: Any, *arguments: Any) -> Any:
        return module(*arguments)

    positional = PositionalConvolution(config, rngs=nnx.Rngs(0))
    encoder = FeatureEncoder(config, rngs=nnx.Rngs(0))
    lstm = BidirectionalLstm(config.dim, 256, 3, rngs=nnx.Rngs(0))
    return {
        "attention": (attend, (heads, heads, heads, mask)),
        "positional_convolution": (call, (positional, hidden)),
        "front_end": (call, (encoder, waveform, lengths)),
        "branch": (call, (branch, hidden.astype(jnp.bfloat16))),
        "layer": (exits, (forced.model, waveform, thresholds)),
        "lstm": (call, (lstm, hidden, mask)),
    }


if __name__ == "__main__":
    run_command(main)
