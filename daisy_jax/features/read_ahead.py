"""Sound files, read ahead in threads, whole or in windows."""

import collections
import concurrent.futures
import itertools
import os
from collections.abc import Generator, Iterable, Iterator
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float

from daisy_jax import audio
from daisy_jax.data.side_work import reader_threads
from daisy_jax.errors import said_of

READ_AHEAD = 32
"""Files read while others are computed; several for each of the `reader_threads`."""


class FilePart(NamedTuple):
    """A file, or a window of it."""

    path: str
    window: audio.Window
    waveform: Float[np.ndarray, " samples"]
    """What the model sees of the window."""
    notes: tuple[str, ...]
    """What was done to the samples."""


class Unreadable(NamedTuple):
    """A file that cannot be read, or not to its end."""

    path: str
    error: str


Read: TypeAlias = FilePart | Unreadable


def read_parts(
    paths: Iterable[str | os.PathLike], max_seconds: float, cut: audio.Cut | None
) -> Generator[Read]:
    """Each path's audio, or the reason why there is none; read ahead in threads.

    The first part of several files is read ahead, and one part more of the file at hand.
    """
    remaining = iter(paths)
    readers = concurrent.futures.ThreadPoolExecutor(reader_threads())

    def submit(
        count: int,
    ) -> Iterator[tuple[Iterator[Read], concurrent.futures.Future[Read]]]:
        for path in itertools.islice(remaining, count):
            parts = _read(path, max_seconds, cut)
            yield parts, readers.submit(next, parts)

    try:
        upcoming = collections.deque(submit(READ_AHEAD))
        while upcoming:
            parts, reading = upcoming.popleft()
            upcoming.extend(submit(1))
            while True:
                part = reading.result()
                if isinstance(part, Unreadable) or part.window.is_last:
                    break
                reading = readers.submit(next, parts)
                yield part
            yield part
    finally:
        readers.shutdown(cancel_futures=True)


def _read(path: str | os.PathLike, max_seconds: float, cut: audio.Cut | None) -> Generator[Read]:
    """The parts of a file; an error is the last one."""
    name = os.fspath(path)
    try:
        with audio.stream(path, max_seconds) as (blocks, notes):
            for window, waveform in audio.cut_stream(blocks, cut or audio.WHOLE):
                yield FilePart(name, window, waveform, notes)
    except Exception as error:
        yield Unreadable(name, said_of(path, error))
