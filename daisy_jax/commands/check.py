"""`daisy-jax check`: does it compute rightly on this device, and does leaving early save time?"""

import dataclasses
import functools
import os
import pathlib
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import jax
import tyro

import daisy_jax
from daisy_jax import Hubert
from daisy_jax.accelerator import Accelerator, installed_versions, use_accelerator
from daisy_jax.commands.device_checks import (
    BASE,
    LENGTHS,
    MANY,
    SMALL,
    Answer,
    exits_do_not_depend_on_the_batch,
    float32_is_exact,
    gradients_are_exact,
    half_precision_is_close,
    leaving_early_saves_time,
    random_model,
    stored_references,
)
from daisy_jax.commands.form_checks import OF_THE_MODEL, STEPS, forms_agree
from daisy_jax.console.terminal import say
from daisy_jax.whole_files import write_json

LIBRARIES = ("daisy-jax", "jax", "jaxlib", "flax", "numpy")


@dataclasses.dataclass(frozen=True)
class Check:
    """Checks that this machine's device computes what it should, and that leaving early is faster.

    A few minutes, a line for each question. The first thing to run on a GPU or a TPU, and what a
    report of a fault should contain. Models have random weights, small ones and Base-sized ones:

    forms: steps that this platform computes in another way than a CPU, computed in both here.
    float32, gradients: features, entropies and stage 1's gradient, against stored float64 numbers.
    half precision: the trunk in the short type of this device, against float32.
    exits: utterances in a batch leave where they leave alone, with the same features.
    time: leaving after a quarter of the layers takes less time than going through all of them.

    A difference is a share of the largest number wanted. On several devices the first is checked.
    The exit status is 1 if something is wrong.
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
        settings: Any = jax.config
        where = {"device": f"{device}, the first of {jax.device_count()}"}
        where |= {"platform": jax.default_backend(), **installed_versions(*LIBRARIES)}
        where |= {"precision": str(settings.jax_default_matmul_precision)}
        where |= {"XLA_FLAGS": os.environ.get("XLA_FLAGS", "")}
        for name, value in where.items():
            say(f"{name:10} {value}", flush=True)
        rows, wrong = [], 0
        for name, ask in questions(own):
            start, fault = time.perf_counter(), None
            try:
                answer = ask()
            except Exception as error:  # of a kernel, a compiler, a device
                fault = traceback.format_exc()
                answer = Answer(False, " ".join(f"{type(error).__name__}: {error}".split())[:300])
            say(f"{'right' if answer.right else 'WRONG'}  {name}: {answer.said}", flush=True)
            wrong += not answer.right
            seconds = round(time.perf_counter() - start, 1)
            rows.append({"check": name, **answer._asdict(), "seconds": seconds, "error": fault})
            if self.output:  # a fault of a device may end the program at the next one
                write_json(pathlib.Path(self.output), where | {"wrong": wrong, "checks": rows})
        say(f"{wrong} of {len(rows)} checks found something wrong" if wrong else "all is right")
        return 1 if wrong else 0


def questions(own: Hubert | None) -> Iterator[tuple[str, Callable[[], Answer]]]:
    """What is asked, with the function that answers it; of the user's own model at last."""
    for step in STEPS:
        yield f"forms of {step}", functools.partial(forms_agree, step, BASE)
    for name, config in {"small": SMALL, "base": BASE}.items():
        yield from questions_of(name, functools.partial(random_model, config))
    if own is not None:
        for step in OF_THE_MODEL:
            yield f"own, forms of {step}", functools.partial(forms_agree, step, own.config)
        yield from questions_of("own", lambda: own)


def questions_of(
    name: str, model: Callable[[], Hubert]
) -> Iterator[tuple[str, Callable[[], Answer]]]:
    """What is asked of one model, which is made where something is asked of it."""
    if name != "own":
        yield f"{name}, float32", lambda: float32_is_exact(model(), stored_references()[name])
        yield f"{name}, gradients", lambda: gradients_are_exact(model(), stored_references()[name])
    lengths = MANY if name == "small" else LENGTHS
    yield f"{name}, half precision", lambda: half_precision_is_close(model())
    yield f"{name}, exits", lambda: exits_do_not_depend_on_the_batch(model(), lengths)
    if name != "small":
        yield f"{name}, time", lambda: leaving_early_saves_time(model())
