"""Devices and processes: who holds which rows, where calls run, and how to keep a device busy.

A batch is split over all devices of all processes, everything else is on each. Sharding is JAX's
own: a jitted step computes the same sums over the whole batch, however many devices hold its rows.
"""

import collections
import functools
import glob
import hashlib
import itertools
import os
import platform
import re
import signal
import statistics
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree, Shaped

from daisy_jax.errors import InputError
from daisy_jax.reporting import logger

T = TypeVar("T")


def join_processes(processes: str) -> None:
    """Joins the processes of one training run; to be called before the first array exists.

    Args:
      processes: empty: there is only one. "auto": as Slurm, Open MPI, Kubernetes or a TPU pod says.
        "HOST:PORT,COUNT,INDEX": where process 0 listens, how many there are, and which this is.

    Raises:
      InputError: `processes` says something else, or the others cannot be reached.
    """
    if not processes:
        return
    parts = re.fullmatch(r"([^,\s]+:\d+),(\d+),(\d+)", processes)
    if processes != "auto" and (parts is None or int(parts[3]) >= int(parts[2])):
        raise InputError(
            f"processes is {processes!r}; it must be auto, or HOST:PORT,COUNT,INDEX with an index "
            "below the count, such as 10.0.0.1:9911,2,0"
        )
    logger.info("waiting for the other processes (%s)", processes)
    on_terminate = signal.getsignal(signal.SIGTERM)
    try:
        if parts is None:
            jax.distributed.initialize()
        else:
            jax.distributed.initialize(parts[1], int(parts[2]), int(parts[3]))
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"the processes could not be joined ({str(error).splitlines()[0]}); give "
            "HOST:PORT,COUNT,INDEX if no Slurm, MPI, Kubernetes or TPU pod starts them"
        ) from None
    signal.signal(signal.SIGTERM, on_terminate)  # which JAX takes away


def warn_of_unused_gpus(processes: str) -> None:
    """Says on stderr, once on each host, if NVIDIA GPUs stay idle; every process has to call it.

    With "auto" in `join_processes` JAX gives each process that Slurm or Open MPI starts one GPU, so
    that one process on a node of eight uses one of them.
    """
    if processes != "auto" or not _on_cuda():
        return
    name = platform.node()
    digest = hashlib.sha256(name.encode()).digest()[:3]
    mine = np.asarray([int.from_bytes(digest), jax.local_device_count()], np.int32)
    rows = multihost_utils.process_allgather(mine) if jax.process_count() > 1 else mine[None]
    visible = visible_gpus(os.environ.get("CUDA_VISIBLE_DEVICES"), glob.glob("/dev/nvidia[0-9]*"))
    idle = unused_gpus(visible, rows[:, 0].tolist(), rows[:, 1].tolist(), jax.process_index())
    if idle:
        logger.warning(
            "%d of the %d GPUs on %s stay unused; with --processes auto each task takes one GPU: "
            "start as many tasks on each node as it has GPUs",
            idle,
            visible,
            name,
        )


def _on_cuda() -> bool:
    try:
        return jax.devices("cuda")[0] == jax.devices()[0]
    except RuntimeError:
        return False


def visible_gpus(setting: str | None, device_files: Sequence[str]) -> int:
    """How many GPUs a process may see, by CUDA_VISIBLE_DEVICES (None: not set) and /dev/nvidia*."""
    if setting is None:
        return len(device_files)
    entries = (entry.strip() for entry in setting.split(","))
    # What CUDA does not know ends the list, as -1 and an empty entry do.
    return len(list(itertools.takewhile(lambda entry: entry not in ("", "-1"), entries)))


def unused_gpus(
    visible: int, hosts: Sequence[int | str], devices: Sequence[int], index: int
) -> int:
    """How many GPUs process `index` has to report as idle: its host's, if it is the first there.

    A process may see so many of them. `hosts` and `devices` say of each process where it runs and
    on how many it computes.
    """
    if hosts.index(hosts[index]) != index:
        return 0
    used = sum(count for host, count in zip(hosts, devices, strict=True) if host == hosts[index])
    return max(visible - used, 0)


def is_first() -> bool:
    """Whether this is the process that writes files and talks."""
    return jax.process_index() == 0


@functools.cache
def _mesh() -> Mesh:
    # By process, so that the rows of one process lie together.
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.asarray(devices), ("data",), axis_types=(AxisType.Auto,))


def replicated() -> NamedSharding:
    """The sharding of what is on every device."""
    return NamedSharding(_mesh(), PartitionSpec())


def by_row() -> NamedSharding:
    """The sharding of a batch."""
    return NamedSharding(_mesh(), PartitionSpec("data"))


def over_rows(
    function: Callable[..., T], arguments: int, *, checked: bool = True
) -> Callable[..., T]:
    """A function of a replicated tree and of `arguments` batches, on each device's own rows.

    Without it XLA may gather all rows on every device, where a computation follows the data.

    Args:
      function: of the tree and the batches.
      arguments: how many batches.
      checked: whether JAX keeps book of what differs between devices; it cannot where a primitive
        says nothing of it.
    """
    specs = (PartitionSpec(), *[PartitionSpec("data")] * arguments)
    rows = PartitionSpec("data")
    return jax.shard_map(function, mesh=_mesh(), in_specs=specs, out_specs=rows, check_vma=checked)


def replicate(tree: T) -> T:
    """Puts a pytree's arrays, the same in each process, on every device."""
    return jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(replicated(), np.asarray(leaf)), tree
    )


def local_rows(rows: int) -> slice:
    """The rows of a batch that this process reads.

    Raises:
      InputError: the batch cannot be split over the devices.
    """
    count = jax.device_count()
    if rows % count:
        raise InputError(
            f"a batch of {rows} cannot be split over {count} devices; make the batch size a "
            "multiple of them"
        )
    first = jax.process_index() * jax.local_device_count() * (rows // count)
    return slice(first, first + jax.local_device_count() * (rows // count))


def place(batch: PyTree[np.ndarray | np.generic]) -> PyTree[Shaped[Array, "..."]]:
    """Puts a batch on the devices: of arrays this process's `local_rows`, of scalars the same.

    Raises:
      InputError: the rows cannot be split over the devices.
    """

    def put(leaf: np.ndarray | np.generic) -> Array:
        shape = np.shape(leaf)
        if shape:
            local_rows(shape[0] * jax.process_count())  # says what is wrong, if anything is
        return jax.make_array_from_process_local_data(by_row() if shape else replicated(), leaf)

    return jax.tree.map(put, batch)


def any_process(asked: bool) -> bool:
    """Whether one of the processes says yes; waits for all of them."""
    if jax.process_count() == 1:
        return asked
    return bool(np.any(multihost_utils.process_allgather(np.asarray(asked))))


def require_same(text: str, what: str) -> None:
    """Compares a text between the processes.

    Raises:
      InputError: in all of them, if they do not have the same.
    """
    if jax.process_count() > 1:
        digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
        if not np.all(multihost_utils.process_allgather(digest) == digest[None]):
            raise InputError(f"the processes have not the same {what}; start all with the same")


LAG = 2
"""Steps after which the answer of all processes is looked at, so that nobody waits for it."""


def common_stop(asked: Callable[[], bool]) -> Callable[[], bool]:
    """Whether to stop, the same in each process: as soon as one of them was `asked` to.

    Returns a function to call once a step. With several processes, its answer is `LAG` steps late.
    """
    if jax.process_count() == 1:
        return asked
    any_of = jax.jit(jnp.any, out_shardings=replicated())
    answers: collections.deque[jax.Array] = collections.deque()

    def stop() -> bool:
        answers.append(any_of(place(np.full(jax.local_device_count(), asked()))))
        return len(answers) > LAG and bool(answers.popleft())

    return stop


def fetched_behind(started: Iterable[T]) -> Generator[T]:
    """Results on the host, each fetched only after the next computation has been started.

    JAX dispatches a computation and goes on. A loop that fetches each result at once makes the
    device wait while the host copies, cuts and stores it and reads the next batch.

    Args:
      started: dispatched computations as they are taken, each a pytree; what is no JAX array in it
        comes out as it is. Batches must be arrays of their own: the next one is filled while this
        one may still be read. Closed with this generator, if it is a generator too.

    Yields:
      The same in the same order, JAX arrays as numpy arrays. Two items at most are on the device.
      What an item's computation raises comes in its place; what starting one raises, behind the
      results of those before it.
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


def platform_of(tree: PyTree) -> str:
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


def medians(
    tasks: dict[str, Callable[[], object]], runs: int, rest: float = 0.0
) -> dict[str, float]:
    """Median seconds of each task, all tasks in turn after one warm-up.

    With `rest`, so many seconds lie between two tasks: some libraries' threads go on spinning.
    """
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for task in tasks.values():
        task()
    for _ in range(runs):
        for name, task in tasks.items():
            time.sleep(rest)
            start = time.perf_counter()
            task()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}
