"""The first ten minutes on a GPU: a small run on a CPU, and the rules that decide constants."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from conftest import environment
from programs import run_here

ROOT = pathlib.Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))

import first_gpu
import gpu_models
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
            "milliseconds": time / 2,
            "gradient_milliseconds": time / 2,
            "error": error,
        }

    exact = convolution("convolution", 3.0, 1e-7)
    assert decided(exact, convolution("blocks", 0.4, 1e-6)) == {"positional_convolution": "blocks"}
    assert decided(exact, convolution("blocks", 0.4, 1e-4)) == {
        "positional_convolution": "convolution"
    }
    # Today's form stays where another one is not 5 % ahead.
    assert decided(convolution("blocks", 1.04, 1e-6), convolution("convolution", 1.0, 1e-7)) == {
        "positional_convolution": "blocks"
    }


def test_the_smallest_slice_near_the_best_and_what_is_left_of_the_ideal():
    def exits(least, time, over):
        return {
            "measurement": "exits",
            "form": "switch",
            "least_frames": least,
            "milliseconds": time,
            "over_slices": over,
        }

    lines = [exits(512, 1.2, 1.3), exits(1024, 1.04, 1.2), exits(2048, 1.0, 1.16)]
    assert decided(*lines) == {
        "layer": "switch",
        "least_frames": 1024,
        "host_questions": "exits / slices is 1.16: more work",
    }
    loops = {"measurement": "exits", "form": "loops", "milliseconds": 0.9}
    assert decided(*lines, loops)["layer"] == "loops"
    other_flags = {**exits(512, 0.1, 1.0), "xla_flags": "--flag"}
    failed = {**exits(512, 0.1, 1.0), "failed": "out of memory"}
    assert decided(*lines, other_flags, failed) == decided(*lines)


def test_rows_that_slices_compute_in_vain():
    """16 utterances, by hand: 16, 15 and 13 inside are one slice of 16, and so on."""
    exits = [2, 3, 3, 4, 4, 5, 5, 6, 6, 6, 7, 7, 8, 8, 10, 12]
    sizes = gpu_models.slice_sizes(16, 499, 1024)
    assert sizes == (4, 8, 16)
    inside = [16, 16, 15, 13, 11, 9, 6, 4, 2, 2, 1, 1]
    assert sum(inside) == sum(exits) == 96
    assert gpu_models.rows_computed(exits, sizes, 12) == 6 * 16 + 8 + 5 * 4


@pytest.mark.parametrize("failure", [None, "code", "time"])
def test_exits_with_other_flags_come_from_another_process(monkeypatch, failure):
    def run(command, env, **options):
        assert "--only" in command
        assert env["XLA_FLAGS"].endswith(first_gpu.COMMAND_BUFFERS)
        if failure == "code":
            raise subprocess.CalledProcessError(1, command, stderr="first\nunknown flag\n")
        if failure == "time":
            raise subprocess.TimeoutExpired(command, 180)
        lines = 'a warning\n{"measurement": "versions"}\n{"measurement": "exits", "form": "switch"}'
        return subprocess.CompletedProcess(command, 0, stdout=lines)

    monkeypatch.setattr(first_gpu.subprocess, "run", run)
    (line,) = first_gpu.with_flags(first_gpu.Config(), first_gpu.COMMAND_BUFFERS)
    assert line["xla_flags"] == first_gpu.COMMAND_BUFFERS
    if failure is None:
        assert line["form"] == "switch"
    else:
        assert ("unknown flag" if failure == "code" else "180 seconds") in line["failed"]


@pytest.mark.slow("runs every measurement from end to end")
def test_the_small_run_measures_everything_on_a_cpu(tmp_path):
    words = ["--small", "--accelerator=cpu", f"--output={tmp_path / 'lines.jsonl'}"]
    words.append(f"--compilation-cache={os.environ['JAX_COMPILATION_CACHE_DIR']}")
    run = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks/first_gpu.py"), *words],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env=environment(),
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
        "stage1",
        "encode_files",
        "transformers",
    ]
    # All but the kernel that only a GPU has.
    assert {line["decides"] for line in lines if "decides" in line} == RULES.keys() - {"attention"}


def test_an_unknown_measurement_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run_here("benchmarks/first_gpu.py", "--only=nonsense")
    assert done.returncode == 1
    assert done.stderr.startswith("error: nonsense is no measurement; there are attention, ")
