"""What every command has in common: one-line errors, exit statuses, progress bars."""

import argparse
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any, NoReturn

from daisy_jax.errors import InputError
from daisy_jax.signals import Terminated

EXTRAS = {
    **dict.fromkeys(("grain", "librosa", "sklearn", "optax", "orbax", "pyarrow"), "train"),
    **dict.fromkeys(("torch", "transformers"), "convert"),
    **dict.fromkeys(("array_record", "tensorflow_datasets"), "tfds"),
    **dict.fromkeys(("flashlight",), "decode"),
    **dict.fromkeys(("jiwer", "markdown_it", "pystoi"), "eval"),
    **dict.fromkeys(("matplotlib",), "plots"),
    **dict.fromkeys(("tensorboardX",), "tensorboard"),
    **dict.fromkeys(("ray",), "ray"),
}
"""Modules that commands import where they use them, and the extra that installs each."""


def run_command(command: Callable[[], int | None]) -> NoReturn:
    """Runs a command and exits: 0 on success, 1 after an error, 130 and 143 after a signal."""

    def terminate(number: int, frame: object) -> NoReturn:
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)
    try:
        sys.exit(command() or 0)
    except BrokenPipeError:  # the reader of stdout, such as head, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except ModuleNotFoundError as error:
        extra = EXTRAS.get(str(error.name).partition(".")[0])
        if extra is None:
            raise
        install = f"pip install 'daisy-jax[{extra}]'"
        print(f"error: {error.name} is needed and not installed; {install}", file=sys.stderr)
        sys.exit(1)
    except (InputError, OSError, FloatingPointError) as error:
        text = str(error)
        if isinstance(error, OSError) and error.filename is not None and error.strerror:
            text = f"{os.fsdecode(error.filename)}: {error.strerror}"  # without the number
        print(f"error: {printable(text)}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except Terminated:
        sys.exit(143)


def as_table(rows: list[tuple[str, str]]) -> str:
    """A line for each name and text; what the texts hold cannot move the cursor or fake a line."""
    return "\n".join(f"{name:<13} {printable(text)}" for name, text in rows)


def given_options(*names: str) -> list[str | None]:
    """Values of some options on the command line, before it is parsed; None for what is not there.

    For options that other options' defaults depend on.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in names:
        parser.add_argument(f"--{name}")
    found = parser.parse_known_args()[0]
    return [getattr(found, name) for name in names]


def parse_config(kind: type, presets: dict[str, dict[str, Any]], description: str | None) -> Any:
    """The configuration on the command line: what is not given there comes from its preset.

    Args:
      kind: a dataclass with the field `preset`.
      presets: fields of each preset, by its name; the first is the default.
      description: of the command.
    """
    import tyro

    (name,) = given_options("preset")
    if name not in presets:  # if one was given, it is refused below
        name = next(iter(presets))
    return tyro.cli(kind, description=description, default=kind(preset=name, **presets[name]))


def printable(text: str) -> str:
    """The text on one line: what does not print, such as a line feed in a file's name, escaped."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


def leave_out() -> Callable[[str], None]:
    """A function that says on stderr, once for each line, what had to be left out and why."""
    said: set[str] = set()

    def say(line: str) -> None:
        if line not in said:
            said.add(line)
            print(f"left out ({len(said)} so far): {printable(line)}", file=sys.stderr)

    return say


def progress_bar(
    description: str,
    total: int | None = None,
    audio_seconds: Callable[[Any], float] | None = None,
) -> Callable[[Iterable[Any]], Iterator[Any]]:
    """A progress bar on stderr; the result wraps an iterable while it is worked through.

    `total` is for iterables without a length. `audio_seconds` gives an item's duration; the bar
    then shows how many seconds of audio pass in a second. Lines printed meanwhile appear above it.
    """
    from rich.console import Console
    from rich.progress import Progress, TextColumn

    # soft_wrap leaves long lines whole; what goes to a file must not pass the bar's console.
    console = Console(stderr=True, soft_wrap=True)
    bar = Progress(
        *Progress.get_default_columns(),
        TextColumn("{task.fields[speed]}"),
        console=console,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
        disable=not console.is_terminal,
    )

    def follow(items: Iterable[Any]) -> Iterator[Any]:
        count = len(items) if total is None and isinstance(items, Sized) else total
        heard, start, speed = 0.0, time.perf_counter(), ""
        with bar:
            task = bar.add_task(description, total=count, speed=speed)
            for item in items:
                yield item
                if audio_seconds is not None:
                    heard += audio_seconds(item)
                    speed = f"{heard / (time.perf_counter() - start):.0f} times real time"
                bar.update(task, advance=1, speed=speed)

    return follow


@contextlib.contextmanager
def training_bar(
    steps: int, first: int, visible: bool = True
) -> Iterator[Callable[[int, str], None]]:
    """A progress bar on stderr; yields a function that takes the finished step and what to show.

    Where stderr is no terminal, each call prints a line instead. Nothing if it is not `visible`.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    if not visible:
        yield lambda done, text: None
        return
    console = Console(stderr=True)
    columns = (BarColumn(20), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=steps, completed=first)

        def show(done: int, text: str) -> None:
            bar.update(task, completed=done, description=text)
            if not console.is_terminal:
                print(f"step {done}/{steps}  {text}", file=sys.stderr)

        yield show
