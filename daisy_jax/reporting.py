"""What the library says while it works: progress, notes, and inputs that it leaves out.

Everything goes to the logger "daisy_jax". Python shows warnings of it on stderr; our commands show
notes and progress bars, too (`daisy_jax.console`). A program of one's own can do what it likes.
"""

import contextlib
import contextvars
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import NamedTuple, TypeVar

from daisy_jax.errors import InputError, said_of

logger = logging.getLogger("daisy_jax")
Item = TypeVar("Item")


class Progress(NamedTuple):
    """How far some work is; records carry it as `progress`."""

    key: object
    """The same in all records of one piece of work."""
    what: str
    done: int
    total: int | None
    text: str
    """What else is known, such as a loss."""
    ended: bool


def report_progress(progress: Progress, level: int = logging.DEBUG) -> None:
    """Says how far some work is: each item at the level DEBUG, a line that matters at INFO."""
    of = "" if progress.total is None else f"/{progress.total}"
    line = f"{progress.what} {progress.done}{of}  {progress.text}".rstrip()
    logger.log(level, "%s", line, extra={"progress": progress})


def followed(
    items: Iterable[Item],
    what: str,
    total: int | None = None,
    seconds: Callable[[Item], float] | None = None,
) -> Iterator[Item]:
    """The items themselves, with a report after each.

    Args:
      items: what is worked through.
      what: the work, in a word or two.
      total: how many there are, where `items` has no length.
      seconds: of audio in an item; the report then says how many pass in a second.
    """
    count = len(items) if total is None and isinstance(items, Sized) else total
    key, done, heard, start, speed = object(), 0, 0.0, time.perf_counter(), ""
    report_progress(Progress(key, what, done, count, speed, False))
    try:
        for item in items:
            yield item
            done += 1
            if seconds is not None:
                heard += seconds(item)
                speed = f"{heard / (time.perf_counter() - start):.0f} times real time"
            report_progress(Progress(key, what, done, count, speed, False))
    finally:
        report_progress(Progress(key, what, done, count, speed, True))


_strict = contextvars.ContextVar("strict", default=False)


@contextlib.contextmanager
def strictly(strict: bool = True) -> Iterator[None]:
    """What would be left out in this block is an InputError."""
    before = _strict.set(strict)
    try:
        yield
    finally:
        _strict.reset(before)


def is_strict() -> bool:
    """Whether this runs inside `strictly`; other threads and processes do not know it."""
    return _strict.get()


def leave_out(line: str) -> None:
    """Says in one line which input is left out and why; inside `strictly`, raises an InputError."""
    if _strict.get():
        raise InputError(line)
    logger.warning("%s", line, extra={"left_out": True})


def leave_out_item(item: str | os.PathLike[str], error: Exception) -> None:
    """Leaves out an item whose reader has raised `error`, whatever that is."""
    leave_out(said_of(item, error))


def printable(text: str) -> str:
    """The text on one line: what does not print, such as a line feed in a file's name, escaped."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


def as_table(rows: list[tuple[str, str]]) -> str:
    """A line for each name and text; what the texts hold cannot move the cursor or fake a line."""
    return "\n".join(f"{name:<13} {printable(text)}" for name, text in rows)
