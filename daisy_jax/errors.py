"""What ends a program: the error that a user can mend, and signals, which may have to wait."""

import contextlib
import errno
import os
import pathlib
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator


class InputError(ValueError):
    """Something that the caller gave is wrong; the message is one line for a person to read.

    It says what came, what was wanted and what to do. Command lines print it without a traceback.
    """


def require_file(path: str | os.PathLike[str]) -> None:
    """Raises an InputError for what is no regular file: reading a pipe or a device may never end.

    What is not there is left to whoever opens it.
    """
    with contextlib.suppress(OSError):
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise InputError(f"{os.fspath(path)}: is a folder; give a file")
        if not stat.S_ISREG(mode):
            raise InputError(f"{os.fspath(path)}: is a pipe or a device; give a file")


NO_ROOM = errno.ENOSPC, errno.EDQUOT, errno.EFBIG
"""What the system says when a disk is full, or what a person or a process may have of it."""


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error is Python's or XLA's for too little memory."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def said_of(item: str | os.PathLike[str], error: Exception) -> str:
    """One line about an item that could not be read, whatever went wrong in its reader.

    Whoever goes through many items catches every Exception of one of them, so that it costs that
    item alone.
    """
    if isinstance(error, InputError):  # which names it
        return str(error)
    name = os.fspath(item)
    if is_out_of_memory(error):
        return f"{name}: not enough memory to read it; split it into shorter files"
    if isinstance(error, OSError):
        return said_of_system(error, name)
    text = " ".join(str(error).split())
    return f"{name}: cannot be read ({type(error).__name__}: {text})"


def said_of_system(error: OSError, name: str | None = None) -> str:
    """One line about a file that the system could not read or write.

    Args:
      error: what the system said.
      name: of the file, where the error names none.
    """
    text = error.strerror or " ".join(str(error).split())
    file = name if error.filename is None else os.fsdecode(error.filename)
    line = text if file is None else f"{file}: {text}"
    if error.errno in NO_ROOM:
        line += "; make room and start again (what was finished before is kept)"
    if error.errno == errno.EISDIR:
        line += "; remove this folder, or give another place"
    return line


def end_at_once_on_interrupts() -> None:
    """In programs of ours, Ctrl-C ends the process as any signal does, until `run_command` runs.

    While Python imports, KeyboardInterrupt would come out of whatever is being imported, with a
    traceback or worse. Other programs that import the package are left alone.
    """
    main = getattr(sys.modules.get("__main__"), "__file__", None) or ""
    ours = pathlib.Path(__file__).resolve().parents[1]
    named = any(pathlib.PurePath(name).stem == "daisy-jax" for name in (main, sys.argv[0]))
    if not named and (not main or pathlib.Path(main).resolve().parents[1:2] != (ours,)):
        return
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminated(BaseException):
    """SIGTERM has come: unwind, so that what is done can be kept."""


@contextlib.contextmanager
def delayed_signals() -> Iterator[Callable[[], bool]]:
    """Holds SIGTERM and Ctrl-C back, for work that must not stop half way.

    Yields a function that tells whether one has come; all take effect when the block ends. What is
    ignored anyway, as Ctrl-C is by a shell script's background jobs, stays ignored.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # which alone gets signals
        yield lambda: False
        return
    handlers = {
        number: signal.signal(number, lambda number, frame: received.append(number))
        for number in (signal.SIGTERM, signal.SIGINT)
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    for number in received:
        signal.raise_signal(number)
