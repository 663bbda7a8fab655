"""What every command has in common: one-line errors, exit statuses, presets of options."""

import argparse
import contextlib
import io
import os
import platform
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import NoReturn, TypeVar, cast

from daisy_jax.console.reports import shown_reports
from daisy_jax.errors import (
    InputError,
    Terminated,
    is_out_of_memory,
    said_of_system,
)
from daisy_jax.reporting import printable

Config = TypeVar("Config")
EXTRAS = {
    **dict.fromkeys(("grain", "librosa", "sklearn", "optax", "orbax", "pyarrow"), "train"),
    **dict.fromkeys(("torch", "transformers"), "convert"),
    **dict.fromkeys(("array_record", "tensorflow_datasets"), "tfds"),
    **dict.fromkeys(("flashlight",), "decode"),
    **dict.fromkeys(("jiwer", "markdown_it", "pystoi"), "eval"),
    **dict.fromkeys(("matplotlib",), "plots"),
    **dict.fromkeys(("tensorboardX",), "tensorboard"),
    **dict.fromkeys(("ray",), "ray"),
    **dict.fromkeys(("pocketsphinx", "praatio"), "align"),
}
"""Modules that commands import where they use them, and the extra that installs each."""


def say(text: object = "", *, to_stderr: bool = False, flush: bool = False) -> None:
    """Prints lines, in which nothing can move the cursor, change colours or ring a bell.

    A name that may hold a line feed must be `printable` before it stands in such a line.
    """
    parts = re.split("([\n\t])", str(text))
    safe = "".join(part if part in ("\n", "\t") else printable(part) for part in parts)
    print(safe, file=sys.stderr if to_stderr else sys.stdout, flush=flush)


@contextlib.contextmanager
def shown_after(text: str) -> Iterator[None]:
    """Prints a result after the block that writes it, even if the block fails.

    A closed stdout does not lose the files, and a full disk does not lose the text.
    """
    try:
        yield
    finally:
        say(text, flush=True)


SIGNALS: dict[int, type[BaseException]] = {
    signal.SIGTERM: Terminated,
    signal.SIGINT: KeyboardInterrupt,
}
"""What ends a command, and what each raises."""
AGAIN = 0.02
"""Seconds until a signal that was swallowed comes again."""


@contextlib.contextmanager
def _signals_raise() -> Iterator[list[int]]:
    """Signals raise what belongs to them, wherever the program is; yields those that have come.

    Python and JAX run callbacks (`__del__`, when garbage is collected) out of which nothing can be
    raised. There the signal comes again a moment later.
    """
    received: list[int] = []

    def raise_it(number: int, frame: object) -> NoReturn:
        received.append(number)
        raise SIGNALS[number]

    def say_ignored(ignored: "sys.UnraisableHookArgs") -> None:
        numbers = [n for n, kind in SIGNALS.items() if issubclass(ignored.exc_type, kind)]
        if not numbers:
            return before(ignored)
        again = threading.Timer(AGAIN, _interrupt_main_thread, numbers)
        again.daemon = True
        again.start()

    before, sys.unraisablehook = sys.unraisablehook, say_ignored
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN or number == signal.SIGTERM:
            signal.signal(number, raise_it)
    try:
        yield received
    finally:
        sys.unraisablehook = before


def _interrupt_main_thread(number: int) -> None:
    if hasattr(signal, "pthread_kill"):  # which also ends what it waits for
        signal.pthread_kill(threading.main_thread().ident or 0, number)
    else:
        signal.raise_signal(number)


def run_command(command: Callable[[], int | None]) -> NoReturn:
    """Runs a command and exits: 0 on success, 1 after an error, 130 and 143 after a signal.

    With --version anywhere among its options a program says its version, and does nothing else.
    """
    with _signals_raise() as received:
        _run(command, received)


def _run(command: Callable[[], int | None], received: list[int]) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that it cannot print must not end a run
            stream.reconfigure(errors="backslashreplace")
    try:
        if "--version" in sys.argv[1:]:
            daisy_jax, jax = (sys.modules[name].__version__ for name in ("daisy_jax", "jax"))
            say(f"daisy-jax {daisy_jax}, jax {jax}, Python {platform.python_version()}")
            sys.exit(0)
        with shown_reports():
            status = command() or 0
        sys.exit(status)
    except BrokenPipeError:  # the reader of stdout, such as head, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except ModuleNotFoundError as error:
        extra = EXTRAS.get(str(error.name).partition(".")[0])
        if extra is None:
            raise
        install = f"pip install 'daisy-jax[{extra}]'"
        say(f"error: {error.name} is needed and not installed; {install}", to_stderr=True)
        sys.exit(1)
    except (InputError, OSError, FloatingPointError) as error:
        text = said_of_system(error) if isinstance(error, OSError) else str(error)
        say(f"error: {printable(text)}", to_stderr=True)
        sys.exit(1)
    except Exception as error:
        if received:  # such as an ImportError of a module that was being loaded
            sys.exit(128 + received[0])
        if not is_out_of_memory(error):
            raise
        said = " ".join(str(error).split())[:200] or type(error).__name__
        say(
            f"error: {sys.argv[0]}: not enough memory ({said}); give smaller batches or shorter "
            "recordings (what was finished before is kept)",
            to_stderr=True,
        )
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except Terminated:
        sys.exit(143)


def given_options(*names: str) -> list[str | None]:
    """Values of some options on the command line, before it is parsed; None for what is not there.

    For options that other options' defaults depend on.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in names:
        parser.add_argument(f"--{name}")
    options = parser.parse_known_args()[0]
    return [getattr(options, name) for name in names]


def parse_config(
    kind: type[Config], presets: Mapping[str, Mapping[str, object]], description: str | None
) -> Config:
    """The configuration on the command line: what is not given there comes from its preset.

    Args:
      kind: a dataclass with the field `preset`.
      presets: fields of each preset, by its name; the first is the default.
      description: of the command.
    """
    import tyro

    (name,) = given_options("preset")
    if name is None or name not in presets:  # if one was given, it is refused below
        name = next(iter(presets))
    preset = cast(Callable[..., Config], kind)(preset=name, **presets[name])
    return tyro.cli(kind, description=description, default=preset)
