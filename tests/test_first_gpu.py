"""The first ten minutes on a GPU: a small run on a CPU, and the rules that decide constants."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))

from gpu_rules import RULES, decisions

ATTENTION = {"measurement": "attention", "seconds": 10.0, "finite": True, "error": 1e-3}


def decided(*lines):
    return {line["decides"]: line["measured"] for line in decisions(list(lines))}


def attention(form, forward, backward, **fields):
    times = {"milliseconds": forward, "gradient_milliseconds": backward}
    return {**ATTENTION, "form": form, **times, **fields}


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({}, "fused"),
        ({"milliseconds": 0.95}, "at_once"),  # not 10 % faster
        ({"gradient_milliseconds": 2.0}, "at_once"),
        ({"error": 0.02}, "at_once"),
        ({"error": float("nan")}, "at_once"),
        ({"finite": False}, "at_once"),
    ],
)
def test_the_fused_kernel_must_be_faster_and_right(fields, wanted):
    lines = [attention("at_once", 1.0, 2.0), attention("fused", 0.8, 1.5, **fields)]
    assert decided(*lines) == {"attention": wanted}
    longer = [{**line, "seconds": 30.0} for line in lines]
    good = [attention("at_once", 1.0, 2.0), attention("fused", 0.8, 1.5)]
    assert decided(*good, *longer) == {"attention": wanted}  # at every length


def test_without_the_fused_kernel_nothing_is_decided_about_it():
    assert decided(attention("at_once", 1.0, 2.0)) == {}


def test_the_fastest_form_that_is_exact():
    def convolution(form, time, error):
        return {
            "measurement": "positional_convolution",
            "form": form,
            "milliseconds": time,
            "error": error,
        }

    exact = convolution("convolution", 3.0, 1e-7)
    assert decided(exact, convolution("blocks", 0.4, 1e-6)) == {"positional_convolution": "blocks"}
    assert decided(exact, convolution("blocks", 0.4, 1e-4)) == {
        "positional_convolution": "convolution"
    }
    # What the library does not have cannot be chosen.
    assert decided(exact, convolution("two_dimensional", 0.1, 1e-7)) == {
        "positional_convolution": "convolution"
    }


def test_the_smallest_slice_near_the_best_and_what_is_left_of_the_ideal():
    def exits(least, time, over):
        return {
            "measurement": "exits",
            "least_frames": least,
            "milliseconds": time,
            "over_ideal": over,
        }

    lines = [exits(512, 1.2, 1.3), exits(1024, 1.04, 1.2), exits(2048, 1.0, 1.16)]
    assert decided(*lines) == {
        "least_frames": 1024,
        "host_questions": "exits / ideal is 1.16: more work",
    }
    other_flags = {**exits(512, 0.1, 1.0), "xla_flags": "--flag"}
    failed = {**exits(512, 0.1, 1.0), "failed": "out of memory"}
    assert decided(*lines, other_flags, failed) == decided(*lines)


@pytest.mark.slow
def test_the_small_run_measures_everything_on_a_cpu(tmp_path):
    words = ["--small", "--accelerator=cpu", f"--output={tmp_path / 'lines.jsonl'}"]
    run = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks/first_gpu.py"), *words],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        # Its programs run a few times each, so that optimising them would take longer.
        env={**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "true"},
    )
    assert run.stdout == (tmp_path / "lines.jsonl").read_text()
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    assert not [line for line in lines if "failed" in line or "skipped" in line]
    took = [line["measurement"] for line in lines if "took_seconds" in line]
    assert took == [
        "attention",
        "positional_convolution",
        "front_end",
        "branch",
        "lstm",
        "packaged",
        "full_depth",
        "exits",
        "encode_files",
        "stage1",
        "transformers",
    ]
    # All but the kernel that only a GPU has.
    assert {line["decides"] for line in lines if "decides" in line} == RULES.keys() - {"attention"}


def test_an_unknown_measurement_is_one_line(tmp_path):
    run = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks/first_gpu.py"), "--only=nonsense"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert run.returncode == 1
    assert run.stderr.startswith("error: nonsense is no measurement; there are attention, ")
