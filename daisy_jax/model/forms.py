"""Which form of a computation runs on which platform: the one table, and what reads it.

Some steps of the model are written in more than one form. The forms give the same result up to
rounding (tests hold them together on a CPU, where all of them run); which is fastest depends on the
platform. Inside jit the platform is the one that a program is lowered for, so that a model on the
CPU of a process with a GPU gets the CPU's forms, and a program exported for a GPU gets the GPU's
(but for cuDNN's LSTM, which only a process with a GPU can ask for). Outside it is the default
device's.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import TypeVar

import jax
from jaxtyping import PyTree

Result = TypeVar("Result", bound=PyTree)

ELSEWHERE = "elsewhere"
"""The row of all platforms that the table does not name."""

FORMS: dict[str, dict[str, str]] = {
    # A CPU keeps the scores of one head in its cache. NVIDIA's fused kernel never stores scores;
    # where it does not run (`attention.attend` knows), all heads are computed at once.
    "attention": {"cpu": "by_head", "cuda": "fused", ELSEWHERE: "at_once"},
    # A CPU takes longer for the products, which are larger by their zeros (measured). GPUs and TPUs
    # have no good kernel for a convolution of 16 groups of 48 channels and 128 taps (estimated).
    "positional_convolution": {"cpu": "convolution", ELSEWHERE: "blocks"},
    # In pieces, a CPU computes nothing for padding, and a program does without the memory that it
    # would take anew in each call (measured). Below Hopper, XLA keeps the channels last only in
    # convolutions of 16-bit numbers over two dimensions; with one, it transposes every array twice
    # (read in its layout assignment).
    "front_end": {"cpu": "in_pieces", "cuda": "two_dimensional", ELSEWHERE: "one_dimensional"},
    # A float32 product at the highest precision misses the matrix units of GPUs and TPUs; three
    # products of bfloat16 parts are as exact and fit them (estimated), and cost a CPU more
    # (measured).
    "branch": {"cpu": "float32", ELSEWHERE: "three_parts"},
    # A loop or a condition whose end depends on data makes a GPU wait for the host; a CPU does not
    # mind, and gains from slices that fit exactly (measured there, estimated elsewhere).
    "layer": {"cpu": "loops", ELSEWHERE: "switch"},
    # A CPU copies the weights of stacked layers before it multiplies by them (measured); elsewhere
    # that costs hardly anything, and a scan is the smaller program (estimated). Decided where a
    # model is made ready (`hubert.arranged`), not while it is lowered.
    "layer_arrays": {"cpu": "apart", ELSEWHERE: "stacked"},
    # A step of a recurrence is too small for a GPU, so that both directions stacked take half the
    # time, and NVIDIA's own kernels less than that (estimated). On a CPU two products side by side,
    # each on a core, are faster than a stacked one (measured).
    "lstm": {"cpu": "side_by_side", "cuda": "cudnn", ELSEWHERE: "together"},
}
"""For each step with several forms: platform, as JAX names it while lowering, to form.

"measured": by benchmarks/forms.py, with figures in benchmarks/README.md. "estimated": nothing has
measured it; benchmarks/first_gpu.py does.
"""


def run_form(step: str, forms: dict[str, Callable[..., Result]], *arguments: PyTree) -> Result:
    """Runs the form of a step that the table has for the platform.

    Args:
      step: a row of `FORMS`.
      forms: functions of the same arguments, by the names that the table uses.
      *arguments: pytrees of arrays; what does not depend on them may be closed over.
    """
    row = FORMS[step]
    if len(set(row.values())) == 1:
        return forms[row[ELSEWHERE]](*arguments)
    named = {platform: forms[form] for platform, form in row.items() if platform != ELSEWHERE}
    return jax.lax.platform_dependent(*arguments, default=forms[row[ELSEWHERE]], **named)


@contextlib.contextmanager
def one_form(step: str, form: str) -> Iterator[None]:
    """Runs one form of a step on every platform, for tests and benchmarks.

    Programs that are traced inside keep it; jitted functions that were traced outside keep theirs.
    """
    before = FORMS[step]
    FORMS[step] = dict.fromkeys(before, form)
    try:
        yield
    finally:
        FORMS[step] = before
