"""How the figures of benchmarks/first_gpu.py become constants of the library."""

import math
from collections.abc import Callable, Iterator

from gpu_sizes import Line

from daisy_jax.model.forms import ELSEWHERE, FORMS

FUSED_GAIN, FUSED_ERROR = 1.1, 1e-2
CONVOLUTION_ERROR = 1e-5
BRANCH_ERROR = 2e-6
NEAR_BEST = 1.05
WASTE = 1.15
FORWARD, GRADIENT = "milliseconds", "gradient_milliseconds"
NO_FORMS = ("torch", "without norm")  # measured to compare with

Rule = Callable[[list[Line]], str | float | None]
"""What measurements decide; None: nothing, as they were not taken or failed."""


def decisions(lines: list[Line]) -> Iterator[Line]:
    """One line for each constant that the measurements decide: what it is now, what it should be.

    Args:
      lines: what was measured; measurements that were not taken or failed decide nothing.
    """
    good = [line for line in lines if "failed" not in line and "xla_flags" not in line]
    for name, (rule, words) in RULES.items():
        decided = rule(good)
        if decided is not None:
            yield {"decides": name, "now": _now(name), "measured": decided, "rule": words}


def _now(step: str) -> str | None:
    """The form of a step that an NVIDIA GPU has today."""
    return FORMS[step].get("cuda", FORMS[step][ELSEWHERE]) if step in FORMS else None


def _of(lines: list[Line], name: str, *fields: str) -> list[Line]:
    return [
        line
        for line in lines
        if line.get("measurement") == name and all(field in line for field in fields)
    ]


def _attention(lines: list[Line]) -> str | None:
    rows = _of(lines, "attention", "form", "milliseconds")
    fused = {row["seconds"]: row for row in rows if row["form"] == "fused"}
    plain = {row["seconds"]: row for row in rows if row["form"] == "at_once"}
    if not fused or fused.keys() != plain.keys():
        return None
    for seconds, row in fused.items():
        gain = min(plain[seconds][name] / row[name] for name in (FORWARD, GRADIENT))
        if gain < FUSED_GAIN or not row["error"] <= FUSED_ERROR or not row["finite"]:
            return "at_once"
    return "fused"


def _fastest(
    step: str, measurement: str, times: tuple[str, ...] = (FORWARD,), most_error: float = math.inf
) -> tuple[Rule, str]:
    """The form of a step with the least time, of those that are as exact as asked.

    Today's form stays unless another one is 5 % ahead. A form that the library does not have is
    named as well, so that somebody writes it.
    """

    def rule(lines: list[Line]) -> str | None:
        taken: dict[str, float] = {}
        for row in _of(lines, measurement, "form", *times):
            if row["form"] not in NO_FORMS and row.get("error", 0) <= most_error:
                total = sum(row[name] for name in times)
                taken[row["form"]] = min(total, taken.get(row["form"], total))
        if not taken:
            return None
        best, now = min(taken, key=lambda form: taken[form]), _now(step)
        return now if now in taken and taken[now] <= NEAR_BEST * taken[best] else best

    words = f"the fastest{' with gradients' if GRADIENT in times else ''}, 5 % ahead of today's"
    return rule, words + (f", within {most_error:g} of the scale" if most_error < 1 else "")


def _smallest(measurement: str, size: str, time: str) -> tuple[Rule, str]:
    """The smallest size whose time is near the best."""

    def rule(lines: list[Line]) -> float | None:
        rows = _of(lines, measurement, size, time)
        best = min((row[time] for row in rows), default=0)
        return min((row[size] for row in rows if row[time] <= NEAR_BEST * best), default=None)

    return rule, "the smallest within 5 % of the best time"


def _host_questions(lines: list[Line]) -> str | None:
    rows = _of(lines, "exits", "over_slices", "milliseconds")
    if not rows:
        return None
    least = min(rows, key=lambda row: row["milliseconds"])["over_slices"]
    return f"exits / slices is {least:.2f}: {'more work' if least > WASTE else 'enough'}"


RULES = {
    "attention": (_attention, "fused if it is 10 % faster, with gradients too, and within 1e-2"),
    "positional_convolution": _fastest(
        "positional_convolution", "positional_convolution", (FORWARD, GRADIENT), CONVOLUTION_ERROR
    ),
    "front_end": _fastest("front_end", "front_end"),
    "branch": _fastest("branch", "branch", most_error=BRANCH_ERROR),
    "layer": _fastest("layer", "exits"),
    "lstm": _fastest("lstm", "lstm", (GRADIENT,)),
    "least_frames": _smallest("exits", "least_frames", FORWARD),
    "host_questions": (_host_questions, "more work on them if exits / slices is above 1.15"),
    "batch_seconds": _smallest("encode_files", "batch_seconds", "seconds"),
}
"""By constant: the rule, and the rule in words."""
