"""Runs the project's programs: in this process, or as processes of their own."""

import contextlib
import functools
import io
import pathlib
import re
import runpy
import signal
import subprocess
import sys

import jax

ROOT = pathlib.Path(__file__).parents[1]
COMMAND = "daisy-jax"
"""The installed command, among the names of scripts below ROOT."""


def words_of(program: str, *arguments) -> list[str]:
    """What starts a script, such as "train/branches.py", or the installed `daisy-jax`."""
    if program == COMMAND:
        start = [str(pathlib.Path(sys.executable).with_name(COMMAND))]
    else:
        start = [sys.executable, str(ROOT / program)]
    return [*start, *map(str, arguments)]


def run_here(program: str, *arguments, encoding: str = "utf-8") -> subprocess.CompletedProcess:
    """Runs a program in this process, which has imported and compiled much of what it needs.

    Sees what Python prints, in a console's `encoding`, and no more. Whatever is about the process
    itself (signals, devices, memory, a status that a shell would see) belongs into a process of its
    own.
    """
    words = [program if program == COMMAND else str(ROOT / program), *map(str, arguments)]
    before = sys.argv, sys.path.copy(), signal.getsignal(signal.SIGTERM)
    # As a terminal's: they have an encoding, which --help asks for.
    output, errors = (io.TextIOWrapper(io.BytesIO(), encoding, how) for how in (None, "replace"))
    status = 0
    try:
        sys.argv = words
        with (
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(errors),
            jax.numpy_dtype_promotion("standard"),  # as in users' programs
            jax.numpy_rank_promotion("allow"),
        ):
            if program == COMMAND:
                from daisy_jax.commands.main import main

                main()
            else:
                sys.path.insert(0, str((ROOT / program).parent))
                runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        status = end.code or 0
    finally:
        sys.argv, sys.path[:] = before[:2]
        signal.signal(signal.SIGTERM, before[2])
    printed = []
    for stream in (output, errors):
        stream.flush()
        printed.append(stream.buffer.getvalue().decode(encoding))
    return subprocess.CompletedProcess(words, status, *printed)


def run(program: str, *arguments, **settings) -> subprocess.CompletedProcess:
    """Runs a program as a process of its own, with one device and compiled as the tests are."""
    from conftest import environment

    settings = {"env": environment(), "timeout": 300} | settings
    return subprocess.run(
        words_of(program, *arguments), capture_output=True, text=True, check=False, **settings
    )


@functools.cache
def options_of(program: str) -> frozenset[str]:
    """The options that a program's --help lists, as against those that its texts mention.

    Args:
      program: a script, or `daisy-jax` with the name of a command behind it.
    """
    done = run_here(*program.split(), "--help")
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^│ (?:-\w, )?(--[\w-]+(?:, --[\w-]+)*)", done.stdout, re.MULTILINE)
    return frozenset(option for row in rows for option in row.split(", "))
