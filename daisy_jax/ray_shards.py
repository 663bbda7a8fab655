"""Shards of a list of files, encoded by Ray's workers.

Ray Data hands out the numbers of the shards that are missing to a pool of actors, each of which
holds the model. As a shard is whole or not there, a killed worker's shard is handed out again, and
a killed driver goes on where it was when it is started again.
"""

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

from daisy_jax.data.file_list import read_list
from daisy_jax.errors import InputError
from daisy_jax.terminal import Accelerator


class Job(NamedTuple):
    """What a worker has to know; it reads everything else itself."""

    manifest: str
    model: str
    """A folder that every worker sees; empty: the packaged model."""
    content: Any
    shards: int
    """How many there are."""
    output: str
    npy: bool
    max_seconds: float
    accelerator: Accelerator
    compilation_cache: str


class Worker:
    """An actor: loads the model once, then encodes shard after shard."""

    def __init__(self, job: Job):
        from daisy_jax.terminal import use_accelerator, use_compilation_cache

        use_accelerator(job.accelerator)
        if job.compilation_cache:
            use_compilation_cache(job.compilation_cache)
        from daisy_jax.checkpoints import load
        from daisy_jax.extraction import Extractor

        self._job, self._files = job, read_list(job.manifest)
        self._extractor = Extractor(load(job.model or None), job.content)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Encodes the shards of a batch and tells how many files each has."""
        from daisy_jax.shards import encode_shard

        job, sizes = self._job, []
        for number in batch["shard"]:
            rows = encode_shard(
                self._extractor,
                self._files,
                int(number),
                job.shards,
                job.output,
                npy=job.npy,
                max_seconds=job.max_seconds,
            )
            sizes.append(len(rows))
        return {"shard": batch["shard"], "files": sizes}


def encode_with_ray(job: Job, missing: list[int], workers: int) -> Iterator[int]:
    """Encodes shards with a pool of actors; yields each shard's number when it is there.

    Joins the cluster that RAY_ADDRESS names, else starts one on this machine. With
    `accelerator="gpu"` each actor has one GPU.

    Raises:
      InputError: a shard could not be encoded; the others are there.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray.exceptions import RayError

    if "RAY_ADDRESS" in os.environ:
        ray.init(log_to_driver=False)
    else:
        ray.init(include_dashboard=False, log_to_driver=False)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    try:
        numbers = [{"shard": number} for number in missing]
        shards = ray.data.from_items(numbers, override_num_blocks=len(numbers))
        found = shards.map_batches(
            Worker,
            batch_size=1,
            fn_constructor_args=(job,),
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_gpus=1 if job.accelerator == "gpu" else None,
        )
        for row in found.iter_rows():
            yield int(row["shard"])
    except RayError as error:
        reason = str(error).strip().splitlines()[-1]
        raise InputError(f"a worker failed ({reason}); what was finished is kept") from None
    finally:
        ray.shutdown()
