"""docs/training.md: its commands are understood, its defaults are those of the script."""

import pathlib
import re
import runpy
import shlex
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.replace("\\\n", "").splitlines()]
SCRIPTS = [command for command in COMMANDS if command.startswith("python ")]


@pytest.fixture(scope="module")
def help_of():
    """From a script to its --help."""
    known: dict[str, str] = {}

    def text(script: str) -> str:
        if script not in known:
            command = [sys.executable, ROOT / script, "--help"]
            known[script] = subprocess.run(command, capture_output=True, text=True).stdout
        return known[script]

    return text


@pytest.mark.parametrize("command", SCRIPTS)
def test_flags_exist(command, help_of):
    script, *words = shlex.split(command)[1:]
    options = [word.split("=")[0] for word in words if word.startswith("--")]
    assert all(option in help_of(script) for option in options)


def test_inline_commands_and_files_exist(help_of):
    for script, options in re.findall(r"`python ([\w/]+\.py)([^`]*)`", TEXT):
        assert (ROOT / script).is_file()
        assert all(option in help_of(script) for option in re.findall(r"--[\w-]+", options))
    for option in re.findall(r"`(--[\w-]+)[^`]*`", TEXT):
        scripts = ("train/branches.py", "train/labels.py")
        elsewhere = ("--head-from", "--ratio", "--budget", "--help")
        assert option in elsewhere or any(option in help_of(script) for script in scripts), option
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", TEXT):
        assert (ROOT / "docs" / link).exists(), link


def test_defaults_are_those_that_the_text_promises():
    config = runpy.run_path(str(ROOT / "train" / "branches.py"))["Config"]()
    paper = (config.steps, config.batch_size, config.learning_rate, config.preset)
    assert paper == (88_000, 32, 5e-5, "paper")
    assert (config.model, config.data) == ("runs/hubert-base", "corpora/LibriSpeech")
    assert (config.output, config.crop_seconds * 16_000) == ("runs/branches", 250_000)


def test_without_anything_there_the_script_says_what_it_wants(tmp_path):
    command = [sys.executable, ROOT / "train" / "branches.py", "--accelerator=cpu"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == (
        "error: runs/hubert-base: no config.json there; give a folder written by daisy-jax convert "
        "or training\n"
    )
