"""Processes for what the CPU has to measure while the device computes."""

import concurrent.futures
import functools
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from typing import TypeVar

from daisy_jax.data.prefetch import reader_threads

Value = TypeVar("Value")


class SideProcesses:
    """As many processes as there are threads that read, started when there is something to do."""

    def __init__(self):
        self.count = reader_threads()
        self._pool: concurrent.futures.ProcessPoolExecutor | None = None

    def begin(self, function: Callable[..., Value], *arguments: object) -> Callable[[], Value]:
        """Begins a call of a function that can be pickled, as its arguments can.

        Returns:
          What waits for the value. Where a process has died, of a signal to all of a job's or for
          want of memory, the function is called here.
        """
        here = functools.partial(function, *arguments)
        if self._pool is None:
            # Not by fork, which a process with JAX's threads does not survive.
            context = multiprocessing.get_context("spawn")
            self._pool = concurrent.futures.ProcessPoolExecutor(self.count, context, _begin)
        try:
            there = self._pool.submit(function, *arguments)
        except concurrent.futures.BrokenExecutor:
            self._pool = None
            return here

        def waited() -> Value:
            try:
                return there.result()
            except concurrent.futures.BrokenExecutor:
                return here()

        return waited


def _begin() -> None:
    """Of each process: it ends with the one that started it, which alone says something."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.getLogger("daisy_jax").addHandler(logging.NullHandler())
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()  # after a kill, too
        os._exit(1)
