"""Encoding many sound files: reading ahead in threads, batches of similar length."""

import concurrent.futures
import itertools
import os
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from daisy_jax import audio
from daisy_jax.encode import Encoded, encode
from daisy_jax.errors import InputError
from daisy_jax.hubert import Hubert

WINDOW = 64
"""Files in work at a time: read ahead, sorted into buckets, given back in input order."""
BATCH_SECONDS = 80
"""Audio of one batch, padding included."""
BUCKETS = tuple(audio.SAMPLE_RATE * seconds for seconds in (2, 4, 6, 8, 12, 16, 24, 32, 60))
"""Widths of a batch, samples: few, since each is compiled once."""
MAX_SECONDS = BUCKETS[-1] / audio.SAMPLE_RATE


class FileResult(NamedTuple):
    """One file's features, or why there are none. Arrays are numpy, without padding."""

    path: str
    """As it was given."""
    error: str | None = None
    """One line, or None; with an error everything below is empty."""
    seconds: float = 0.0
    """Duration."""
    exit_layer: int = 0
    """Where it left, 1..L."""
    forced: bool = False
    """It left because no threshold was met."""
    entropy: np.ndarray | None = None
    """float32 [L], nats; +inf where not evaluated."""
    num_frames: int = 0
    """Frames."""
    last_hidden: np.ndarray | None = None
    """float [frames, dim], the exit layer's output."""
    hidden_states: np.ndarray | None = None
    """float [L+1, frames, dim], if asked for."""
    pooled: np.ndarray | None = None
    """float32 [frames, dim], if layer weights were given."""
    notes: tuple[str, ...] = ()
    """What was done to the samples: mixed down, resampled, scaled."""


def encode_files(
    model: Hubert, paths: Iterable[str | os.PathLike], **options: Any
) -> Iterator[FileResult]:
    """Encodes sound files of every format of libsndfile, any rate and channel count, up to 60 s.

    Reads ahead in threads and batches files of similar length. A file that cannot be read does not
    disturb the others.

    Args:
      model: from `load`.
      paths: files; any length of list, taken as it goes.
      **options: of `encode`: threshold (a scalar), allowed, layer_weights, return_hidden_states.

    Yields:
      One `FileResult` a path, in input order; 64 are worked on while the next 64 are read.

    Raises:
      InputError: an option is wrong.
    """
    if isinstance(paths, (str, os.PathLike)):
        raise InputError(f"paths is {os.fspath(paths)!r}; it must be a list of paths")
    if np.ndim(options.get("threshold") or 0.0):
        raise InputError("threshold must be one number for all files; call once for each threshold")
    remaining = iter(paths)
    with concurrent.futures.ThreadPoolExecutor(2) as readers:
        upcoming = _submit(readers, remaining)
        while upcoming:
            window = [(path, reading.result()) for path, reading in upcoming]
            upcoming = _submit(readers, remaining)
            yield from _encode_window(model, window, options)


def _submit(readers: concurrent.futures.Executor, paths: Iterator) -> list:
    return [
        (os.fspath(path), readers.submit(_read, path)) for path in itertools.islice(paths, WINDOW)
    ]


def _read(path: str | os.PathLike) -> audio.Clip | str:
    try:
        clip = audio.load_clip(path)
    except InputError as error:
        return str(error)
    except OSError as error:
        return f"{os.fspath(path)}: {error.strerror or error}"
    seconds = len(clip.waveform) / audio.SAMPLE_RATE
    if seconds > MAX_SECONDS:
        return (
            f"{os.fspath(path)}: {seconds:.1f} s long; split it into parts of {MAX_SECONDS:.0f} s"
        )
    return clip


def _encode_window(
    model: Hubert, window: list[tuple[str, audio.Clip | str]], options: dict[str, Any]
) -> list[FileResult]:
    results: dict[int, FileResult] = {}
    buckets: dict[int, list[tuple[int, str, audio.Clip]]] = {}
    for number, (path, clip) in enumerate(window):
        if isinstance(clip, str):
            results[number] = FileResult(path, clip)
        else:
            width = next(size for size in BUCKETS if len(clip.waveform) <= size)
            buckets.setdefault(width, []).append((number, path, clip))
    for width, members in buckets.items():
        rows = 1 << (BATCH_SECONDS * audio.SAMPLE_RATE // width).bit_length() - 1
        for first in range(0, len(members), rows):
            part = members[first : first + rows]
            # Empty rows fill up to a power of two: few shapes, and little work for a few files.
            height = 1 << (len(part) - 1).bit_length()
            waveforms = [clip.waveform for _, _, clip in part]
            out = jax.device_get(
                encode(model, *audio.pad_batch(waveforms, width, height), **options)
            )
            for row, (number, path, clip) in enumerate(part):
                results[number] = _result(path, clip, out, row)
    return [results[number] for number in range(len(window))]


def _result(path: str, clip: audio.Clip, out: Encoded, row: int) -> FileResult:
    frames = int(out.num_frames[row])

    def cut(field: Any) -> np.ndarray | None:
        return None if field is None else field[row][..., :frames, :].copy()

    return FileResult(
        path=path,
        seconds=len(clip.waveform) / audio.SAMPLE_RATE,
        exit_layer=int(out.exit_layer[row]),
        forced=bool(out.forced[row]),
        entropy=np.array(out.entropy[row]),
        num_frames=frames,
        last_hidden=cut(out.last_hidden),
        hidden_states=cut(out.hidden_states),
        pooled=cut(out.pooled),
        notes=clip.notes,
    )
