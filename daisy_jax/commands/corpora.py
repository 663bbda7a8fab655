"""`daisy-jax encode --manifest`: lists of files into a feature store, shard by shard."""

import dataclasses
import pathlib
import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import tyro

from daisy_jax.accelerator import Accelerator, use_accelerator, use_compilation_cache
from daisy_jax.audio import SAMPLE_RATE
from daisy_jax.data.file_list import FileList, deal, read_list
from daisy_jax.errors import InputError
from daisy_jax.features.shard_format import Row, finished_part
from daisy_jax.reporting import followed, printable

if TYPE_CHECKING:
    from daisy_jax.model.hubert import Hubert


@dataclasses.dataclass(frozen=True)
class Corpora:
    """Options of whole corpora."""

    manifest: Annotated[str, tyro.conf.arg(metavar="LIST")] = ""
    """A list of files in the place of FILE...: its first line is a folder, each further one a path
    below it (fairseq's format). Features go into a feature store in --output."""
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
    """For "pooled": a trained head (train/downstream.py), for its layer weights."""
    centroids: Annotated[str, tyro.conf.arg(metavar="FILE.npy")] = ""
    """For "units": float [clusters, dim], as numpy.save writes it."""
    npy: bool = False
    """Write one .npy a file, [frames, dim], in the place of one file a shard."""
    ray: bool = False
    """Encode with Ray (extra ray): on the cluster of RAY_ADDRESS, or on this machine."""
    workers: int = 0
    """Ray's workers, each with a GPU where there are some; 0: one."""
    retry: bool = False
    """Make shards again in which files failed: after the files were repaired, or with another
    --max-seconds."""

    @property
    def given(self) -> list[str]:
        """Those that were used."""
        return [
            "--" + field.name.replace("_", "-")
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        ]


@dataclasses.dataclass(frozen=True)
class Setting:
    """What `encode`'s other options say."""

    model: str
    content: Any
    output: str
    max_seconds: float
    accelerator: Accelerator
    compilation_cache: str


def prepare(
    options: Corpora, exits: list[str], accelerator: Accelerator, compilation_cache: str
) -> None:
    """Checks what can be checked before a model is loaded, and chooses the device.

    Args:
      options: the command's.
      exits: the options that say where utterances leave, as far as they were given.
      accelerator: of the command.
      compilation_cache: of the command.
    """
    if options.shard and (options.ray or options.shard_files):
        raise InputError("--shard is one of a given number; leave --ray and --shard-files out")
    needs = {"layers": "layers", "pooled": "head", "units": "centroids"}
    for store, name in needs.items():
        if getattr(options, name) and options.store != store:
            raise InputError(f"--{name} belongs to --store {store}")
        if store == options.store and not getattr(options, name) and name != "layers":
            raise InputError(f"--store {store} needs --{name}")
    if options.workers < 0 or options.shard_files < 0:
        raise InputError("--workers and --shard-files: give at least 1")
    if options.workers and not options.ray:
        raise InputError("--workers are Ray's; add --ray")
    if exits and options.store in ("layers", "labels"):
        raise InputError(f"--store {options.store} runs all layers; leave {', '.join(exits)} out")
    if exits not in ([], ["--layer"]) and options.store == "units":
        raise InputError("--store units leaves at --layer; leave the other exit options out")
    if options.ray:  # before JAX, whose threads do not bear the fork of Ray's start
        from daisy_jax.features.ray import join_ray

        join_ray(accelerator, options.workers or 1)
    # Ray's workers hold the accelerators; this process only looks at what is there.
    use_accelerator("cpu" if options.ray else accelerator)
    if compilation_cache and not options.ray:
        use_compilation_cache(compilation_cache)


def content_of(options: Corpora, model: "Hubert", rule: Any, layer: int | None) -> Any:
    """What is to be stored.

    Args:
      options: the command's.
      model: the model.
      rule: a function that gives the exit rule, for contents that leave.
      layer: of --layer.
    """
    from daisy_jax.features.contents import AtExit, Labels, Layers, Units

    if options.store == "layers":
        return Layers(options.layers or tuple(range(model.config.num_layers + 1)))
    if options.store == "labels":
        return Labels()
    if options.store == "units":
        if layer is None:
            raise InputError("--store units needs --layer, the layer the centroids belong to")
        return Units(read_centroids(options.centroids), layer)
    if options.store == "exit":
        return AtExit(rule())
    from daisy_jax.features.extract import model_digest
    from daisy_jax.tasks.trained_heads import load_head

    head = load_head(options.head)
    if head.upstream != model_digest(model):
        raise InputError(
            f"{options.head}: was trained on another model; give that one with --model"
        )
    return AtExit(rule(), np.asarray(head.params["layer_weights"]))


def read_centroids(path: str) -> np.ndarray:
    """Float32 [clusters, dim]."""
    try:
        found = np.load(path, allow_pickle=False)
        return np.asarray(found, np.float32)
    except (ValueError, EOFError, TypeError) as error:
        raise InputError(
            f"{path}: not an array of numpy.save ({error}); save the centroids, "
            "float [clusters, dim], with it"
        ) from None


def run_corpus(options: Corpora, model: "Hubert", setting: Setting) -> int:
    """Encodes the shards that are not there yet, and says what there is; 1 if a file failed."""
    from daisy_jax.features.extract import Extractor, list_source, shard_size

    files = read_list(options.manifest)
    if files.repeated:
        print(f"note: {files.repeated} lines repeat earlier ones; each file is encoded once")
    extractor = Extractor(model, setting.content)
    size = options.shard_files or shard_size(len(extractor.content.items))
    count = -(-len(files.names) // size)
    numbers = list(range(count))
    if options.shard:
        number, count = parse_shard(options.shard)
        deal(files.names, number, count)
        numbers = [number]
    output = pathlib.Path(setting.output)
    source = list_source(extractor, files, count, options.npy)
    items = ", ".join(map(str, extractor.content.items))
    print(f"{len(files.names)} files in {count} shards; stored: {items}")
    if options.ray:
        done = with_ray(options, setting, output, source, numbers, count)
    else:
        done = in_this_process(options, setting, extractor, files, numbers, count)
    failed = 0
    totals = np.zeros(3)
    for number, rows in done:
        bad = [row.error for row in rows if row.error is not None]
        for error in bad:
            print(f"error: {printable(error)}", file=sys.stderr)
        failed += len(bad)
        good = [row for row in rows if row.error is None]
        found = [len(good), sum(row.samples for row in good), sum(row.exit_layer for row in good)]
        totals += found
        print(f"shard {number}/{count}: {describe(found)}, {len(bad)} failed", flush=True)
    print(f"{setting.output}: {describe(totals)}, {failed} failed")
    return 1 if failed else 0


def describe(found: Any) -> str:
    """Files, hours and mean exit layer."""
    good, samples, layers = found
    mean = layers / good if good else 0
    return f"{good:.0f} files, {samples / SAMPLE_RATE / 3600:.3g} h, mean exit layer {mean:.2f}"


def parse_shard(text: str) -> tuple[int, int]:
    """Number and count of I/N."""
    parts = re.fullmatch(r"(\d+)/(\d+)", text)
    if parts is None:
        raise InputError(f"--shard {text!r}: give I/N, such as 0/40 for the first of forty")
    return int(parts[1]), int(parts[2])


def in_this_process(
    options: Corpora,
    setting: Setting,
    extractor: Any,
    files: FileList,
    numbers: list[int],
    count: int,
) -> Iterator[tuple[int, list[Row]]]:
    """Encodes shard after shard; yields its number and its rows."""
    from daisy_jax.features.extract import encode_shard

    for number in numbers:
        rows = encode_shard(
            extractor,
            files,
            number,
            count,
            setting.output,
            npy=options.npy,
            max_seconds=setting.max_seconds,
            retry=options.retry,
        )
        yield number, rows


def absolute(path: str) -> str:
    """A path as it is for workers that were started elsewhere; nothing stays nothing."""
    return str(pathlib.Path(path).resolve()) if path else ""


def with_ray(
    options: Corpora,
    setting: Setting,
    output: pathlib.Path,
    source: dict[str, str],
    numbers: list[int],
    count: int,
) -> Iterator[tuple[int, list[Row]]]:
    """First the shards that are there, then the others as Ray finishes them."""
    from daisy_jax.features.extract import finished_shard
    from daisy_jax.features.ray import Job, encode_with_ray

    missing = []
    for number in numbers:
        rows = finished_shard(output, number, source, options.retry)
        if rows is None:
            missing.append(number)
        else:
            yield number, rows
    if not missing:
        return
    job = Job(
        manifest=absolute(options.manifest),
        model=absolute(setting.model),
        content=setting.content,
        shards=count,
        output=absolute(setting.output),
        npy=options.npy,
        max_seconds=setting.max_seconds,
        accelerator=setting.accelerator,
        compilation_cache=absolute(setting.compilation_cache),
        retry=options.retry,
    )
    encoded = encode_with_ray(job, missing, options.workers or 1)
    for number in followed(encoded, "shards", len(missing)):
        rows = finished_part(output, number, source)
        assert rows is not None
        yield number, rows
