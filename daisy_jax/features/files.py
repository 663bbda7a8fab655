"""Encoding many sound files: reading ahead in threads, batches of similar length."""

import collections
import concurrent.futures
import contextlib
import itertools
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, NamedTuple, TypedDict, Unpack

import jax
import numpy as np
import numpy.typing as npt
from jaxtyping import Array, Float, Int, Shaped

from daisy_jax import audio
from daisy_jax.data.prefetch import reader_threads
from daisy_jax.encode import Encoded, encode
from daisy_jax.errors import InputError, is_out_of_memory, said_of
from daisy_jax.model.criteria import Criterion
from daisy_jax.model.hubert import Hubert
from daisy_jax.parallel import platform_of

WINDOW = 64
"""Files in work at a time: sorted into batches, given back in input order."""
READ_AHEAD = 32
"""Files read while others are computed; several for each of the `reader_threads`."""
AT_ONCE = 2
"""Batches on the device at a time: one fills the gaps of the other."""
BATCH_SECONDS = {"cpu": 10}
"""Audio of one batch, padding included, by platform: as much as fills the device."""
BATCH_SECONDS_ELSEWHERE = 160
MAX_SECONDS = 60.0
"""Longer files are refused unless told otherwise: attention takes the square of their length."""


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
    entropy: Float[np.ndarray, " layers"] | None = None
    """float32, nats; +inf where not evaluated."""
    num_frames: int = 0
    """Frames."""
    last_hidden: Float[np.ndarray, "frames dim"] | None = None
    """The exit layer's output."""
    hidden_states: Float[np.ndarray, "items frames dim"] | None = None
    """Items 0..L, if asked for."""
    pooled: Float[np.ndarray, "frames dim"] | None = None
    """float32, if layer weights were given."""
    notes: tuple[str, ...] = ()
    """What was done to the samples: mixed down, resampled, scaled."""


class EncodeOptions(TypedDict, total=False):
    """Those of `encode`."""

    threshold: Array | npt.ArrayLike | None
    allowed: Array | npt.ArrayLike | None
    layer_weights: Array | npt.ArrayLike | None
    return_hidden_states: bool
    criterion: Criterion


def encode_files(
    model: Hubert,
    paths: Iterable[str | os.PathLike],
    *,
    max_seconds: float = MAX_SECONDS,
    **options: Unpack[EncodeOptions],
) -> Iterator[FileResult]:
    """Encodes sound files of every format of libsndfile, any rate and channel count.

    Reads ahead in threads and batches files of similar length. Every batch of one width has the
    same number of rows, empty ones included, so that few shapes are compiled. A file that cannot be
    read does not disturb the others.

    Args:
      model: from `load`.
      paths: files; any length of list, taken as it goes.
      max_seconds: longer files are errors. Time and memory grow with the square of the length.
      **options: of `encode`: threshold (a scalar), allowed, layer_weights, return_hidden_states.

    Yields:
      One `FileResult` a path, in input order. At most 64 files are in work, and 32 more are read.

    Raises:
      InputError: an option is wrong.
    """
    if isinstance(paths, (str, os.PathLike)):
        raise InputError(f"paths is {os.fspath(paths)!r}; it must be a list of paths")
    if np.ndim(options.get("threshold") or 0.0):
        raise InputError("threshold must be one number for all files; call once for each threshold")
    device = concurrent.futures.ThreadPoolExecutor(AT_ONCE)
    with contextlib.closing(_clips(paths, max_seconds)) as clips:
        try:
            yield from _results(device, model, clips, options)
        finally:
            device.shutdown(cancel_futures=True)


def _results(
    device: concurrent.futures.Executor,
    model: Hubert,
    clips: Iterator[tuple[str, audio.Clip | str]],
    options: EncodeOptions,
) -> Iterator[FileResult]:
    """Results in the order of the clips."""
    waiting: dict[int, list[_Member]] = {}  # by width
    running: collections.deque[_Batch] = collections.deque()
    done: dict[int, FileResult] = {}
    first = 0  # the oldest file that was not given back

    # What a caller sets by `with` holds for its own thread only.
    settings: Any = jax.config
    precision, where = settings.jax_default_matmul_precision, settings.jax_default_device
    seconds = BATCH_SECONDS.get(platform_of(model), BATCH_SECONDS_ELSEWHERE)

    def run(
        batch: Float[np.ndarray, "batch samples"], lengths: Int[np.ndarray, " batch"]
    ) -> Encoded:
        with jax.default_matmul_precision(precision), jax.default_device(where):
            return jax.device_get(encode(model, batch, lengths, **options))

    def started(members: list[_Member], width: int, rows: int) -> _Batch:
        waveforms = [member.clip.waveform for member in members]
        batch, lengths = audio.pad_batch(waveforms, width, rows)
        return _Batch(members, width, rows, device.submit(run, batch, lengths))

    def start(width: int) -> None:
        running.append(started(waiting.pop(width), width, _rows(width, seconds)))

    def finish() -> None:
        done.update(_served(running.popleft(), started, running))

    for number, (path, clip) in enumerate(clips):
        if isinstance(clip, str):
            done[number] = FileResult(path, clip)
        else:
            width = audio.padded_width(len(clip.waveform))
            members = waiting.setdefault(width, [])
            members.append(_Member(number, path, clip))
            if len(members) == _rows(width, seconds):
                start(width)
        if number - first + 1 >= WINDOW and first not in done:
            # The oldest has waited long enough; its batch goes as it is, if it has not gone.
            for width in [w for w, members in waiting.items() if members[0].number == first]:
                start(width)
            while first not in done:
                finish()
        while len(running) > AT_ONCE:
            finish()
        while first in done:
            yield done.pop(first)
            first += 1
    for width in list(waiting):
        start(width)
    while running:
        finish()
    for number in sorted(done):
        yield done[number]


class _Member(NamedTuple):
    """A file on its way into a batch."""

    number: int
    path: str
    clip: audio.Clip


class _Batch(NamedTuple):
    """A batch on its way through the device."""

    members: list[_Member]
    width: int
    rows: int
    computing: concurrent.futures.Future[Encoded]


def _served(
    batch: _Batch,
    started: Callable[[list[_Member], int, int], _Batch],
    others: Iterable[_Batch],
    alone: bool = False,
) -> Iterator[tuple[int, FileResult]]:
    """Numbers and results of a batch; what does not fit into memory is tried in smaller batches.

    Args:
      batch: members, width, rows, and what computes them.
      started: makes a batch of members, a width and rows.
      others: on the device, too.
      alone: there were none when it started.
    """
    members, width, rows, computing = batch
    try:
        out = computing.result()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    else:
        for row, member in enumerate(members):
            yield member.number, _result(member.path, member.clip, out, row)
        return
    concurrent.futures.wait([other.computing for other in others])  # they need memory, too
    if rows > 1:
        half = rows // 2
        for first in range(0, len(members), half):
            yield from _served(started(members[first : first + half], width, half), started, others)
    elif not alone:
        yield from _served(started(members, width, rows), started, others, alone=True)
    else:
        ((number, path, clip),) = members
        length = len(clip.waveform) / audio.SAMPLE_RATE
        text = f"{path}: not enough memory for {length:.0f} s at once; split it"
        yield number, FileResult(path, text)


def _rows(width: int, seconds: float) -> int:
    """Rows of every batch of a width, with up to so many seconds of audio."""
    # A batch that needs more than a quarter of the window would seldom fill.
    return min(max(1, int(seconds * audio.SAMPLE_RATE // width)), WINDOW // 4)


def _clips(
    paths: Iterable[str | os.PathLike], max_seconds: float
) -> Generator[tuple[str, audio.Clip | str]]:
    """Each path with its audio, or with the reason why there is none; read ahead in threads."""
    remaining = iter(paths)
    readers = concurrent.futures.ThreadPoolExecutor(reader_threads())

    def submit(count: int) -> Iterator[tuple[str, concurrent.futures.Future[audio.Clip | str]]]:
        for path in itertools.islice(remaining, count):
            yield os.fspath(path), readers.submit(_read, path, max_seconds)

    try:
        upcoming = collections.deque(submit(READ_AHEAD))
        while upcoming:
            path, reading = upcoming.popleft()
            upcoming.extend(submit(1))
            yield path, reading.result()
    finally:
        readers.shutdown(cancel_futures=True)


def _read(path: str | os.PathLike, max_seconds: float) -> audio.Clip | str:
    try:
        return audio.load_clip(path, max_seconds)
    except Exception as error:
        return said_of(path, error)


def _result(path: str, clip: audio.Clip, out: Encoded, row: int) -> FileResult:
    frames = int(out.num_frames[row])

    def cut(
        field: Shaped[Array | np.ndarray, "batch ..."] | None,
    ) -> Shaped[np.ndarray, "..."] | None:
        return None if field is None else np.array(field[row][..., :frames, :])

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
