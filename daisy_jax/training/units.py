"""Finding discrete units: frames drawn from any number of files, and how pure the units are."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from daisy_jax.model.frame_labels import nearest_centroid
from daisy_jax.reporting import followed


def draw_frames(
    utterances: Iterable[Float[np.ndarray, "_ dim"]],
    count: int,
    seed: int,
    total: int | None = None,
) -> Float[np.ndarray, "frames dim"]:
    """Up to `count` frames, each as likely as any other, of utterances whose number nobody knows.

    At most twice as many are held, and an utterance. The same utterances give the same frames.
    `total` is how many utterances there will be, if it is known, for progress.
    """
    rng = np.random.default_rng(seed)
    kept: list[np.ndarray] = []
    keys: list[np.ndarray] = []  # frames with the smallest keys stay
    held, bound = 0, np.inf

    def smallest() -> None:
        nonlocal kept, keys, held, bound
        frames, numbers = np.concatenate(kept), np.concatenate(keys)
        if len(numbers) > count:
            chosen = np.sort(np.argpartition(numbers, count)[:count])
            frames, numbers = frames[chosen], numbers[chosen]
            bound = float(numbers.max())
        kept, keys, held = [frames], [numbers], len(numbers)

    for frames in followed(utterances, "encoding", total):
        numbers = rng.random(len(frames))
        chosen = numbers < bound
        kept.append(frames[chosen])
        keys.append(numbers[chosen])
        held += int(chosen.sum())
        if held > 2 * count:
            smallest()
    if not kept:
        return np.zeros((0, 1), np.float32)
    smallest()
    return kept[0]


def inertia(
    frames: Float[np.ndarray, "frames dim"], centroids: Float[np.ndarray, "clusters dim"]
) -> float:
    """Mean squared distance of frames to their nearest centroid."""
    total = 0.0
    for block in np.array_split(frames, max(1, len(frames) // 50_000)):
        apart = block - centroids[nearest_centroid(block, centroids)]
        total += float(np.sum(apart.astype(np.float64) ** 2))
    return total / len(frames)


class Purity(NamedTuple):
    """How well units and labels of the same frames agree, each between 0 and 1.

    Source: HuBERT (Hsu et al., 2021), section IV-D, with labels in the place of phones.
    """

    label: float
    """Share of the frames whose label is the most frequent one of their unit."""
    unit: float
    """Share of the frames whose unit is the most frequent one of their label."""
    information: float
    """Mutual information, as a share of the labels' entropy; 1 if there is one label alone."""


def purity(units: Int[np.ndarray, " frames"], labels: Int[np.ndarray, " frames"]) -> Purity:
    """Of units and labels from 0, at least one frame."""
    counts = np.zeros((units.max() + 1, labels.max() + 1), np.int64)
    np.add.at(counts, (units, labels), 1)
    joint = counts / counts.sum()
    of_unit, of_label = joint.sum(axis=1, keepdims=True), joint.sum(axis=0, keepdims=True)
    there = joint > 0
    shared = np.sum(joint[there] * np.log(joint[there] / (of_unit * of_label)[there]))
    entropy = -np.sum(of_label[of_label > 0] * np.log(of_label[of_label > 0]))
    return Purity(
        float(joint.max(axis=1).sum()),
        float(joint.max(axis=0).sum()),
        float(shared / entropy) if entropy > 0 else 1.0,
    )
