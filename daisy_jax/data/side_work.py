"""What the CPU does while the device computes: batches are read ahead, and results are measured."""

import concurrent.futures
import functools
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Mapping
from typing import TypeAlias, TypeVar

import numpy as np

from daisy_jax.reporting import is_strict, strictly

Value = TypeVar("Value")
Leaf: TypeAlias = np.ndarray | np.generic
Batch: TypeAlias = Mapping[str, Leaf | Mapping[str, Leaf]]
"""Arrays by name, or such dictionaries; all of one batch have its rows first, scalars none."""

AHEAD = 4
"""Batches that are read before they are wanted, at least."""


def reader_threads() -> int:
    """Threads that read and decode sound: half of the cores that this process may use, 2 to 8.

    The other half computes, or feeds the accelerator; each thread has a batch or file in memory.
    """
    told = hasattr(os, "sched_getaffinity")  # not by macOS and Windows
    cores = len(os.sched_getaffinity(0)) if told else os.cpu_count() or 1
    return min(max(cores // 2, 2), 8)


def batches(read: Callable[[int], Batch], first: int, stop: int, workers: int) -> Generator[Batch]:
    """The batches `read(first)` to `read(stop - 1)`, in this order whatever the workers.

    Args:
      read: from a batch's number to numpy arrays; a function of the number alone.
      first: number of the first batch.
      stop: one more than the last.
      workers: processes that read; 0: threads of this process.

    Source: Grain's MapDataset, in which an element is a whole batch, so that the position in the
    data is one integer and no worker holds a state.
    """
    import absl.flags
    import grain

    # Threads and processes do not inherit whether inputs may be left out.
    reading = functools.partial(_read, read, is_strict())
    source = grain.MapDataset.range(first, stop).map(reading)
    threads = 1 if workers else reader_threads()
    # Nothing that computes shall wait for a file, and reading is uneven: a file that has to be
    # resampled takes many times as long as one of 16 kHz. So each thread reads a batch of its own,
    # and two more are ready: one to be taken next, and one while a slow batch, whose turn it is,
    # keeps the others waiting. (Grain counts all of them.) Further ones would only take memory:
    # where reading is slower on average than computing, nothing that lies ready helps for long.
    ahead = max(AHEAD, threads + 2)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    dataset = source.to_iter_dataset(options)
    if workers:
        # Grain's processes ask for absl's flags, which only absl's own programs parse.
        absl.flags.FLAGS.mark_as_parsed()
        processes = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
        dataset = dataset.mp_prefetch(processes, worker_init_fn=_ignore_interrupt)
    iterator = iter(dataset)
    try:
        yield from iterator
    finally:
        iterator.close()


def _read(read: Callable[[int], Batch], strict: bool, number: int) -> Batch:
    with strictly(strict):
        return read(number)


def _ignore_interrupt(index: int, count: int) -> None:
    """Ctrl-C reaches every process of a terminal; the training process decides when to end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


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
            self._pool = concurrent.futures.ProcessPoolExecutor(self.count, context, _begin_process)
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


def _begin_process() -> None:
    """Of each process: it ends with the one that started it, which alone says something."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.getLogger("daisy_jax").addHandler(logging.NullHandler())
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()  # after a kill, too
        os._exit(1)
