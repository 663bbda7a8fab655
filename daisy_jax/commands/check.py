"""`daisy-jax check`: does it compute rightly on this device, and does leaving early save time?"""

import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Annotated

import jax
import tyro

import daisy_jax
from daisy_jax import Hubert
from daisy_jax.accelerator import Accelerator, installed_versions, use_accelerator
from daisy_jax.commands import device_checks
from daisy_jax.commands.device_checks import (
    Answer,
    bfloat16_is_close,
    exits_do_not_depend_on_the_batch,
    float32_is_exact,
    forms_agree,
    gradients_are_exact,
    leaving_early_saves_time,
    random_model,
)
from daisy_jax.console.terminal import say
from daisy_jax.whole_files import write_json

LIBRARIES = ("daisy-jax", "jax", "jaxlib", "flax", "numpy")


@dataclasses.dataclass(frozen=True)
class Check:
    """Checks that this machine's device computes what it should, and that leaving early is faster.

    A few minutes, a line for each question. The first thing to run on a GPU or a TPU, and what a
    report of a fault should contain. Models have random weights; numbers are compared with stored
    ones in float64.
    """

    model: str = ""
    """Check this model, too: a model folder, or any other source that encode takes."""
    output: Annotated[str, tyro.conf.arg(metavar="FILE.json")] = ""
    """Write everything that was found there."""
    accelerator: Accelerator = "auto"
    """Where to compute."""

    def run(self) -> int:
        """Prints a line for each check; 1 if something is wrong."""
        device = use_accelerator(self.accelerator)
        own = daisy_jax.load(self.model) if self.model else None
        where = {"device": f"{jax.device_count()} x {device}", "platform": jax.default_backend()}
        where |= installed_versions(*LIBRARIES)
        for name, value in where.items():
            say(f"{name:10} {value}", flush=True)
        rows = []
        for name, ask in questions(own):
            start = time.perf_counter()
            try:
                answer = ask()
            except Exception as error:  # of a kernel, a compiler, a device
                answer = Answer(False, " ".join(f"{type(error).__name__}: {error}".split())[:300])
            say(f"{'right' if answer.right else 'WRONG'}  {name}: {answer.said}", flush=True)
            seconds = round(time.perf_counter() - start, 1)
            rows.append({"check": name, **answer._asdict(), "seconds": seconds})
        wrong = sum(not row["right"] for row in rows)
        if self.output:
            write_json(pathlib.Path(self.output), where | {"wrong": wrong, "checks": rows})
        say(f"{wrong} of {len(rows)} checks found something wrong" if wrong else "all is right")
        return 1 if wrong else 0


def questions(own: Hubert | None) -> Iterator[tuple[str, Callable[[], Answer]]]:
    """What is asked, with the function that answers it; of the user's own model at last."""
    references = device_checks.stored_references()
    small = random_model(device_checks.SMALL)
    for name, step in device_checks.steps(small).items():
        yield f"forms of {name}", functools.partial(forms_agree, name, *step)
    models = {"small": small, "base": random_model(device_checks.BASE), "own": own}
    for name, model in models.items():
        if model is None:
            continue
        if name in references:
            wanted = references[name]
            yield f"{name}, float32", functools.partial(float32_is_exact, model, wanted)
            yield f"{name}, gradients", functools.partial(gradients_are_exact, model, wanted)
        yield f"{name}, bfloat16", functools.partial(bfloat16_is_close, model)
        yield f"{name}, exits", functools.partial(exits_do_not_depend_on_the_batch, model)
        if name != "small":
            yield f"{name}, time", functools.partial(leaving_early_saves_time, model)
