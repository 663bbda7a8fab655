"""The guides in docs: their commands are understood, their defaults are those of the scripts."""

import ast
import inspect
import pkgutil
import re
import runpy
import shlex
import subprocess
import sys

import pytest
from programs import ROOT, options_of, run_here

import daisy_jax
from daisy_jax.tasks.presets import TASKS, read_preset

GUIDES = {
    "training.md": (
        *("train/branches.py", "train/labels.py", "train/pretrain.py", "train/align.py"),
        "eval/probe.py",
    ),
    "tutorial.md": ("daisy-jax encode", "daisy-jax check", "train/units.py"),
    "guarantee.md": (
        "daisy-jax encode",
        "daisy-jax calibrate",
        "eval/downstream.py",
        "eval/guarantee.py",
    ),
    "noise.md": ("train/noisy.py", "eval/noise.py", "train/downstream.py", "eval/downstream.py"),
    "corpora.md": (
        *("daisy-jax extract", "daisy-jax encode", "train/units.py"),
        "train/downstream.py",
    ),
    "downstream.md": (
        *("train/downstream.py", "eval/downstream.py", "eval/report.py"),
        "eval/reproduce.py",
    ),
}
"""Each with the scripts whose options its text names."""
TEXTS = {guide: (ROOT / "docs" / guide).read_text(encoding="utf-8") for guide in GUIDES}
COMMANDS = [
    line.strip()
    for text in TEXTS.values()
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    for line in block.replace("\\\n", "").splitlines()
]
STARTS = ("python ", "daisy-jax encode ", "daisy-jax extract ")
OF_OURS = [command for command in COMMANDS if command.startswith(STARTS)]
SCRIPTS = [command for command in OF_OURS if not command.startswith("python -c ")]
ELSEWHERE = ("--head-from", "--ratio", "--budget", "--help")


@pytest.mark.parametrize("command", SCRIPTS)
def test_flags_exist(command):
    first, script, *words = shlex.split(command)
    script = f"{first} {script}" if first == "daisy-jax" else script
    options = [word.split("=")[0] for word in words if word.startswith("--")]
    assert set(options) <= options_of(script)


def advised_commands():
    """(file, script, options) of every command line in a message or docstring of ours."""
    pattern = r"(daisy-jax \w+|(?:train|eval|conversions)/\w+\.py)((?: --[\w-]+(?:[ =]\w+)?)+)"
    for folder in ("daisy_jax", "train", "eval", "conversions"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    for script, options in re.findall(pattern, " ".join(node.value.split())):
                        yield path.name, script, set(re.findall(r"--[\w-]+", options))


def test_options_in_messages_and_docstrings_exist():
    advised = list(advised_commands())
    assert len(advised) > 10
    unknown = [(file, script, options - options_of(script)) for file, script, options in advised]
    assert not [entry for entry in unknown if entry[2]]


@pytest.mark.parametrize("guide", GUIDES)
def test_inline_commands_and_files_exist(guide):
    text = TEXTS[guide]
    for script, options in re.findall(r"`python ([\w/]+\.py)([^`]*)`", text):
        assert (ROOT / script).is_file()
        assert set(re.findall(r"--[\w-]+", options)) <= options_of(script)
    for option in re.findall(r"`(--[\w-]+)[^`]*`", text):
        known = (option in options_of(script) for script in GUIDES[guide])
        assert option in ELSEWHERE or any(known), option
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert (ROOT / "docs" / link).exists(), link


def test_the_presets_are_those_of_the_guide():
    rows = re.findall(r"^\| (\w+) \|(.*)\|(.*)\|$", TEXTS["downstream.md"], re.MULTILINE)
    found = {task: cells for task, *cells in rows if task in TASKS and "steps" in cells[0]}
    assert found.keys() == TASKS.keys() - {"ss"}  # which says that it is as se
    for task, (superb, mini) in found.items():
        for text, preset in ((superb, "superb"), (mini, "minisuperb")):
            settings = read_preset(task, preset)
            assert f"{settings.steps:,} steps".replace(",", " ") in text
            rate = f"{settings.learning_rate:.0e}".replace("e-0", "e-")
            assert rate in text, (task, preset)


def test_defaults_are_those_that_the_text_promises():
    config = runpy.run_path(str(ROOT / "train" / "branches.py"))["Config"]()
    paper = (config.steps, config.batch_size, config.learning_rate, config.preset)
    assert paper == (88_000, 32, 5e-5, "paper")
    assert (config.model, config.data) == ("runs/hubert-base", "corpora/LibriSpeech")
    assert (config.output, config.crop_seconds * 16_000) == ("runs/branches", 250_000)


def test_without_anything_there_the_script_says_what_it_wants(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run_here("train/branches.py", "--accelerator=cpu")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: runs/hubert-base: no such file or folder, and the hub")
    assert "; give a folder written by daisy-jax convert or training, a checkpoint," in done.stderr


def documented():
    """Names below a directive of docs/reference.md."""
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    return re.findall(r"^\.\. auto\w+:: ([\w.]+)$", text, re.MULTILINE)


def test_the_reference_has_every_public_name():
    wanted = {f"daisy_jax.{name}" for name in daisy_jax.__all__}
    assert wanted - set(documented()) == set()
    assert len(documented()) == len(set(documented()))


@pytest.mark.parametrize("name", documented())
def test_what_the_reference_names_is_there_and_says_what_it_is(name):
    thing = pkgutil.resolve_name(name)
    if not isinstance(thing, int):
        assert inspect.getdoc(thing)


@pytest.mark.slow("runs the tutorial from end to end")
def test_the_tutorial_runs(tmp_path, monkeypatch):
    (tmp_path / "daisy_jax" / "samples").mkdir(parents=True)
    for clip in ("reading-1.flac", "reading-3.flac"):
        (tmp_path / "daisy_jax" / "samples" / clip).symlink_to(ROOT / "daisy_jax/samples" / clip)
    monkeypatch.chdir(tmp_path)
    text = TEXTS["tutorial.md"]
    for kind, block in re.findall(r"```(bash|python)\n(.*?)```", text, re.DOTALL):
        if kind == "python":
            exec(block, {})
        for line in block.splitlines() if kind == "bash" else ():
            program, *words = shlex.split(line)
            if program == "pip":  # the tests' environment has it
                continue
            if program == "daisy-jax":
                done = run_here(program, *words)
            elif program == "python" and words[0] != "-c":
                done = run_here(*words)
            else:
                words = [sys.executable, *words] if program == "python" else ["sh", "-c", line]
                done = subprocess.run(words, capture_output=True, text=True, check=False)
            assert done.returncode == 0, (line, done.stdout, done.stderr)
    lines = (tmp_path / "units.txt").read_text(encoding="utf-8").splitlines()
    clips = list((tmp_path / "recordings").iterdir())
    assert len(lines) == len(list((tmp_path / "features").iterdir())) == len(clips)
    assert (tmp_path / "page.html").read_text(encoding="utf-8").count("<audio") == len(clips)
