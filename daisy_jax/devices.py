"""Devices: which one runs a call, how to keep it busy, and how long it takes.

JAX dispatches a computation and goes on. A loop that fetches each result at once makes the device
wait while the host copies, cuts and stores it and reads the next batch.
"""

import collections
import itertools
import statistics
import time
from collections.abc import Callable, Generator, Iterable
from typing import Any, TypeVar

import jax

T = TypeVar("T")


def fetched_behind(started: Iterable[T]) -> Generator[T]:
    """Results on the host, each fetched only after the next computation has been started.

    Args:
      started: dispatched computations as they are taken, each a pytree; what is no JAX array in it
        comes out as it is. Batches must be arrays of their own: the next one is filled while this
        one may still be read. Closed with this generator, if it is a generator too.

    Yields:
      The same in the same order, JAX arrays as numpy arrays. Two items at most are on the device.

    Raises:
      Exception: what an item's computation raises, in its place; what starting one raises, behind
        the results of those before it.
    """
    source = iter(started)
    try:
        running = collections.deque(itertools.islice(source, 1))
        while running:
            failure = None
            try:
                running.extend(itertools.islice(source, 1))
            except Exception as error:  # what was computed before it is not lost
                failure = error
            yield jax.device_get(running.popleft())
            if failure is not None:
                raise failure
    finally:
        if isinstance(source, Generator):
            source.close()


def platform_of(tree: Any) -> str:
    """The platform that functions of these arrays run on, as JAX names it: "cpu", "gpu", "tpu".

    Arrays that were put on a device decide; else the default device, which is the one that a caller
    has set or the first of the default platform.
    """
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array) and leaf.committed:
            return next(iter(leaf.devices())).platform
    settings: Any = jax.config
    default = settings.jax_default_device
    if default is None:
        return jax.default_backend()
    return default if isinstance(default, str) else default.platform


def medians(tasks: dict[str, Callable[[], object]], runs: int) -> dict[str, float]:
    """Median seconds of each task, all tasks in turn after one warm-up."""
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for task in tasks.values():
        task()
    for _ in range(runs):
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}
