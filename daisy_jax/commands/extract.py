"""`daisy-jax extract`: a whole corpus into a feature store, shard by shard."""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Iterator
from typing import Annotated, Literal

import numpy as np
import tyro
from jaxtyping import Int

import daisy_jax
from daisy_jax import Hubert, InputError
from daisy_jax.commands.options import ModelOptions
from daisy_jax.console.terminal import say
from daisy_jax.conversions.any_model import model_folder
from daisy_jax.data.file_list import FileList, deal, read_list
from daisy_jax.features import contents
from daisy_jax.features.codebook import load_codebook
from daisy_jax.features.extract import (
    Extractor,
    encode_shard,
    finished_shard,
    list_source,
    shard_size,
)
from daisy_jax.features.ray import Job, encode_with_ray, join_ray
from daisy_jax.features.shard_format import Row, finished_part
from daisy_jax.reporting import followed, printable
from daisy_jax.tasks.trained_heads import require_trunk


@dataclasses.dataclass(frozen=True)
class Extract(ModelOptions):
    """Encodes a whole corpus, a list of files, into a feature store, shard by shard.

    A shard is there as a whole or not at all, so that a command that was killed goes on where it
    was when it is started again. Prints a line a shard. Files that cannot be read are reported on
    stderr and in the store; the others are encoded, and the exit status is 1 in the end.

    Where utterances leave is said as for `daisy-jax encode`; without an option at ratio 0.7.
    """

    file_list: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="LIST")]
    """A list of files: its first line is a folder, each further one a path below it (fairseq's
    format)."""
    output: Annotated[str, tyro.conf.arg(metavar="DIR")]
    """The feature store."""
    shard: Annotated[str, tyro.conf.arg(metavar="I/N")] = ""
    """Encode only the files I, I + N, ... of the list, into shard I of N, counted from 0; empty:
    all shards, one after the other."""
    shard_files: int = 0
    """Without --shard: files of a shard; 0: 512, with --store layers as many times fewer as layers
    are stored. A shard's features are held in memory until it is written."""
    store: Literal["exit", "layers", "pooled", "labels", "units"] = "exit"
    """What is stored of each file, as float16 or int32: the exit layer's output; --layers; the sum
    of eq. (4) up to the exit; HuBERT's own labels; the nearest of --centroids at --layer."""
    layers: tuple[int, ...] = ()
    """For "layers": which, 0 (the transformer's input) to L; empty: all."""
    head: Annotated[str, tyro.conf.arg(metavar="DIR")] = ""
    """For "pooled": a trained task head (train/downstream.py), for its layer weights."""
    centroids: Annotated[str, tyro.conf.arg(metavar="DIR")] = ""
    """For "units": a folder of train/units.py; or float [clusters, dim] as numpy.save writes it,
    with --layer."""
    npy: bool = False
    """Write one .npy a file, [frames, dim], in the place of one file a shard."""
    ray: bool = False
    """Encode with Ray (extra ray): on the cluster of RAY_ADDRESS, or on this machine."""
    workers: int = 0
    """Ray's workers, each with a GPU where there are some; 0: one."""
    retry: bool = False
    """Make shards again in which files failed: after the files were repaired, or with another
    --max-seconds."""

    def run(self) -> int:
        """Encodes the shards that are not there yet, and says what there is; 1 if a file failed."""
        self._check()
        driver = self
        if self.ray:  # before JAX, whose threads do not bear the fork of Ray's start
            join_ray(self.accelerator, self.workers or 1)
            # Ray's workers hold the accelerators; this process only looks at what is there.
            driver = dataclasses.replace(self, accelerator="cpu", compilation_cache="")
        model = driver.start()
        cut = None
        if self.window is not None:
            cut = daisy_jax.audio.cut_of(self.window, self.context, self.max_seconds)
        extractor = Extractor(model, self._content(model), cut=cut)
        files = read_list(self.file_list)
        if files.repeated:
            say(f"note: {files.repeated} lines repeat earlier ones; each file is encoded once")
        size = self.shard_files or shard_size(len(extractor.content.items))
        count = -(-len(files.names) // size)
        numbers = list(range(count))
        if self.shard:
            parts = re.fullmatch(r"(\d+)/(\d+)", self.shard)
            if parts is None:
                raise InputError(
                    f"--shard {self.shard!r}: give I/N, such as 0/40 for the first of forty"
                )
            numbers, count = [int(parts[1])], int(parts[2])
            deal(files.names, numbers[0], count)  # says whether there is such a shard
        items = ", ".join(map(str, extractor.content.items))
        say(f"{len(files.names)} files in {count} shards; stored: {items}")
        encode = self._with_ray if self.ray else self._in_this_process
        total = np.zeros(4, np.int64)
        for number, rows in encode(extractor, files, numbers, count):
            for row in rows:
                if row.error is not None:
                    say(f"error: {printable(row.error)}", to_stderr=True)
            counts = _counts(rows)
            say(f"shard {number}/{count}: {_in_words(counts)}", flush=True)
            total += counts
        say(f"{self.output}: {_in_words(total)}")
        return 1 if total[-1] else 0

    def _check(self) -> None:
        """Refuses what can be refused before a model is loaded."""
        if self.shard and (self.ray or self.shard_files):
            raise InputError("--shard is one of a given number; leave --ray and --shard-files out")
        needs = {"layers": "layers", "pooled": "head", "units": "centroids"}
        for store, name in needs.items():
            if getattr(self, name) and self.store != store:
                raise InputError(f"--{name} belongs to --store {store}")
            if store == self.store and not getattr(self, name) and name != "layers":
                raise InputError(f"--store {store} needs --{name}")
        if self.workers < 0 or self.shard_files < 0:
            raise InputError("--workers and --shard-files: give at least 1")
        if self.workers and not self.ray:
            raise InputError("--workers are Ray's; add --ray")
        exits = self.given_exits
        if exits and self.store in ("layers", "labels"):
            raise InputError(f"--store {self.store} runs all layers; leave {', '.join(exits)} out")
        if exits not in ([], ["--layer"]) and self.store == "units":
            raise InputError("--store units leaves at --layer; leave the other exit options out")

    def _content(self, model: Hubert) -> contents.Content:
        """What is to be stored; says where utterances leave, if they do."""
        if self.store == "layers":
            return contents.layers(self.layers or tuple(range(model.config.num_layers + 1)))
        if self.store == "labels":
            return contents.labels()
        if self.store == "units":
            codebook = load_codebook(self.centroids)
            layer = codebook.layer_for(model, self.layer, self.centroids)
            return contents.units(codebook.centroids, layer)
        rule = self.exit_rule(model)
        say(rule.name)
        if self.store == "exit":
            return contents.at_exit(rule)
        from daisy_jax.tasks.trained_heads import load_head

        head = load_head(self.head)
        wrong = f"{self.head}: was trained on another model; give that one with --model"
        require_trunk(head, model, wrong)
        return contents.at_exit(rule, np.asarray(head.params["layer_weights"]))

    def _in_this_process(
        self, extractor: Extractor, files: FileList, numbers: list[int], count: int
    ) -> Iterator[tuple[int, list[Row]]]:
        """Encodes shard after shard; yields its number and its rows."""
        encode = functools.partial(
            encode_shard, npy=self.npy, max_seconds=self.max_seconds, retry=self.retry
        )
        for number in numbers:
            yield number, encode(extractor, files, number, count, self.output)

    def _with_ray(
        self, extractor: Extractor, files: FileList, numbers: list[int], count: int
    ) -> Iterator[tuple[int, list[Row]]]:
        """First the shards that are there, then the others as Ray finishes them."""
        output, source = pathlib.Path(self.output), list_source(extractor, files, count, self.npy)
        missing = []
        for number in numbers:
            rows = finished_shard(output, number, source, self.retry)
            if rows is None:
                missing.append(number)
            else:
                yield number, rows
        if not missing:
            return
        kept = self.compilation_cache
        job = Job(
            file_list=absolute(self.file_list),
            model=absolute(str(model_folder(self.model)) if self.model else ""),
            content=extractor.content,
            cut=extractor.cut,
            shards=count,
            output=absolute(self.output),
            npy=self.npy,
            max_seconds=self.max_seconds,
            accelerator=self.accelerator,
            compilation_cache="" if kept == "auto" else absolute(kept),
            retry=self.retry,
        )
        encoded = encode_with_ray(job, missing, self.workers or 1)
        for number in followed(encoded, "shards", len(missing)):
            rows = finished_part(output, number, source)
            assert rows is not None
            yield number, rows


def _counts(rows: list[Row]) -> Int[np.ndarray, "4"]:
    """Files, their samples, the sum of their exit layers, and how many failed."""
    good = [row for row in rows if row.error is None]
    sums = sum(row.samples for row in good), sum(row.exit_layer for row in good)
    return np.asarray([len(good), *sums, len(rows) - len(good)])


def _in_words(counts: Int[np.ndarray, "4"]) -> str:
    files, samples, layers, failed = counts
    hours = samples / daisy_jax.audio.SAMPLE_RATE / 3600
    mean = layers / max(1, files)
    return f"{files} files, {hours:.3g} h, mean exit layer {mean:.2f}, {failed} failed"


def absolute(path: str) -> str:
    """A path as it is for workers that were started elsewhere; nothing stays nothing."""
    return str(pathlib.Path(path).resolve()) if path else ""
