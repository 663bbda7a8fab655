"""The trunk over recordings, shard by shard, into a feature store: corpora, and lists of any size.

Slurm arrays, xargs, Ray or a loop call `encode_shard` for the shards of a list.
"""

import concurrent.futures
import hashlib
import json
import math
import os
import pathlib
import shutil

import numpy as np
from jaxtyping import Int

from daisy_jax import audio, parallel
from daisy_jax.data.corpus import Corpus, FolderCorpus, Selection, fingerprint, sound_fingerprint
from daisy_jax.data.durations import READERS, Entry, open_file
from daisy_jax.data.file_list import FileList, deal, nameable
from daisy_jax.errors import InputError, said_of
from daisy_jax.features.extractor import Extractor, model_source
from daisy_jax.features.files import MAX_SECONDS
from daisy_jax.features.shard_format import INDEX, Row, finished_part
from daisy_jax.features.store import FeatureStore
from daisy_jax.model.hubert import Hubert
from daisy_jax.reporting import is_strict, logger

SHARD_BYTES = 1_000_000_000
SHARD_UTTERANCES = 4096
"""Of a corpus: a shard has at most so many bytes, on average, and utterances."""
LONGEST_NAME = 255
"""Bytes of a file's name, on the file systems that people use."""
LIST_SHARD_FILES = 512
LEAST_LIST_SHARD_FILES = 32
"""Of a list: files of a shard that stores one item, and of one that stores very many."""


def corpus_source(corpus: Corpus) -> str:
    """What tells corpora apart: names, lengths, and how some of them sound."""
    return f"{fingerprint(corpus)}, {sound_fingerprint(corpus)}"


def store_digest(model: Hubert, corpus: Corpus) -> str:
    """Of the names of stores: another model, type, selection or version has one of its own."""
    belongs = json.dumps([model_source(model), corpus_source(corpus)])
    return hashlib.sha256(belongs.encode()).hexdigest()[:12]


def plan_shards(sizes: Int[np.ndarray, " utterances"]) -> list[Int[np.ndarray, " _"]]:
    """Numbers of the utterances of each shard, in the corpus' order, by each one's size in bytes.

    Shards are about equal, and hold up to `SHARD_BYTES` and one utterance more.
    """
    count = max(-(-int(sizes.sum()) // SHARD_BYTES), -(-len(sizes) // SHARD_UTTERANCES))
    ends = np.cumsum(sizes + 1)  # where nothing is stored beside the index, all weigh the same
    cuts = [np.searchsorted(ends, ends[-1] * n / count, side="right") for n in range(1, count)]
    return [part for part in np.split(np.arange(len(sizes)), cuts) if len(part)]


def extract_corpus(
    folder: str | pathlib.Path,
    extractor: Extractor,
    corpus: Corpus,
    root: str | pathlib.Path,
    *,
    verify: bool = False,
    no_room: str = "make room, or give another folder",
) -> FeatureStore:
    """Makes a store of a corpus, or goes on with one that was interrupted, or opens a finished one.

    The corpus, which lies in `root`, has utterances of at most a minute. Those that cannot be read
    have no features; their rows say why, and who uses the store reports it.

    Args:
      folder: of the store.
      extractor: model and content.
      corpus: the utterances.
      root: the corpus' folder.
      verify: whether shards that are there are read, and made again if their bytes have changed.
      no_room: what to do where the disk has no room.

    Raises:
      InputError: the disk has no room, or the folder holds another model's or corpus' features; or,
        inside `strictly`, an utterance cannot be read.
      OSError: a shard could not be written; those before it are whole.
    """
    folder = pathlib.Path(folder)
    for name in corpus.names:
        if nameable(name) != name:
            raise InputError(f"{nameable(name)}: no store can have this name; rename the file")
    sizes = audio.frame_count(corpus.lengths) * extractor.bytes_per_frame
    members = plan_shards(sizes)
    source = extractor.source(corpus_source(corpus), len(members))
    parts = [finished_part(folder, number, source, verify) for number in range(len(members))]
    missing = [
        number
        for number, rows in enumerate(parts)
        if rows is None or any(row.is_changed for row in rows)
    ]
    if missing:
        chosen = np.concatenate([members[number] for number in missing])
        length, size = int(corpus.lengths[chosen].sum()), int(sizes[chosen].sum())
        _require_room(folder, length, size, no_room)
    for number in missing:
        part = Selection(corpus, members[number])
        paths = [pathlib.Path(root) / name for name in part.names]
        rows = extractor.write_shard(folder, number, part, paths, source)
        error = next((row.error for row in rows if row.error is not None), None)
        if error is not None and is_strict():  # at once, and not when all shards are there
            raise InputError(error)
    parallel.any_process(False)  # the others wait until the first has written
    return FeatureStore(folder)


def _require_room(folder: pathlib.Path, samples: int, size: int, no_room: str) -> None:
    """Says how many bytes will be written, and refuses where there is no room for them."""
    above = folder.resolve()
    while not above.exists():
        above = above.parent
    free = shutil.disk_usage(above).free
    stored = f"{size / 1e9:.3g} GB of features" if size else "entropies alone"
    text = f"{folder}: {samples / audio.SAMPLE_RATE / 3600:.3g} h of speech, {stored}"
    if parallel.is_first():
        logger.info("%s; %.0f GB are free", text, free / 1e9)
    if free < size + size // 50 + 10_000_000:
        raise InputError(f"{text}, and {free / 1e9:.3g} GB are free; {no_room}")


def shard_size(items: int) -> int:
    """Files of a list's shard, 0.5 GB of HuBERT Base's features of LibriSpeech."""
    return max(LIST_SHARD_FILES // max(items, 1), LEAST_LIST_SHARD_FILES)


def list_source(extractor: Extractor, files: FileList, count: int, npy: bool) -> dict[str, str]:
    """What every shard of a list's store carries."""
    return extractor.source(files.digest, count) | ({"layout": "npy"} if npy else {})


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
) -> list[Row]:
    """Encodes one shard of a list into one shard of a feature store, all of it or nothing.

    A shard that is there, has the bytes that were written, and whose files have the size and the
    time that they had, is left as it is. So this may be called for any shards in any order, again,
    and by several processes or machines at once, and in the end each file is there exactly once.
    (Where two machines of different kinds write one shard
    at once, bytes and checksum may disagree; the next call sees it and makes the shard again.) When
    all shards are there, `FeatureStore` opens the folder.

    Args:
      extractor: model and content.
      files: from `read_list`.
      number: of the shard, 0 to count - 1.
      count: of shards; the same in all calls for a store.
      output: the store's folder, made if absent.
      npy: write `npy/ID.npy`, a file an utterance, in the place of one file.
      max_seconds: longer files are errors, unless the extractor cuts them.
      retry: make a finished shard again if files failed in it.

    Returns:
      A row a file. Files that cannot be used have 0 frames, and the reason in `error`.

    Raises:
      InputError: there is no such shard, or the folder holds something else.
      OSError: the shard cannot be written; it does not count then.
    """
    folder = pathlib.Path(output)
    names = deal(files.names, number, count)
    source = list_source(extractor, files, count, npy)
    rows = finished_shard(folder, number, source, retry)
    if rows is not None:
        return rows
    (folder / INDEX).mkdir(parents=True, exist_ok=True)  # fails early where it cannot be written
    paths = [files.path(name) for name in names]
    with concurrent.futures.ThreadPoolExecutor(READERS) as readers:
        listed = map(files.samples.get, names)
        longest = max_seconds if extractor.cut is None else math.inf
        entries = list(readers.map(_measure, paths, listed, [longest] * len(paths)))
    if npy:
        entries = [_fits(path, entry) for path, entry in zip(paths, entries, strict=True)]
    unusable = [
        Row(name, str(path), number, 0, 0, 0, False, [], [], f"{path}: {entry.error}")
        for name, path, entry in zip(names, paths, entries, strict=True)
        if entry.error
    ]
    usable = [place for place, entry in enumerate(entries) if not entry.error]
    places = [paths[place] for place in usable]
    corpus = FolderCorpus(
        [names[place] for place in usable], places, [entries[place] for place in usable]
    )
    return extractor.write_shard(folder, number, corpus, places, source, unusable)


def finished_shard(
    folder: pathlib.Path, number: int, source: dict[str, str], retry: bool
) -> list[Row] | None:
    """The rows of a shard that need not be made.

    One whose files have changed since must be made again; with `retry`, one in which files failed,
    too.
    """
    rows = finished_part(folder, number, source, verify=True)
    if rows is not None:
        changed = sum(row.is_changed for row in rows)
        if changed:
            logger.info("shard %d: %d files are others now; it is made again", number, changed)
        if changed or (retry and any(row.error for row in rows)):
            return None
    return rows


def _measure(path: pathlib.Path, listed: int | None, max_seconds: float) -> Entry:
    """How long a file is, by its header or as the list says."""
    try:
        entry = open_file(path) if listed is None else Entry(0, 0, listed, 0, None)
    except Exception as error:
        return Entry(0, 0, 0, 0, said_of(path, error).removeprefix(f"{path}: "))
    if listed is not None and listed < audio.FRAME_WINDOW:
        too_short = f"shorter than {audio.FRAME_WINDOW} samples (25 ms), as the list says"
        return entry._replace(error=too_short)
    seconds = entry.samples / audio.SAMPLE_RATE
    if entry.error is None and seconds > max_seconds:
        error = (
            f"{seconds:.1f} s long; encode it in windows (--window), or allow more (--max-seconds "
            "with --retry)"
        )
        return entry._replace(error=error)
    return entry


def _fits(path: pathlib.Path, entry: Entry) -> Entry:
    """With an error if no file can have the name of these features."""
    size = len(os.fsencode(f"{path.name}.npy"))
    if entry.error or size <= LONGEST_NAME:
        return entry
    text = f"its features would need a name of {size} bytes; rename it, or leave --npy out"
    return entry._replace(error=text)
