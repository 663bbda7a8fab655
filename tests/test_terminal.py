"""How commands end: errors in one line, missing extras by name, signals that wait."""

import itertools
import os
import signal
import types

import pytest

from daisy_jax.console.terminal import as_table, progress_bar, run_command
from daisy_jax.signals import delayed_signals


@pytest.fixture(autouse=True)
def handlers():
    """Signal handlers are put back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
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

    signal.signal(signal.SIGINT, signal.default_int_handler)
    code, _ = ended(command, capsys)
    assert code == (130 if number == signal.SIGINT else 143)
    assert done == ["work"]


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
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes stderr for a terminal
    monkeypatch.setenv("COLUMNS", "200")
    clock = itertools.count().__next__
    monkeypatch.setattr(
        "daisy_jax.console.terminal.time", types.SimpleNamespace(perf_counter=clock)
    )
    bar = progress_bar("encoding", 3, lambda seconds: seconds)
    assert list(bar(iter([10.0, 20.0, 30.0]))) == [10.0, 20.0, 30.0]
    assert "20 times real time" in capsys.readouterr().err
