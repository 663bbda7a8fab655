"""The README's code blocks run, and its commands exist."""

import re
import runpy
import shlex

import pytest
from programs import COMMAND, ROOT, options_of, run_here

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.split("  # ")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
]
SCRIPTS = [command for command in COMMANDS if command.startswith("python ")]
SAMPLES = [
    command for command in COMMANDS if command.startswith("daisy-jax") and "samples" in command
]


@pytest.mark.parametrize("number", range(README.count("```python")))
def test_python_block_runs(number, tmp_path, monkeypatch, capsys):
    block = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[number]
    script = tmp_path / "block.py"
    script.write_text(block, encoding="utf-8")
    monkeypatch.chdir(ROOT)
    runpy.run_path(str(script))
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("command", SAMPLES)
def test_command_on_the_samples_runs(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = shlex.split(command)
    files = [str(path) for word in words for path in sorted(ROOT.glob(word)) if "*" in word]
    words = [word for word in words[1:] if "*" not in word] + files
    done = run_here(COMMAND, *words)
    assert done.returncode == 0, done.stderr
    assert "of the multiply-adds saved" in done.stdout


@pytest.mark.parametrize("command", SCRIPTS)
def test_flags_of_script_exist(command):
    script, *words = shlex.split(command)[1:]
    given = {word.split("=")[0] for word in words if word.startswith("--")}
    assert given <= options_of(script)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make ")])
def test_make_target_exists(command):
    target = command.split()[1]
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_every_link_points_to_a_file():
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / link).exists(), link
