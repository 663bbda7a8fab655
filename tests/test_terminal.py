"""How commands end: errors in one line, missing extras by name, signals that wait."""

import ast
import gc
import itertools
import os
import pathlib
import signal
import subprocess
import sys
import time
import types

import jax
import pytest

from daisy_jax import reporting
from daisy_jax.console.reports import shown_reports
from daisy_jax.console.terminal import run_command
from daisy_jax.data.side_work import batches
from daisy_jax.errors import delayed_signals, end_at_once_on_interrupts
from daisy_jax.reporting import as_table, followed, leave_out, strictly


@pytest.fixture(autouse=True)
def handlers():
    """Signal handlers are put back; Ctrl-C is not ignored, as it is in a background job."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which processes inherit
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def ended(command, capsys):
    with pytest.raises(SystemExit) as end:
        run_command(command)
    return end.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "extra"), [("sklearn.cluster", "train"), ("transformers", "convert")]
)
def test_a_missing_extra_is_named(capsys, module, extra):
    def command():
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    line = f"error: {module} is needed and not installed; pip install 'daisy-jax[{extra}]'\n"
    assert ended(command, capsys) == (1, line)


def test_other_missing_modules_are_faults_of_ours():
    def command():
        raise ModuleNotFoundError("No module named 'nonsense'", name="nonsense")

    with pytest.raises(ModuleNotFoundError, match="nonsense"):
        run_command(command)


def test_system_errors_name_the_file_and_no_number(tmp_path, capsys):
    code, error = ended(lambda: (tmp_path / "gone").read_text() and None, capsys)
    assert (code, error) == (1, f"error: {tmp_path / 'gone'}: No such file or directory\n")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nMore"),
    ],
)
def test_too_little_memory_is_one_line_with_what_to_do(capsys, error):
    def command():
        raise error

    code, said = ended(command, capsys)
    assert code == 1
    assert said.startswith("error: ")
    assert "not enough memory" in said
    assert "give smaller batches" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_wait_for_the_end_of_the_work(number, capsys):
    done = []

    def command():
        with delayed_signals() as received:
            assert not received()
            os.kill(os.getpid(), number)
            assert received()
            done.append("work")
        done.append("more")

    code, _ = ended(command, capsys)
    assert code == (130 if number == signal.SIGINT else 143)
    assert done == ["work"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_a_callback_swallows_comes_again(number, capsys):
    """As JAX's own callback does when garbage is collected."""
    done = []

    def swallow(phase, info):
        if not done:
            done.append("collected")
            signal.raise_signal(number)

    def command():
        gc.callbacks.append(swallow)
        try:
            gc.collect()
            time.sleep(5)
            done.append("went on")
        finally:
            gc.callbacks.remove(swallow)

    code, said = ended(command, capsys)
    assert (code, said) == (130 if number == signal.SIGINT else 143, "")
    assert done == ["collected"]


def test_what_an_interrupted_import_raises_is_no_error(capsys):
    def command():
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("an error while initializing the extension") from None

    assert ended(command, capsys) == (130, "")


def test_what_is_ignored_stays_ignored_and_does_not_hide_the_other(capsys):
    """As in a shell script's background jobs, which ignore Ctrl-C."""

    def command():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with delayed_signals() as received:
            os.kill(os.getpid(), signal.SIGINT)
            assert not received()
            os.kill(os.getpid(), signal.SIGTERM)
            assert received()

    assert ended(command, capsys)[0] == 143


def test_tables_keep_to_their_lines():
    assert as_table([("name", "a\nb\x1b[2J")]) == r"name          a\nb\x1b[2J"


def test_the_progress_bar_tells_how_much_audio_passes_in_a_second(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    clock = itertools.count().__next__
    monkeypatch.setattr(reporting, "time", types.SimpleNamespace(perf_counter=clock))
    with shown_reports():
        items = followed(iter([10.0, 20.0, 30.0]), "encoding", 3, lambda seconds: seconds)
        assert list(items) == [10.0, 20.0, 30.0]
    said = capsys.readouterr().err
    assert "encoding" in said
    assert "3/3" in said
    assert "20 times real time" in said


def test_bars_may_stand_inside_one_another(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    with shown_reports():
        for _ in followed(range(2), "outer"):
            for _ in followed(range(3), "inner"):
                leave_out("a.wav: not readable")
    said = capsys.readouterr().err
    assert "outer" in said
    assert "inner" in said
    assert said.count("left out (1 so far): a.wav: not readable") == 1


def test_without_a_terminal_only_lines_that_matter_are_printed(capsys):
    with shown_reports():
        assert list(followed(range(3), "encoding")) == [0, 1, 2]
        for name in ("a\nb", "a\nb", "c"):
            leave_out(f"{name}: not readable")
        reporting.logger.info("a note")
        reporting.logger.warning("a fault")
    assert capsys.readouterr().err.splitlines() == [
        r"left out (1 so far): a\nb: not readable",
        "left out (2 so far): c: not readable",
        "a note",
        "warning: a fault",
    ]


def test_the_library_alone_warns_and_shows_no_progress(caplog):
    with caplog.at_level("INFO", logger="daisy_jax"):
        assert list(followed(range(3), "encoding")) == [0, 1, 2]
        leave_out("a.wav: not readable")
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "a.wav: not readable")
    ]


READERS = [0, pytest.param(1, marks=pytest.mark.slow("starts processes that read"))]


@pytest.mark.parametrize("workers", READERS)
def test_strictness_reaches_the_readers(workers):
    def read(number):
        leave_out(f"{number}: broken")
        return {}

    assert list(batches(read, 0, 2, workers)) == [{}, {}]
    with strictly(), pytest.raises(Exception, match="0: broken"):
        next(batches(read, 0, 2, workers))
    assert list(batches(read, 0, 2, workers)) == [{}, {}]


@pytest.mark.slow("starts a process and stops it while it imports")
@pytest.mark.skipif(os.name != "posix", reason="sends a signal to a process")
@pytest.mark.parametrize("wait", [0.1, 0.4, 0.7])
def test_ctrl_c_in_the_first_second_leaves_no_traceback(tmp_path, wait):
    program = "import daisy_jax.errors\nprint('started', flush=True)\nimport time, flax, torch\n"
    (tmp_path / "daisy-jax").write_text(program + "time.sleep(9)\n")
    words = [sys.executable, str(tmp_path / "daisy-jax"), "encode", "--help"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "started\n"
    time.sleep(wait)
    process.send_signal(signal.SIGINT)
    assert process.communicate()[1] == ""
    assert process.returncode == -signal.SIGINT


ROOT = pathlib.Path(__file__).parents[1]
SCRIPTS = [
    path
    for folder in ("train", "eval", "conversions", "benchmarks")
    for path in sorted((ROOT / folder).glob("*.py"))
    if "run_command(" in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_the_package_is_what_a_script_imports_first(script):
    """Whatever is imported before it would be interrupted with a traceback."""
    tree = ast.parse(script.read_text(encoding="utf-8"))
    first = next(node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom))
    name = first.module if isinstance(first, ast.ImportFrom) else first.names[0].name
    assert name.partition(".")[0] == "daisy_jax"


@pytest.mark.slow("starts processes and stops them while they import")
@pytest.mark.skipif(os.name != "posix", reason="sends a signal to a process")
@pytest.mark.parametrize("script", ["eval/speed.py", "conversions/verify.py", "train/pretrain.py"])
def test_ctrl_c_in_the_first_second_of_a_script(script):
    for wait in (0.2, 0.5, 0.8):
        process = subprocess.Popen(
            [sys.executable, script, "--help"],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        time.sleep(wait)
        process.send_signal(signal.SIGINT)
        assert process.communicate()[1] == ""
        assert process.returncode in (0, 130, -signal.SIGINT)


def test_programs_of_others_keep_their_handler(monkeypatch):
    end_at_once_on_interrupts()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    for name in ("/somewhere/bin/daisy-jax", "C:/x/daisy-jax.exe"):
        monkeypatch.setattr(sys, "argv", [name])
        end_at_once_on_interrupts()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
        signal.signal(signal.SIGINT, signal.default_int_handler)


def test_what_our_programs_catch_is_caught_again(capsys):
    signal.signal(signal.SIGINT, signal.SIG_DFL)

    def command():
        signal.raise_signal(signal.SIGINT)

    assert ended(command, capsys)[0] == 130
