"""Corpora of any size, shard by shard: what Slurm arrays, xargs, Ray or a loop call."""

import concurrent.futures
import functools
import os
import pathlib
from collections.abc import Callable, Iterable

from daisy_jax.audio import SAMPLE_RATE
from daisy_jax.data.corpus import FolderCorpus
from daisy_jax.data.file_list import FileList, deal
from daisy_jax.data.manifest import READERS, Entry, open_file
from daisy_jax.features.extraction import Extractor
from daisy_jax.features.feature_shards import MANIFEST, Row, finished_part, write_shard
from daisy_jax.features.files import MAX_SECONDS

UTTERANCES = 512
"""Files of a shard that stores one item; with more items as many times fewer."""
FEWEST = 32


def shard_size(items: int) -> int:
    """Files of a shard, 0.5 GB of HuBERT Base's features of LibriSpeech."""
    return max(UTTERANCES // max(items, 1), FEWEST)


def encode_shard(
    extractor: Extractor,
    files: FileList,
    number: int,
    count: int,
    output: str | os.PathLike,
    *,
    npy: bool = False,
    max_seconds: float = MAX_SECONDS,
    retry: bool = False,
    progress: Callable[[int], Callable[[Iterable], Iterable]] = lambda batches: iter,
) -> list[Row]:
    """Encodes one shard of a list into one shard of a feature store, all of it or nothing.

    A shard that is there, and has the bytes that were written, is left as it is. So this may be
    called for any shards in any order, again, and by several processes or machines at once, and in
    the end each file is there exactly once. (Where two machines of different kinds write one shard
    at once, bytes and checksum may disagree; the next call sees it and makes the shard again.) When
    all shards are there, `FeatureStore` opens the folder.

    Args:
      extractor: model and content.
      files: from `read_list`.
      number: of the shard, 0 to count - 1.
      count: of shards; the same in all calls for a store.
      output: the store's folder, made if absent.
      npy: write `npy/ID.npy`, a file an utterance, in the place of one file.
      max_seconds: longer files are errors.
      retry: make a finished shard again if files failed in it.
      progress: from a number of batches to what wraps them.

    Returns:
      A row a file. Files that cannot be used have 0 frames, and the reason in `error`.

    Raises:
      InputError: there is no such shard, or the folder holds something else.
      OSError: the shard cannot be written; it does not count then.
    """
    folder = pathlib.Path(output)
    names = deal(files.names, number, count)
    source = shard_source(extractor, files, count, npy)
    found = finished_shard(folder, number, source, retry)
    if found is not None:
        return found
    (folder / MANIFEST).mkdir(parents=True, exist_ok=True)  # fails early where it cannot be written
    usable, unusable = _measure(files.folder, names, number, max_seconds)
    if not usable:
        write_shard(folder, number, {}, unusable, source)
        return unusable
    corpus = FolderCorpus(files.folder, list(usable), list(usable.values()))
    work = extractor.shard(
        folder,
        number,
        corpus,
        files.folder,
        source,
        on_error=lambda line: None,  # its row says so
        unusable=unusable,
    )
    for _ in progress(len(extractor.plan(corpus.lengths)))(work):
        pass
    written = finished_part(folder, number, source)
    assert written is not None
    return written


def finished_shard(
    folder: pathlib.Path, number: int, source: dict[str, str], retry: bool
) -> list[Row] | None:
    """The rows of a shard that need not be made; with `retry`, one in which files failed must."""
    rows = finished_part(folder, number, source, verify=True)
    return None if rows and retry and any(row.error for row in rows) else rows


def shard_source(extractor: Extractor, files: FileList, count: int, npy: bool) -> dict[str, str]:
    """What every shard of a list's store carries."""
    return extractor.source(files.digest, count) | ({"layout": "npy"} if npy else {})


def _measure(
    folder: pathlib.Path, names: list[str], number: int, max_seconds: float
) -> tuple[dict[pathlib.Path, Entry], list[Row]]:
    """Files with their durations, and rows of those that cannot be used."""
    paths = [folder / name for name in names]
    with concurrent.futures.ThreadPoolExecutor(READERS) as readers:
        entries = list(readers.map(functools.partial(_entry, max_seconds=max_seconds), paths))
    usable = {}
    unusable = []
    for name, path, entry in zip(names, paths, entries, strict=True):
        if entry.error is None:
            usable[path] = entry
        else:
            row = Row(name, str(path), number, 0, 0, 0, False, [], [], f"{path}: {entry.error}")
            unusable.append(row)
    return usable, unusable


def _entry(path: pathlib.Path, max_seconds: float) -> Entry:
    try:
        entry = open_file(path)
    except OSError as error:
        return Entry(0, 0, 0, 0, error.strerror or str(error))
    seconds = entry.samples / SAMPLE_RATE
    if entry.error is None and seconds > max_seconds:
        error = f"{seconds:.1f} s long; split it, or allow more (--max-seconds with --retry)"
        return entry._replace(error=error)
    return entry
