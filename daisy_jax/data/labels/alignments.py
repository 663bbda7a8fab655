"""Alignments: what is said when, as Praat's TextGrids, a file an utterance.

A folder of them has the layout of the recordings' folder (as the Montreal Forced Aligner writes
it, and train/align.py), or any other, as long as no two files have the same name.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from daisy_jax import audio
from daisy_jax.errors import InputError, said_of
from daisy_jax.whole_files import whole_files

SUFFIX = ".TextGrid"


class Interval(NamedTuple):
    """A label, and when it holds; the label of silence may be empty."""

    start: float
    """Seconds."""
    end: float
    """Seconds."""
    label: str


def write_alignment(
    path: pathlib.Path, seconds: float, tiers: Mapping[str, Sequence[Interval]]
) -> None:
    """Writes one utterance's tiers as a TextGrid, all of it or nothing."""
    from praatio import textgrid

    grid: Any = textgrid.Textgrid(0.0, seconds)
    make_tier: Any = textgrid.IntervalTier
    for name, intervals in tiers.items():
        grid.addTier(make_tier(name, [tuple(each) for each in intervals], 0.0, seconds))
    with whole_files(path) as (partial,):
        grid.save(str(partial), format="long_textgrid", includeBlankSpaces=True)


def read_tier(path: pathlib.Path, tier: str) -> list[Interval]:
    """The intervals of one tier, in order; parts without a label have an empty one.

    Raises:
      InputError: the file is no TextGrid, or has no such tier of intervals.
    """
    from praatio import textgrid

    try:
        grid: Any = textgrid.openTextgrid(str(path), includeEmptyIntervals=True)
    except Exception as error:  # its parser fails in many ways
        raise InputError(f"{said_of(path, error)}; align it again") from None
    if tier not in grid.tierNames:
        names = ", ".join(grid.tierNames) or "none"
        raise InputError(f"{path}: no tier {tier!r} there, but {names}; give another --tier")
    entries = grid.getTier(tier)
    if not isinstance(entries, textgrid.IntervalTier):
        raise InputError(f"{path}: tier {tier!r} holds points in time; give one of intervals")
    return [Interval(*entry) for entry in entries.entries]


def frame_labels_of(
    intervals: Sequence[Interval], frames: int, classes: Mapping[str, int]
) -> Int[np.ndarray, " {frames}"]:
    """The class that holds in the middle of each frame, int32; -1 where no interval lies.

    A frame sees 25 ms; its middle is 12.5 ms behind its beginning.
    """
    labels = np.full(frames, -1, np.int32)
    if not intervals:
        return labels
    middles = (np.arange(frames) * audio.FRAME_HOP + audio.FRAME_WINDOW / 2) / audio.SAMPLE_RATE
    starts = np.asarray([interval.start for interval in intervals])
    ends = np.asarray([interval.end for interval in intervals])
    numbers = np.asarray([classes[interval.label] for interval in intervals], np.int32)
    last = np.searchsorted(starts, middles, side="right") - 1
    inside = (last >= 0) & (middles < ends[last])
    labels[inside] = numbers[last[inside]]
    return labels


def alignment_files(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """All TextGrids below a folder, by their paths in it.

    Raises:
      InputError: there is none.
    """
    found = sorted(folder.rglob(f"*{SUFFIX}"))
    if not found:
        raise InputError(f"{folder}: no alignments there (*{SUFFIX}); make some (train/align.py)")
    return {path.relative_to(folder).as_posix(): path for path in found}
