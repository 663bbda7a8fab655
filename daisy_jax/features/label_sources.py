"""Frame labels of a corpus from anywhere: feature stores, fairseq's .km files, alignments."""

import collections
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from daisy_jax import audio
from daisy_jax.data.batches import FrameLabels, LabelsInOrder, WholeBatches, read_batch
from daisy_jax.data.corpus import Corpus, Selection
from daisy_jax.data.file_list import read_list
from daisy_jax.data.labels.alignments import alignment_files, frame_labels_of, read_tier
from daisy_jax.errors import InputError
from daisy_jax.features.extractor import BATCH_SECONDS
from daisy_jax.features.shard_format import part_files
from daisy_jax.features.store import FeatureStore, StoredLabels
from daisy_jax.reporting import followed, logger
from daisy_jax.whole_files import read_text

Value = TypeVar("Value")


class Labelled(NamedTuple):
    """The utterances of a corpus that have labels."""

    corpus: Corpus
    labels: FrameLabels
    classes: tuple[str, ...]
    """What each label means: its name in an alignment, or its number."""


def open_labels(source: str, corpus: Corpus, tier: str) -> Labelled:
    """Labels of a corpus' frames; utterances without any are left out, and a line says so.

    A feature store must have all utterances, but for those whose files could not be read.

    Args:
      source: a feature store of labels or units, a .km file of fairseq whose .tsv lies beside it,
        or a folder of TextGrids.
      corpus: whose frames they are.
      tier: of the TextGrids.

    Raises:
      InputError: it is none of these, it is damaged, or belongs to other recordings.
    """
    path = pathlib.Path(source)
    if path.suffix == ".km":
        return _of_km(path, corpus)
    if not path.is_dir():
        raise InputError(
            f"{source}: no such folder; give a feature store of labels or units, a .km file, or a "
            "folder of TextGrids"
        )
    if part_files(path):
        return _of_store(FeatureStore(path), corpus)
    return _of_alignments(path, corpus, tier)


def labelled_frames(labelled: Labelled) -> int:
    """How many frames have a label; of long utterances the first minute."""
    counts = audio.frame_count(np.minimum(labelled.corpus.lengths, audio.WIDTHS[-1]))
    read = (labelled.labels.read(n, slice(0, int(count))) for n, count in enumerate(counts))
    return sum(int(np.sum(labels >= 0)) for labels in read)


def labelled_batches(labelled: Labelled) -> Iterator[tuple[list[int], dict[str, np.ndarray]]]:
    """Whole utterances, of long ones the first minute, in batches of similar length.

    Yields the numbers of the utterances in the first rows, and "waveform", "lengths" and "labels";
    further rows are empty.
    """
    lengths = np.minimum(labelled.corpus.lengths, audio.WIDTHS[-1])
    batches = WholeBatches(lengths, round(BATCH_SECONDS * audio.SAMPLE_RATE))
    for number in followed(range(len(batches)), "encoding"):
        crops = batches(number)
        width = audio.padded_width(crops[0].samples)
        read = read_batch(labelled.corpus, labelled.labels, crops, width)
        yield [crop.index for crop in crops if crop.samples], read


def _of_store(store: FeatureStore, corpus: Corpus) -> Labelled:
    corpus, numbers = store.of(corpus)
    labels = StoredLabels(store, numbers)
    return Labelled(corpus, labels, tuple(map(str, range(labels.num_classes))))


def _of_km(path: pathlib.Path, corpus: Corpus) -> Labelled:
    files = read_list(path.with_suffix(".tsv"))
    lines = read_text(path).splitlines()
    if len(lines) != len(files.names) + files.repeated:
        raise InputError(
            f"{path}: has {len(lines)} lines, and {path.with_suffix('.tsv')} lists "
            f"{len(files.names) + files.repeated} files; make one of them again"
        )
    if files.repeated:
        raise InputError(
            f"{path.with_suffix('.tsv')}: {files.repeated} lines repeat earlier ones; list every "
            "file once"
        )
    by_name = {}
    for number, (name, line) in enumerate(zip(files.names, lines, strict=True), 1):
        if not all(word.isdecimal() for word in line.split()):
            raise InputError(
                f"{path}:{number}: {line[:60]!r} is more than numbers of clusters; give one number "
                "for each frame"
            )
        by_name[name] = np.asarray(line.split(), np.int32)
    found = matched(path, by_name, corpus.names)
    rows = []
    corpus = _with_labels(path, corpus, found)
    for name, frames in zip(corpus.names, audio.frame_count(corpus.lengths), strict=True):
        labels = found[name]
        if len(labels) != frames:
            raise InputError(
                f"{path}: has {len(labels)} numbers for the {frames} frames of {name}; give 50 a "
                "second, of the same recordings"
            )
        rows.append(labels)
    labels = np.concatenate(rows)
    return Labelled(
        corpus,
        LabelsInOrder(corpus, labels),
        tuple(map(str, range(int(labels.max(initial=-1)) + 1))),
    )


def _of_alignments(folder: pathlib.Path, corpus: Corpus, tier: str) -> Labelled:
    files = matched(folder, alignment_files(folder), corpus.names)
    corpus = _with_labels(folder, corpus, files)
    tiers = [read_tier(files[name], tier) for name in followed(corpus.names, "alignments")]
    names = sorted({interval.label for intervals in tiers for interval in intervals})
    numbers = {name: number for number, name in enumerate(names)}
    counts = audio.frame_count(corpus.lengths)
    labels = [
        frame_labels_of(intervals, int(frames), numbers)
        for intervals, frames in zip(tiers, counts, strict=True)
    ]
    return Labelled(corpus, LabelsInOrder(corpus, np.concatenate(labels)), tuple(names))


def matched(
    source: pathlib.Path, by_name: Mapping[str, Value], names: Sequence[str]
) -> dict[str, Value]:
    """What belongs to each utterance that has something, by the utterance's name.

    Names are paths, with or without an ending; where the folders differ, the last part decides.

    Raises:
      InputError: that part is the name of several.
    """
    by_path: dict[str, Value] = {}
    by_stem: dict[str, list[Value]] = collections.defaultdict(list)
    for name, value in by_name.items():
        path = pathlib.PurePath(name).with_suffix("")
        by_path[path.as_posix()] = value
        by_stem[path.name].append(value)
    paths = [pathlib.PurePath(name).with_suffix("") for name in names]
    stems = collections.Counter(path.name for path in paths)
    found = {}
    for name, path in zip(names, paths, strict=True):
        if path.as_posix() in by_path:
            found[name] = by_path[path.as_posix()]
        elif path.name in by_stem:
            if len(by_stem[path.name]) > 1 or stems[path.name] > 1:
                raise InputError(
                    f"{source}: {path.name} is the name of several utterances, such as {name}; use "
                    "the paths of the recordings below their folder"
                )
            found[name] = by_stem[path.name][0]
    return found


def _with_labels(source: pathlib.Path, corpus: Corpus, found: Mapping[str, object]) -> Selection:
    """The utterances for which something was found."""
    missing = [name for name in corpus.names if name not in found]
    if len(missing) == len(corpus.names):
        raise InputError(
            f"{source}: has no labels of these recordings, such as {missing[0]}; give those of the "
            "same files"
        )
    if missing:
        logger.warning(
            "%s: %d of %d utterances have no labels and are left out, the first is %s",
            *(source, len(missing), len(corpus.names), missing[0]),
        )
    return Selection(corpus, np.flatnonzero([name in found for name in corpus.names]))
