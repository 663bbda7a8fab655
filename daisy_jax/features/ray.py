"""Shards of a list of files, encoded by Ray's workers.

Ray Data hands out the numbers of the shards that are missing to a pool of actors, each of which
holds the model. As a shard is whole or not there, a killed worker's shard is handed out again, and
a killed driver goes on where it was when it is started again.
"""

import logging
import os
import signal
import socket
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from daisy_jax.accelerator import Accelerator, use_accelerator, use_compilation_cache
from daisy_jax.audio import Cut
from daisy_jax.checkpoints import load
from daisy_jax.data.file_list import read_list
from daisy_jax.errors import InputError, said_of_system
from daisy_jax.features.contents import Content
from daisy_jax.features.extract import Extractor, encode_shard
from daisy_jax.reporting import logger

CONNECT_SECONDS = 10
HTTP2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
"""What a client of gRPC, and so of Ray, says first: RFC 9113, sections 3.4 and 6.5."""
START_AGAIN = 10
"""Times in a row that workers may die while they load the model."""


class Job(NamedTuple):
    """What a worker has to know; it reads everything else itself. Paths are absolute."""

    file_list: str
    model: str
    """A folder that every worker sees; empty: the packaged model."""
    content: Content
    cut: Cut | None
    """How long recordings are cut into windows."""
    shards: int
    """How many there are."""
    output: str
    npy: bool
    max_seconds: float
    accelerator: Accelerator
    compilation_cache: str
    retry: bool


class Worker:
    """An actor: loads the model once, then encodes shard after shard."""

    def __init__(self, job: Job):
        use_accelerator(job.accelerator)
        if job.compilation_cache:
            use_compilation_cache(job.compilation_cache)
        self._job, self._files = job, read_list(job.file_list)
        self._extractor = Extractor(load(job.model or None), job.content, cut=job.cut)

    def __call__(
        self, batch: dict[str, Int[np.ndarray, " shards"]]
    ) -> dict[str, Int[np.ndarray, " shards"] | list[str]]:
        """Encodes the shards of a batch; "error" says why one could not be, or is empty."""
        return {"shard": batch["shard"], "error": [self._encode(int(n)) for n in batch["shard"]]}

    def _encode(self, number: int) -> str:
        """Why a shard could not be encoded; empty if it is there."""
        job = self._job
        options = {"npy": job.npy, "max_seconds": job.max_seconds, "retry": job.retry}
        try:
            encode_shard(self._extractor, self._files, number, job.shards, job.output, **options)
            return ""
        except OSError as error:
            return said_of_system(error)
        except InputError as error:
            return str(error)


def join_ray(accelerator: Accelerator, workers: int) -> None:
    """Joins the cluster that RAY_ADDRESS names, or starts one on this machine.

    Raises:
      InputError: nothing answers at that address, or no cluster does, or there are fewer GPUs than
        workers that need one.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = os.environ.get("RAY_ADDRESS", "")
    if address:
        _reach(address)
    import ray

    on_terminate = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        where = f"RAY_ADDRESS={address}" if address else "Ray on this machine"
        raise InputError(f"{where}: cannot be joined ({reason})") from None
    signal.signal(signal.SIGTERM, on_terminate)  # which Ray takes away
    gpus = int(ray.cluster_resources().get("GPU", 0))
    if accelerator == "gpu" and gpus < workers:
        raise InputError(
            f"{workers} workers with a GPU each, and Ray has {gpus} GPUs; lower --workers, or pass "
            "--accelerator=cpu"
        )


def _reach(address: str) -> None:
    """Says where Ray will be looked for; Ray itself would try for minutes without a word."""
    host, _, port = address.rpartition("/")[2].rpartition(":")
    if not host or not port.isdecimal():  # such as "auto", which Ray finds by itself
        return
    logger.info("joining Ray at %s, which has %d s to answer", address, CONNECT_SECONDS)
    try:
        place = host.strip("[]"), int(port)
        with socket.create_connection(place, CONNECT_SECONDS) as stream:
            if os.environ.get("RAY_USE_TLS", "0") == "0":
                stream.sendall(HTTP2_HELLO)
                if not stream.recv(1):
                    raise ConnectionError("what listens there hangs up on gRPC")
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"RAY_ADDRESS={address}: nothing answers there within {CONNECT_SECONDS} s ({reason}); "
            "start Ray there, correct the address, or unset RAY_ADDRESS to use this machine alone"
        ) from None


def encode_with_ray(job: Job, missing: list[int], workers: int) -> Iterator[int]:
    """Encodes shards with a pool of actors; yields each shard's number when it is there.

    Where there are GPUs, and the accelerator is "auto" or "gpu", each actor has one.

    Raises:
      InputError: shards could not be encoded; all others are there.
    """
    import ray
    import ray.data
    from ray.exceptions import RayError

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_consecutive_actor_init_deaths = START_AGAIN
    gpus = ray.cluster_resources().get("GPU", 0) if job.accelerator in ("auto", "gpu") else 0
    numbers = [{"shard": number} for number in missing]
    failed = []
    try:
        encoded = ray.data.from_items(numbers, override_num_blocks=len(numbers)).map_batches(
            Worker,
            batch_size=1,
            fn_constructor_args=(job,),
            compute=ray.data.ActorPoolStrategy(size=min(workers, len(numbers))),
            num_gpus=1 if gpus else None,
        )
        for row in encoded.iter_rows():
            if row["error"]:
                failed.append(f"shard {row['shard']}: {row['error']}")
            else:
                yield int(row["shard"])
    except RayError as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = str(cause).strip().splitlines()[-1]
        raise InputError(f"Ray's workers failed ({reason}); finished shards are kept") from None
    finally:
        ray.shutdown()
    if failed:
        raise InputError(f"{len(failed)} shards could not be encoded; {failed[0]}")
