"""What ends a program: the error that a user can mend, and signals, which may have to wait."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


class InputError(ValueError):
    """Something that the caller gave is wrong; the message is one line for a person to read.

    It says what came, what was wanted and what to do. Command lines print it without a traceback.
    """


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
