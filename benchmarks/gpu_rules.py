"""How the figures of benchmarks/first_gpu.py become constants of the library."""

from collections.abc import Iterator
from typing import Any

from daisy_jax.model.forms import ELSEWHERE, FORMS

FUSED_GAIN, FUSED_ERROR = 1.1, 1e-2
CONVOLUTION_ERROR = 1e-5
BRANCH_ERROR = 2e-6
NEAR_BEST = 1.05
WASTE = 1.15

RULES = {
    "attention": "fused if it is 10 % faster than at_once and within 1e-2 of the scale",
    "positional_convolution": "the fastest, 5 % ahead of today's, within 1e-5 of the scale",
    "front_end": "the fastest, 5 % ahead of today's",
    "branch": "the fastest, 5 % ahead of today's, within 2e-6 of the scale",
    "layer": "the fastest, 5 % ahead of today's",
    "lstm": "the fastest with gradients, 5 % ahead of today's",
    "least_frames": "the smallest slices within 5 % of the best time",
    "host_questions": "more work on them while exits take above 1.15 of what their slices would",
    "batch_seconds": "the smallest batch within 5 % of the best time",
}


def decisions(lines: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """One line for each constant that the measurements decide: what it is now, what it should be.

    Args:
      lines: what was measured; measurements that were not taken or failed decide nothing.
    """
    forward, gradient = "milliseconds", "gradient_milliseconds"
    convolution = "positional_convolution"
    rules = {
        "attention": _attention,
        convolution: _fastest(convolution, convolution, (forward, gradient), CONVOLUTION_ERROR),
        "front_end": _fastest("front_end", "front_end", (forward,)),
        "branch": _fastest("branch", "branch", (forward,), BRANCH_ERROR),
        "layer": _fastest("layer", "exits", (forward,)),
        "lstm": _fastest("lstm", "lstm", (gradient,)),
        "least_frames": _least_frames,
        "host_questions": _host_questions,
        "batch_seconds": _batch_seconds,
    }
    good = [line for line in lines if "failed" not in line and "xla_flags" not in line]
    for name, rule in rules.items():
        found = rule(good)
        if found is not None:
            yield {"decides": name, "now": _now(name), "measured": found, "rule": RULES[name]}


def _now(step: str) -> str | None:
    """The form of a step that an NVIDIA GPU has today."""
    return FORMS[step].get("cuda", FORMS[step][ELSEWHERE]) if step in FORMS else None


def _of(lines: list[dict[str, Any]], name: str, *fields: str) -> list[dict[str, Any]]:
    return [
        line
        for line in lines
        if line.get("measurement") == name and all(field in line for field in fields)
    ]


def _attention(lines: list[dict[str, Any]]) -> str | None:
    rows = _of(lines, "attention", "form", "milliseconds")
    fused = {row["seconds"]: row for row in rows if row["form"] == "fused"}
    plain = {row["seconds"]: row for row in rows if row["form"] == "at_once"}
    if not fused or fused.keys() != plain.keys():
        return None
    for seconds, row in fused.items():
        gain = min(
            plain[seconds][name] / row[name] for name in ("milliseconds", "gradient_milliseconds")
        )
        if gain < FUSED_GAIN or not row["error"] <= FUSED_ERROR or not row["finite"]:
            return "at_once"
    return "fused"


def _fastest(
    step: str, measurement: str, times: tuple[str, ...], most_error: float | None = None
) -> Any:
    """A rule: the form of a step with the least time, of those that are as exact as asked.

    Today's form stays unless another one is 5 % ahead. A form that the library does not have is
    named as well, so that somebody writes it.
    """

    def rule(lines: list[dict[str, Any]]) -> str | None:
        taken: dict[str, float] = {}
        for row in _of(lines, measurement, "form", *times):
            if most_error is None or row["error"] <= most_error:
                total = sum(row[name] for name in times)
                taken[row["form"]] = min(total, taken.get(row["form"], total))
        taken = {form: time for form, time in taken.items() if form not in NO_FORMS}
        if not taken:
            return None
        best, now = min(taken, key=lambda form: taken[form]), _now(step)
        return now if now in taken and taken[now] <= NEAR_BEST * taken[best] else best

    return rule


NO_FORMS = ("torch", "without norm")  # measured to compare with


def _smallest_near_best(rows: list[dict[str, Any]], size: str, time: str) -> Any:
    best = min(row[time] for row in rows)
    return min(row[size] for row in rows if row[time] <= NEAR_BEST * best)


def _least_frames(lines: list[dict[str, Any]]) -> int | None:
    rows = _of(lines, "exits", "least_frames", "milliseconds")
    return _smallest_near_best(rows, "least_frames", "milliseconds") if rows else None


def _host_questions(lines: list[dict[str, Any]]) -> str | None:
    rows = _of(lines, "exits", "over_slices", "milliseconds")
    if not rows:
        return None
    least = min(rows, key=lambda row: row["milliseconds"])["over_slices"]
    return f"exits / slices is {least:.2f}: {'more work' if least > WASTE else 'enough'}"


def _batch_seconds(lines: list[dict[str, Any]]) -> float | None:
    rows = _of(lines, "encode_files", "batch_seconds", "seconds")
    return _smallest_near_best(rows, "batch_seconds", "seconds") if rows else None
