"""How the figures of benchmarks/first_gpu.py become constants of the library."""

from collections.abc import Iterator
from typing import Any

from daisy_jax.forms import FORMS

FUSED_GAIN, FUSED_ERROR = 1.1, 1e-2
CONVOLUTION_ERROR = 1e-5
BRANCH_ERROR = 2e-6
NEAR_BEST = 1.05
WASTE = 1.15

RULES = {
    "attention": "fused if it is 10 % faster than at_once and within 1e-2 of the scale",
    "positional_convolution": "the fastest within 1e-5 of the scale in highest precision",
    "front_end": "the fastest",
    "branch": "the fastest within 2e-6 of the scale of a float64 product",
    "least_frames": "the smallest slices within 5 % of the best time",
    "host_questions": "more work on them while exits / ideal is above 1.15",
    "lstm": "the fastest with gradients",
    "batch_seconds": "the smallest batch within 5 % of the best time",
}


def decisions(lines: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """One line for each constant that the measurements decide: what it is now, what it should be.

    Args:
      lines: what was measured; measurements that were not taken or failed decide nothing.
    """
    rules = {
        "attention": _attention,
        "positional_convolution": _fastest(
            "milliseconds", "positional_convolution", CONVOLUTION_ERROR
        ),
        "front_end": _fastest("milliseconds", "front_end"),
        "branch": _fastest("milliseconds", "branch", BRANCH_ERROR),
        "least_frames": _least_frames,
        "host_questions": _host_questions,
        "lstm": _fastest("gradient_milliseconds", "lstm"),
        "batch_seconds": _batch_seconds,
    }
    good = [line for line in lines if "failed" not in line and "xla_flags" not in line]
    for name, rule in rules.items():
        found = rule(good)
        if found is not None:
            now = FORMS[name].get("cuda", FORMS[name]["elsewhere"]) if name in FORMS else None
            yield {"decides": name, "now": now, "measured": found, "rule": RULES[name]}


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


def _fastest(time: str, name: str, most_error: float | None = None) -> Any:
    """A rule: the form of a step that took the least time, of those that are as exact as asked."""

    def rule(lines: list[dict[str, Any]]) -> str | None:
        rows = _of(lines, name, "form", time)
        rows = [row for row in rows if row["form"] in FORMS[name].values()]
        if most_error is not None:
            rows = [row for row in rows if row["error"] <= most_error]
        return min(rows, key=lambda row: row[time])["form"] if rows else None

    return rule


def _smallest_near_best(rows: list[dict[str, Any]], size: str, time: str) -> Any:
    best = min(row[time] for row in rows)
    return min(row[size] for row in rows if row[time] <= NEAR_BEST * best)


def _least_frames(lines: list[dict[str, Any]]) -> int | None:
    rows = _of(lines, "exits", "least_frames", "milliseconds")
    return _smallest_near_best(rows, "least_frames", "milliseconds") if rows else None


def _host_questions(lines: list[dict[str, Any]]) -> str | None:
    rows = _of(lines, "exits", "over_ideal")
    if not rows:
        return None
    least = min(row["over_ideal"] for row in rows)
    return f"exits / ideal is {least:.2f}: {'more work' if least > WASTE else 'enough'}"


def _batch_seconds(lines: list[dict[str, Any]]) -> float | None:
    rows = _of(lines, "encode_files", "batch_seconds", "seconds")
    return _smallest_near_best(rows, "batch_seconds", "seconds") if rows else None
