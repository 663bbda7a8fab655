"""All forms of every step, timed side by side: is the table in daisy_jax/model/forms.py right here?

    python benchmarks/forms.py

Steps are those of HuBERT Base on one batch, in float32; of a branch, on a bfloat16 tap; the front
end's forms are compared in whole calls, too. Forms take turns; medians are printed, what each takes
of the form that this platform has now, and the memory that its program takes beside arguments and
results. benchmarks/first_gpu.py does more, for GPUs.
"""

# First, so that Ctrl-C ends the program while everything else is loaded.
from daisy_jax import InputError

# isort: split

import dataclasses
import functools

import gpu_steps
import jax
import jax.numpy as jnp
import tyro
from gpu_sizes import sizes
from timing import TimingOptions, milliseconds

from daisy_jax.accelerator import use_accelerator
from daisy_jax.console.terminal import run_command, say
from daisy_jax.model.forms import ELSEWHERE, FORMS
from daisy_jax.parallel import platform_of
from daisy_jax.study.forced_exits import Forced


@dataclasses.dataclass(frozen=True)
class Config(TimingOptions):
    """What to time."""

    rows: int = 4
    """Utterances in a batch."""
    seconds: float = 10.0
    """Length of each."""
    ragged: bool = False
    """Utterances from a tenth of the length to all of it."""
    runs: int = 5
    """Measurements of each form, in turn, after a warm-up."""


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    device = use_accelerator(config.accelerator)

    if config.rows < 1:
        raise InputError(f"rows is {config.rows}; it must be at least one")

    shapes = sizes(False, config.runs)._replace(rows=config.rows, seconds=config.seconds)
    shapes = shapes._replace(lstm=(config.rows, shapes.frames, shapes.config.dim, 256, 3))
    forced = Forced("base", "float32")
    thresholds = jnp.asarray(forced.thresholds(forced.spread(config.rows)))
    waveform = gpu_steps.drawn(1, config.rows, shapes.samples)
    shortest = 0.1 if config.ragged else 1.0
    lengths = (jnp.linspace(shortest, 1.0, config.rows) * shapes.samples).astype(jnp.int32)
    full_depth = (gpu_steps.last_hidden, (forced.model, waveform, None, None, lengths))
    with_exits = (gpu_steps.last_hidden, (forced.model, waveform, thresholds, None, lengths))

    steps = {
        "attention": ("attention", gpu_steps.attention_step(shapes)),
        "positional convolution": ("positional_convolution", gpu_steps.positional_step(shapes)),
        "front end": ("front_end", gpu_steps.front_end_step(shapes, lengths)),
        "front end, full depth": ("front_end", full_depth),
        "front end, with exits": ("front_end", with_exits),
        "branch": ("branch", gpu_steps.branch_step(shapes)),
        "layer, with exits": ("layer", with_exits),
        "lstm": ("lstm", gpu_steps.lstm_step(shapes)),
    }
    platform = platform_of(None)
    platform = "cuda" if platform == "gpu" else platform
    ragged = ", ragged" if config.ragged else ""
    say(f"{config.rows} x {config.seconds:g} s{ragged}, float32, on {device}\n")
    say("| step | form | ms | of today's | MB |", flush=True)
    say("| --- | --- | ---: | ---: | ---: |", flush=True)
    for name, (step, (function, arguments)) in steps.items():
        now = FORMS[step].get(platform, FORMS[step][ELSEWHERE])
        tasks, megabytes = {}, {}
        for form in sorted(set(FORMS[step].values()) - {"fused"} | {now}):
            jax.clear_caches()  # `encode` keeps what it traced in another form
            program = gpu_steps.in_form(step, form, function).lower(*arguments).compile()
            tasks[form] = functools.partial(program, *arguments)
            planned = program.memory_analysis()
            megabytes[form] = f"{planned.temp_size_in_bytes / 1e6:.0f}" if planned else ""
        times = milliseconds(tasks, config.runs)
        for form, taken in times.items():
            called = f"{form} (now)" if form == now else form
            ratio = f"{taken:.1f} | {taken / times[now]:.2f}"
            say(f"| {name} | {called} | {ratio} | {megabytes[form]} |", flush=True)


if __name__ == "__main__":
    run_command(main)
