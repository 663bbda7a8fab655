"""Tasks timed side by side."""

import statistics
import time
from collections.abc import Callable


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
