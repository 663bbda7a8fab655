"""Data parallelism: a batch is split over all devices of all processes, everything else is on each.

Sharding is JAX's own: a jitted step computes the same sums over the whole batch, however many
devices hold its rows.
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
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from daisy_jax.errors import InputError
from daisy_jax.reporting import logger


def join_processes(place: str) -> None:
    """Joins the processes of one training run; to be called before the first array exists.

    Args:
      place: empty: there is only one. "auto": as Slurm, Open MPI, Kubernetes or a TPU pod says.
        "HOST:PORT,COUNT,INDEX": where process 0 listens, how many there are, and which this is.

    Raises:
      InputError: `place` says something else, or the others cannot be reached.
    """
    if not place:
        return
    parts = re.fullmatch(r"([^,\s]+:\d+),(\d+),(\d+)", place)
    if place != "auto" and (parts is None or int(parts[3]) >= int(parts[2])):
        raise InputError(
            f"processes is {place!r}; it must be auto, or HOST:PORT,COUNT,INDEX with an index below"
            " the count, such as 10.0.0.1:9911,2,0"
        )
    logger.info("waiting for the other processes (%s)", place)
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


def warn_of_unused_gpus(place: str) -> None:
    """Says on stderr, once on each host, if NVIDIA GPUs stay idle; every process has to call it.

    With "auto" JAX gives each process that Slurm or Open MPI starts one GPU, so that one process on
    a node of eight uses one of them.

    Args:
      place: as for `join_processes`.
    """
    if place != "auto" or not _on_cuda():
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
    """How many GPUs of NVIDIA a process may see.

    Args:
      setting: of CUDA_VISIBLE_DEVICES; None: it is not set, and all are visible.
      device_files: /dev/nvidia0 and so on.
    """
    if setting is None:
        return len(device_files)
    entries = (entry.strip() for entry in setting.split(","))
    # What CUDA does not know ends the list, as -1 and an empty entry do.
    return len(list(itertools.takewhile(lambda entry: entry not in ("", "-1"), entries)))


def unused_gpus(
    visible: int, hosts: Sequence[int | str], devices: Sequence[int], index: int
) -> int:
    """How many GPUs a process has to report as idle: those of its host, if it is the first there.

    Args:
      visible: how many it may see.
      hosts: of each process, where it runs.
      devices: of each process, how many it computes on.
      index: which process it is.
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


def over_rows(function: Callable, arguments: int) -> Callable:
    """A function of a replicated tree and of `arguments` batches, on each device's own rows.

    Without it XLA may gather all rows on every device, where a computation follows the data.
    """
    specs = (PartitionSpec(), *[PartitionSpec("data")] * arguments)
    return jax.shard_map(function, mesh=_mesh(), in_specs=specs, out_specs=PartitionSpec("data"))


def replicate(tree: Any) -> Any:
    """Puts arrays, the same in each process, on every device."""
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


def place(batch: Any) -> Any:
    """Puts a batch on the devices: of arrays this process's `local_rows`, of scalars the same.

    Raises:
      InputError: the rows cannot be split over the devices.
    """

    def put(leaf: np.ndarray) -> jax.Array:
        if leaf.ndim:
            local_rows(len(leaf) * jax.process_count())  # says what is wrong, if anything is
        return jax.make_array_from_process_local_data(by_row() if leaf.ndim else replicated(), leaf)

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
    """Whether to stop, the same in each process: as soon as one of them was asked to.

    Args:
      asked: whether this process was.

    Returns:
      A function to call once a step. With several processes, stopping comes `LAG` steps later.
    """
    if jax.process_count() == 1:
        return asked
    any_of = jax.jit(jnp.any, out_shardings=replicated())
    answers: collections.deque[jax.Array] = collections.deque()

    def stop() -> bool:
        answers.append(any_of(place(np.full(jax.local_device_count(), asked()))))
        return len(answers) > LAG and bool(answers.popleft())

    return stop
