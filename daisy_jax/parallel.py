"""Data parallelism: a batch is split over all devices of all processes, everything else is on each.

Sharding is JAX's own: a jitted step computes the same sums over the whole batch, however many
devices hold its rows.
"""

import collections
import functools
import hashlib
import re
import signal
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from daisy_jax.errors import InputError


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
    print(f"waiting for the other processes ({place})", file=sys.stderr)
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
