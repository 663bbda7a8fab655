"""One command for everything: the plan, what is run again and what is not, and the page."""

import dataclasses
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import made_corpora
import numpy as np
import pytest
import sounds
from conftest import environment
from programs import run_here

from daisy_jax import InputError
from daisy_jax.study import step_runner
from daisy_jax.study.reproduction import RULES, SCALES, Input, Places, Step
from daisy_jax.study.reproduction_steps import all_steps, chosen
from daisy_jax.study.step_runner import Runner, only_one

ROOT = pathlib.Path(__file__).parents[1]


def places(folder, on_cpu=True):
    return Places(folder / "corpora", "hubert.pt", folder / "out", "cpu", on_cpu)


# ---- the plan ----


@pytest.mark.parametrize("name", SCALES)
@pytest.mark.parametrize("on_cpu", [True, False])
def test_every_step_finds_what_it_needs_before_it(tmp_path, name, on_cpu):
    steps = all_steps(places(tmp_path, on_cpu), SCALES[name])
    names = [step.name for step in steps]
    assert len(set(names)) == len(names)
    for number, step in enumerate(steps):
        assert set(step.after) <= set(names[:number])
        assert (ROOT / step.script).is_file()
    made = [path for step in steps for path in step.makes]
    assert len(set(made)) == len(made)
    heads = [step for step in steps if step.script == "train/downstream.py"]
    assert len(heads) == 5 * len(RULES)  # four tasks, and noisy speech


def test_options_of_every_step_exist(tmp_path):
    """The scripts themselves refuse unknown ones, with status 2, before they do anything."""
    seen = set()
    several = [
        step
        for scale in SCALES.values()
        for on_cpu in (True, False)
        for step in all_steps(places(tmp_path, on_cpu), scale)
    ]
    for step in several:
        named = {word.partition("=")[0] for word in step.arguments if word.startswith("--")}
        if (step.script, frozenset(named)) in seen:
            continue
        seen.add((step.script, frozenset(named)))
        task = ("--task=asr",) if step.script == "train/downstream.py" else ()
        helped = run_here(step.script, *task, "--help")
        for option in named:
            assert re.search(rf"{option}(?![\w-])", helped.stdout), (step.script, option)


def test_only_some_targets_need_only_some_steps(tmp_path):
    steps = all_steps(places(tmp_path), SCALES["paper"])
    names = [step.name for step in chosen(steps, ["figure4"])]
    assert names == ["convert", "verify", "branches", "figure4"]
    assert chosen(steps, ["figure3"])[-1].name == "table1"
    assert "noisy" not in {step.name for step in chosen(steps, ["table1", "figure2"])}
    assert chosen(steps, ["table1", "figure2", "figure4", "figure5"]) == steps
    assert chosen(steps, []) == steps


# ---- the runner, with steps of its own ----


@pytest.fixture
def scripts(tmp_path, monkeypatch):
    """A project with one script: it appends to a file what it is told, or fails."""
    (tmp_path / "it.py").write_text(
        "import os, pathlib, sys, time\n"
        "place, text, *extra = sys.argv[1:]\n"
        "print('working on', text, extra, flush=True)\n"
        "pathlib.Path(place + '.pid').write_text(str(os.getpid()))\n"
        "if text == 'fails': sys.exit(3)\n"
        "if text == 'waits' and not pathlib.Path(place + '.go').exists(): time.sleep(60)\n"
        "open(place, 'a').write(text)\n"
    )
    monkeypatch.setattr(step_runner, "ROOT", tmp_path)
    return tmp_path


def step_of(folder, name, *after, text="x", run=None):
    makes = folder / "out" / name
    return Step(name, "it.py", (str(makes), text), (makes,), after, run=run)


def test_what_is_done_is_not_run_again_and_what_fails_stops_its_own(scripts):
    (scripts / "out").mkdir()
    steps = [
        step_of(scripts, "a"),
        step_of(scripts, "b", "a", text="fails"),
        step_of(scripts, "c", "b"),
        step_of(scripts, "d", "a"),
    ]
    said = []
    runner = Runner(scripts / "out", said.append)
    outcome = {"a": "done", "b": "failed", "c": "left out", "d": "done"}
    assert runner.run_all(steps) == outcome
    assert any("ended with status 3; its lines are in b.log" in line for line in said)
    assert "working on fails" in (scripts / "out" / "steps" / "b.log").read_text()
    again = Runner(scripts / "out", said.append).run_all(steps)
    assert again == outcome | {"a": "done before", "d": "done before"}
    assert (scripts / "out" / "a").read_text() == "x"


def test_what_was_made_of_something_that_is_made_again_is_made_again(scripts):
    (scripts / "out").mkdir()
    steps = [step_of(scripts, "a"), step_of(scripts, "b", "a")]
    runner = Runner(scripts / "out", lambda line: None)
    runner.run_all(steps)
    (scripts / "out" / "a").unlink()
    assert runner.run_all(steps) == {"a": "done", "b": "done"}
    assert (scripts / "out" / "b").read_text() == "xx"


def test_a_step_that_was_killed_behind_its_work_counts_if_it_cannot_be_run_again(scripts):
    (scripts / "out").mkdir()
    step = step_of(scripts, "a")
    runner = Runner(scripts / "out", lambda line: None)
    runner.run(step)
    path = scripts / "out" / "steps" / "a.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"finished": 0.0}))
    whole = dataclasses.replace(step, whole=True)
    assert runner.run_all([whole]) == {"a": "done before"}
    assert runner.run_all([step]) == {"a": "done"}


def test_another_command_is_refused(scripts):
    (scripts / "out").mkdir()
    runner = Runner(scripts / "out", lambda line: None)
    runner.run_all([step_of(scripts, "a")])
    with pytest.raises(InputError, match=r"a was begun as .* x' and is .* y' now"):
        runner.run_all([step_of(scripts, "a", text="y")])


def test_a_run_with_a_checkpoint_is_resumed(scripts):
    run = scripts / "out" / "run"
    (run / "checkpoints" / "100").mkdir(parents=True)
    said = []
    Runner(scripts / "out", said.append).run_all([step_of(scripts, "a", run=run)])
    assert any("['--resume']" in line for line in said)


def test_two_at_once_are_kept_apart(tmp_path):
    with only_one(tmp_path), pytest.raises(InputError, match="another reproduction runs there"):
        only_one(tmp_path).__enter__()
    with only_one(tmp_path):
        pass


KILLED = """
import pathlib, sys
from daisy_jax.study import step_runner
from daisy_jax.study.reproduction import Step
from daisy_jax.study.step_runner import Runner, only_one
folder = pathlib.Path(sys.argv[1])
step_runner.ROOT = folder
made = folder / "out" / "a"
step = Step("a", "it.py", (str(made), "waits"), (made,))
with only_one(folder / "out") as lock:
    print(Runner(folder / "out", lambda line: print(line, flush=True), (lock,)).run_all([step]))
"""


@pytest.mark.slow("kills a process")
@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_the_lock_is_kept_by_a_command_that_outlives_its_runner(scripts):
    words = [sys.executable, "-c", KILLED, str(scripts)]
    first = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while "working on" not in first.stdout.readline():
        pass
    first.send_signal(signal.SIGKILL)
    first.wait()
    second = subprocess.run(words, capture_output=True, text=True, check=False)
    assert "another reproduction runs there" in second.stderr
    os.kill(int((scripts / "out" / "a.pid").read_text()), signal.SIGKILL)
    (scripts / "out" / "a.go").touch()
    for _ in range(50):
        third = subprocess.run(words, capture_output=True, text=True, check=False)
        if "another reproduction" not in third.stderr:
            break
        time.sleep(0.1)
    assert "{'a': 'done'}" in third.stdout
    assert (scripts / "out" / "a").read_text() == "waits"


# ---- the program ----


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpora")
    for part, speakers in (("train-clean-100", 2), ("dev-clean", 1), ("test-clean", 1)):
        made_corpora.librispeech(folder / "LibriSpeech", part, speakers, 2)
    rng = np.random.default_rng(0)
    for kind in ("noise", "music", "speech"):
        for number in range(3):
            sounds.write(
                folder / "MUSAN" / kind / f"{number}.wav", 0.1 * rng.standard_normal(9_000)
            )
    return folder


def test_a_step_without_its_input_is_named_and_stops_its_own(scripts):
    (scripts / "out").mkdir()
    first, other = step_of(scripts, "a"), step_of(scripts, "c")
    first = dataclasses.replace(first, inputs=(Input(scripts / "corpus", "somewhere"),))
    said = []
    outcome = Runner(scripts / "out", said.append).run_all(
        [first, step_of(scripts, "b", "a"), other]
    )
    assert outcome == {"a": "missing", "b": "left out", "c": "done"}
    assert f"a: {scripts / 'corpus'} is missing (somewhere)" in said


def test_what_the_papers_corpora_lack_is_named(tmp_path):
    (tmp_path / "corpora" / "LibriSpeech" / "train-clean-360").mkdir(parents=True)
    steps = all_steps(places(tmp_path), SCALES["paper"])
    missing = {
        str(each.path.relative_to(tmp_path / "corpora"))
        for step in steps
        for each in step.inputs
        if each.path.is_relative_to(tmp_path / "corpora") and not each.path.exists()
    }
    assert {
        "LibriSpeech/train-clean-100",
        "LibriSpeech/train-other-500",
        "LibriSpeech/dev-clean",
        "LibriSpeech/test-clean",
        "VoxCeleb1/iden_split.txt",
        "noisy-vctk-16k/noisy_testset_wav",
        "Libri2Mix/wav16k/min/dev",
        "MUSAN/speech",
    } <= missing
    assert "LibriSpeech/train-clean-360" not in missing


def test_the_checkpoint_is_asked_for(tmp_path, corpora):
    arguments = ["--corpora", corpora, "--output", tmp_path / "out", "--accelerator=cpu"]
    done = run_here("eval/reproduce.py", *arguments)
    assert done.returncode == 1
    assert "--checkpoint is needed" in done.stderr


@pytest.mark.slow("trains branches and measures noise, and is killed in between")
@pytest.mark.skipif(os.name != "posix", reason="kills processes")
def test_a_reproduction_goes_on_after_a_kill(corpora, tmp_path):
    words = [sys.executable, str(ROOT / "eval" / "reproduce.py"), "--scale=tiny", "--steps=2"]
    words += ["--corpora", str(corpora), "--output", str(tmp_path), "--only", "figure4"]
    words += ["--accelerator=cpu"]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    first = subprocess.Popen(words, env=environment(), start_new_session=True, **options)
    for line in first.stdout:
        if "figure4: python eval/noise.py" in line:
            break
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    branches = tmp_path / "branches" / "model" / "model.safetensors"
    before = branches.stat().st_mtime_ns
    second = subprocess.run(words, env=environment(), check=False, **options)
    assert second.returncode == 0, second.stderr
    assert branches.stat().st_mtime_ns == before
    page = (tmp_path / "report.html").read_text()
    assert "A stand-in" in page
    assert page.count("data:image/png") >= 4
    assert "python eval/noise.py" in page
    record = json.loads((tmp_path / "steps" / "branches.json").read_text())
    assert record["command"].startswith("python train/branches.py --model=")
    assert record["finished"] > 0
    assert record["command"] in page
    assert "train/branches.py" not in second.stdout
