"""`daisy-jax check`: right numbers pass, and whatever is broken on purpose is found."""

import dataclasses
import functools
import json
import re

import jax
import jax.numpy as jnp
import make_check_references
import numpy as np
import pytest
from conftest import random_model as drawn_model
from made_models import SMALL as MADE
from programs import run_here

import daisy_jax
from daisy_jax.commands import check, device_checks, form_checks
from daisy_jax.commands.device_checks import SMALL, Answer
from daisy_jax.model import attention, branches, feature_encoder, forms, slices, transformer
from daisy_jax.tasks import lstm

EVERYTHING = pytest.mark.slow("compiles every check of three models")
WHOLE = pytest.mark.slow("compiles whole models, several times")
FULL_WIDTH = pytest.mark.slow("a model of full width, in float64 numpy")


@pytest.fixture(scope="module")
def small():
    return device_checks.random_model(SMALL)


@pytest.fixture
def afresh():
    """As in users' programs; all is traced again, so that what is patched counts, and only here."""
    jax.clear_caches()
    with jax.numpy_dtype_promotion("standard"):
        yield
    jax.clear_caches()


@pytest.mark.parametrize("name", ["small", pytest.param("base", marks=FULL_WIDTH)])
def test_stored_numbers_are_those_of_float64(name):
    stored = device_checks.stored_references()[name]
    made = make_check_references.make(make_check_references.CONFIGS[name])
    for field, values in made.items():
        np.testing.assert_allclose(getattr(stored, field), values, rtol=1e-6, atol=1e-7)


# ---- every question, answered rightly ----


def questions(model, name="small"):
    """The answers about one model, and those about the forms, by name."""
    asked = dict(check.questions(model))
    return {n: ask for n, ask in asked.items() if n.startswith((f"{name},", "forms"))}


@pytest.fixture
def tiny_base(monkeypatch):
    """A small model in the place of the Base-sized one."""
    stored = device_checks.stored_references()["small"]
    both = {"small": stored, "base": stored}
    monkeypatch.setattr(check, "stored_references", lambda: both)
    monkeypatch.setattr(check, "BASE", SMALL)


@pytest.fixture
def timeless(monkeypatch):
    """No time is taken."""
    always = Answer(True, "not measured", 0.5, 1.0)
    monkeypatch.setattr(check, "leaving_early_saves_time", lambda model: always)


@EVERYTHING
def test_all_is_right_here(tiny_base, timeless, tmp_path, afresh):
    model = drawn_model(MADE)
    daisy_jax.save(model, tmp_path / "model")
    output = tmp_path / "check.json"
    words = ["--accelerator=cpu", "--model", tmp_path / "model", "--output", output]
    done = run_here("daisy-jax", "check", *words)
    assert done.returncode == 0, done.stdout
    assert done.stdout.endswith("\nall is right\n")
    lines = [line for line in done.stdout.splitlines() if line.startswith("right  ")]
    found = json.loads(output.read_text(encoding="utf-8"))
    assert found["wrong"] == 0
    assert len(found["checks"]) == len(lines) == 6 + 4 + 5 + 3 + 3
    for row, line in zip(found["checks"], lines, strict=True):
        assert line == f"right  {row['check']}: {row['said']}"
        assert row["found"] <= row["most"]
    assert found["jax"] == jax.__version__
    assert found["platform"] == "cpu"
    (exits,) = re.findall(r"small, exits: layers ([\d ]+);", done.stdout)
    assert len(set(exits.split())) >= 3


def test_a_model_without_branches_is_checked_at_full_depth(small):
    bare = small.replace(branches=None)
    answer = device_checks.exits_do_not_depend_on_the_batch(bare)
    assert answer.right
    assert answer.said.startswith("layers 4 4 4 4;")


def test_a_model_that_is_not_there_is_one_line(tmp_path):
    done = run_here("daisy-jax", "check", "--accelerator=cpu", "--model", tmp_path / "gone")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "right" not in done.stdout


# ---- what is broken is found ----


def rounded(x):
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)


def without_mask(projected, frame_mask):
    return attention._average(
        *jnp.moveaxis(projected, (2, 3), (0, 2)), jnp.ones_like(frame_mask)[:, None, None, :]
    ).swapaxes(1, 2)


def one_part(tapped, kernel):
    return jnp.einsum("btd,dc->btc", tapped, kernel.astype(jnp.bfloat16)).astype(jnp.float32)


def one_tap_late(original):
    return lambda x, kernel, groups: jnp.roll(original(x, kernel, groups), 1, axis=1)


def forgetful(original):
    """Rounds what it is given where both directions go together."""

    def run(projected, kernels, masks, unroll=1):
        together = unroll > 1
        projected = tuple(map(rounded, projected)) if together else projected
        return original(projected, kernels, masks, unroll)

    return run


def too_small(original):
    return lambda batch, frames: original(batch, frames)[:1]


BROKEN = {
    "forms of attention": (attention, "_at_once", lambda original: without_mask),
    "forms of branch": (branches, "_product_of_three_parts", lambda original: one_part),
    "forms of positional_convolution": (
        *(transformer, "grouped_convolution_by_blocks"),
        one_tap_late,
    ),
    "forms of lstm": (lstm, "recurrences", forgetful),
    "forms of layer": (slices, "switch_sizes", too_small),
    "small, float32": (feature_encoder, "EPSILON", lambda original: 1e-3),
    "small, gradients": (
        *(branches, "frame_mean"),
        lambda original: lambda values, mask: 1.001 * original(values, mask),
    ),
    "small, half precision": (
        *(attention, "_average"),
        lambda original: (
            lambda query, *rest, **mask: original(
                query * (1.5 if query.dtype == jnp.bfloat16 else 1), *rest, **mask
            )
        ),
    ),
    "small, exits": (
        *(feature_encoder, "masked_moments"),
        lambda original: lambda x, mask: original(x, jnp.ones_like(mask)),
    ),
}
"""For each question what is broken, how, and so what must be found."""


QUICK = ["forms of branch", "forms of lstm", "small, gradients"]
QUESTIONS = [name if name in QUICK else pytest.param(name, marks=WHOLE) for name in BROKEN]


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_broken_kernel_is_found(monkeypatch, afresh, question, tiny_base):
    module, name, broken = BROKEN[question]
    monkeypatch.setattr(module, name, broken(getattr(module, name)))
    answer = dict(check.questions(None))[question]()
    assert not answer.right, answer.said


@WHOLE
def test_another_form_of_the_front_end_is_compared(monkeypatch, afresh, tiny_base):
    """Its other form belongs to GPUs only, so that one is played."""
    row = {"cpu": "one_dimensional", forms.ELSEWHERE: "two_dimensional"}
    monkeypatch.setitem(forms.FORMS, "front_end", row)
    ask = dict(check.questions(None))["forms of front_end"]
    assert ask().right
    original = jax.lax.conv_general_dilated

    def convolved(x, *rest, **options):
        return original(x, *rest, **options) * (1.1 if x.ndim == 4 else 1)

    monkeypatch.setattr(jax.lax, "conv_general_dilated", convolved)
    assert not ask().right


def test_runs_that_differ_are_found(monkeypatch, small):
    original, calls = daisy_jax.encode, []

    def unsteady(*arguments, **options):
        calls.append(len(calls))
        out = original(*arguments, **options)
        return out._replace(last_hidden=out.last_hidden + np.float32(1e-3 * len(calls)))

    monkeypatch.setattr(daisy_jax, "encode", unsteady)
    answer = device_checks.exits_do_not_depend_on_the_batch(small)
    assert not answer.right
    assert answer.said.startswith("two runs of one program differ by ")


@pytest.mark.parametrize(
    ("layer_costs", "right"), [(1.0, True), (0.2, True), (0.0, False), (-0.1, False)]
)
def test_time_that_is_not_saved_is_found(monkeypatch, small, layer_costs, right):
    """On a clock that is played: what a layer costs, beside a front end of 1 s."""
    now = [0.0]

    def run(model, waveform, allowed):
        now[0] += 1 + layer_costs * (1 + np.flatnonzero(allowed)[0])
        return jnp.zeros(1)

    monkeypatch.setattr(device_checks.jax, "jit", lambda function: run)
    monkeypatch.setattr(device_checks.time, "perf_counter", lambda: now[0])
    answer = device_checks.leaving_early_saves_time(small)
    assert answer.right == right
    assert answer.found == pytest.approx((1 + layer_costs) / (1 + 4 * layer_costs))


def test_time_is_really_taken_with_and_without_branches(small):
    for model in (small, small.replace(branches=None)):
        assert device_checks.leaving_early_saves_time(model).found > 0
    flat = drawn_model(dataclasses.replace(SMALL, num_layers=3))
    answer = device_checks.leaving_early_saves_time(flat)
    assert answer.right
    assert answer.said == "not asked of a model of 3 layers"


def test_not_a_number_is_wrong(monkeypatch, small):
    assert not device_checks.at_most(float("nan"), 1.0, "").right
    assert np.isnan(device_checks.difference(jnp.asarray([np.nan, 1]), jnp.asarray([1.0, 1])))
    original = daisy_jax.encode

    def spoilt(field, row):
        def encode(model, waveform, *rest, **options):
            out = original(model, waveform, *rest, **options)
            array = np.array(getattr(out, field))
            array[row % len(array)] = np.nan
            return out._replace(**{field: jnp.asarray(array)})

        return encode

    monkeypatch.setattr(daisy_jax, "encode", spoilt("entropy", 0))
    wanted = device_checks.stored_references()["small"]
    assert not device_checks.float32_is_exact(small, wanted).right
    monkeypatch.setattr(daisy_jax, "encode", spoilt("last_hidden", 1))
    assert not device_checks.exits_do_not_depend_on_the_batch(small.replace(branches=None)).right


def test_a_later_form_that_is_not_a_number_is_wrong(monkeypatch, small):
    answers = iter([1.0, np.nan, 1.0])
    step = (lambda: jnp.float32(next(answers)), [], 1e-4)
    monkeypatch.setitem(form_checks.STEPS, "branch", lambda config: step)
    assert not form_checks.forms_agree("branch", SMALL).right


def test_a_device_that_computes_nothing_is_said_for_every_check(monkeypatch, afresh, tmp_path):
    def fails(*arguments, **options):
        raise RuntimeError("DNN library initialization failed")

    monkeypatch.setattr(daisy_jax, "encode", fails)
    monkeypatch.setattr(form_checks.jax, "jit", fails)
    monkeypatch.setattr(check, "random_model", fails)
    output = tmp_path / "check.json"
    done = run_here("daisy-jax", "check", "--accelerator=cpu", "--output", output)
    assert done.returncode == 1
    rows = json.loads(output.read_text(encoding="utf-8"))["checks"]
    assert done.stdout.count("WRONG") == len(rows) == 6 + 4 + 5
    assert all("DNN library" in row["said"] and "Traceback" in row["error"] for row in rows)


def test_a_check_that_fails_is_wrong_and_stops_no_other(monkeypatch, tmp_path):
    def fails():
        raise RuntimeError("the kernel\nwas not built")

    fine = functools.partial(Answer, True, "fine", 0.0, 1.0)
    monkeypatch.setattr(check, "questions", lambda own: [("first", fails), ("second", fine)])
    output = tmp_path / "check.json"
    done = run_here("daisy-jax", "check", "--accelerator=cpu", "--output", output)
    assert done.returncode == 1
    assert done.stdout.endswith(
        "WRONG  first: RuntimeError: the kernel was not built\nright  second: fine\n"
        "1 of 2 checks found something wrong\n"
    )
    rows = json.loads(output.read_text(encoding="utf-8"))["checks"]
    assert [row["right"] for row in rows] == [False, True]
    assert rows[0]["found"] is None


def test_exits_are_spread_where_entropies_are_clearly_apart():
    entropy = np.array([[3, 2, 1, 0.5], [3, 3, 3, 2], [3, 2, 2.5, 1], [3, 2, 1, 1]], np.float32)
    thresholds = device_checks.spread(entropy)
    below = entropy < thresholds[:, None]
    assert (np.argmax(below, axis=1) + 1).tolist() == [1, 1, 2, 3]
