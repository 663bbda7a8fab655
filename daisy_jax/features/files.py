"""Encoding many sound files: reading ahead in threads, batches of similar length."""

import collections
import concurrent.futures
import contextlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypedDict, Unpack

import jax
import numpy as np
import numpy.typing as npt
from jaxtyping import Array, Float, Int, Shaped

from daisy_jax import audio
from daisy_jax.encode import Encoded, encode
from daisy_jax.errors import InputError, is_out_of_memory
from daisy_jax.features.file_results import FileResult, WindowResult, joined
from daisy_jax.features.read_ahead import FilePart, Unreadable, read_parts
from daisy_jax.model.criteria import Criterion
from daisy_jax.model.hubert import Hubert
from daisy_jax.parallel import platform_of

IN_WORK = 64
"""Files, or windows of them, in work at a time: sorted into batches, given back in input order."""
AT_ONCE = 2
"""Batches on the device at a time: one fills the gaps of the other."""
BATCH_SECONDS = {"cpu": 10}
"""Audio of one batch, padding included, by platform: as much as fills the device."""
BATCH_SECONDS_ELSEWHERE = 160
MAX_SECONDS = 60.0
"""Longer files are refused unless told otherwise: attention takes the square of their length."""
CONTEXT_SECONDS = 1.0
"""What a window sees on each side beside its own frames."""


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
    window_seconds: float | None = None,
    context_seconds: float = CONTEXT_SECONDS,
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
      window_seconds: longer recordings are read, cut and encoded in windows of so many seconds, to
        the nearest frame (20 ms), each with an exit of its own; the model normalises each by
        itself, too. None: nothing is cut. Memory follows the window, and not the recording. A
        file that turns out to be damaged far behind is an error as a whole.
      context_seconds: of audio on each side of a window; its frames are dropped.
      **options: of `encode`: threshold (a scalar), allowed, layer_weights, return_hidden_states.

    Yields:
      One `FileResult` a path, in input order. At most 64 files or windows are in work, and 32 more
      files are read. There are exactly `audio.frame_count(samples)` frames, cut or not.

    Raises:
      InputError: an option is wrong.
    """
    if isinstance(paths, (str, os.PathLike)):
        raise InputError(f"paths is {os.fspath(paths)!r}; it must be a list of paths")
    if np.ndim(options.get("threshold") or 0.0):
        raise InputError("threshold must be one number for all files; call once for each threshold")
    cut, widths = None, audio.WIDTHS
    if window_seconds is not None:
        cut = audio.cut_of(window_seconds, context_seconds, max_seconds)
        widths = cut.widths
        max_seconds = math.inf  # of what the model sees at once, and not of files
    device = concurrent.futures.ThreadPoolExecutor(AT_ONCE)
    with contextlib.closing(read_parts(paths, max_seconds, cut)) as parts:
        try:
            yield from joined(_results(device, model, parts, widths, options))
        finally:
            device.shutdown(cancel_futures=True)


def _results(
    device: concurrent.futures.Executor,
    model: Hubert,
    parts: Iterator[FilePart | Unreadable],
    widths: Sequence[int],
    options: EncodeOptions,
) -> Iterator[tuple[FileResult, bool]]:
    """Results in the order of the parts, and whether each is its file's last."""
    waiting: dict[int, list[_Member]] = {}  # by width
    running: collections.deque[_Batch] = collections.deque()
    done: dict[int, tuple[FileResult, bool]] = {}
    first = 0  # the oldest part that was not given back

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
        waveforms = [member.part.waveform for member in members]
        batch, lengths = audio.pad_batch(waveforms, width, rows)
        return _Batch(members, width, rows, device.submit(run, batch, lengths))

    def start(width: int) -> None:
        running.append(started(waiting.pop(width), width, _rows(width, seconds)))

    def finish() -> None:
        done.update(_served(running.popleft(), started, running))

    for number, part in enumerate(parts):
        if isinstance(part, Unreadable):
            done[number] = FileResult(part.path, part.error), True
        else:
            width = audio.padded_width(len(part.waveform), widths)
            members = waiting.setdefault(width, [])
            members.append(_Member(number, part))
            if len(members) == _rows(width, seconds):
                start(width)
        if number - first + 1 >= IN_WORK and first not in done:
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
    """A part on its way into a batch."""

    number: int
    part: FilePart


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
) -> Iterator[tuple[int, tuple[FileResult, bool]]]:
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
            yield member.number, (_result(member.part, out, row), member.part.window.is_last)
        return
    concurrent.futures.wait([other.computing for other in others])  # they need memory, too
    if rows > 1:
        half = rows // 2
        for first in range(0, len(members), half):
            yield from _served(started(members[first : first + half], width, half), started, others)
    elif not alone:
        yield from _served(started(members, width, rows), started, others, alone=True)
    else:
        ((number, (path, window, waveform, _)),) = members
        length = len(waveform) / audio.SAMPLE_RATE
        text = (
            f"{path}: not enough memory for {length:.0f} s at once; give shorter windows (--window)"
        )
        yield number, (FileResult(path, text), window.is_last)


def _rows(width: int, seconds: float) -> int:
    """Rows of every batch of a width, with up to so many seconds of audio."""
    # A batch that needs more than a quarter of what is in work would seldom fill.
    return min(max(1, int(seconds * audio.SAMPLE_RATE // width)), IN_WORK // 4)


def _result(part: FilePart, out: Encoded, row: int) -> FileResult:
    """What became of one part."""
    window, frames = part.window, part.window.frames
    exit_layer, forced = int(out.exit_layer[row]), bool(out.forced[row])
    entropy = np.array(out.entropy[row])

    def kept(
        field: Shaped[Array | np.ndarray, "batch ..."] | None,
    ) -> Shaped[np.ndarray, "..."] | None:
        return None if field is None else np.array(field[row][..., window.kept, :])

    start, seconds = window.start_seconds, window.seconds
    return FileResult(
        path=part.path,
        seconds=seconds,
        exit_layer=exit_layer,
        forced=forced,
        entropy=entropy,
        num_frames=len(frames),
        last_hidden=kept(out.last_hidden),
        hidden_states=kept(out.hidden_states),
        pooled=kept(out.pooled),
        notes=part.notes,
        frame_exit_layer=np.full(len(frames), exit_layer, np.int32),
        windows=(WindowResult(start, seconds, exit_layer, forced, entropy),),
    )
