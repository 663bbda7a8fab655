"""Frame targets of HuBERT pretraining: k-means clusters of MFCC, then of a model's own features."""

import pathlib
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from daisy_jax import audio
from daisy_jax.data.corpus import Corpus
from daisy_jax.errors import InputError
from daisy_jax.model.frame_labels import nearest_centroid
from daisy_jax.reporting import followed, leave_out_item
from daisy_jax.whole_files import numbers_of, read_arrays, whole_files

# How much deltas and their deltas count beside the cepstra, which tell phones apart better.
DELTA_WEIGHTS = (1.0, 0.6, 0.4)


def mfcc(waveform: Float[np.ndarray, " samples"]) -> Float[np.ndarray, "frames 39"]:
    """39 features a frame, float32: 13 cepstra and their first and second differences over time.

    Each coefficient is standardised over the utterance and weighted by its kind. Windows of 25 ms
    come every 20 ms: the same samples, at 16 kHz, that HuBERT's frames see.
    """
    import librosa

    cepstra = librosa.feature.mfcc(
        y=waveform,
        sr=audio.SAMPLE_RATE,
        n_mfcc=13,
        n_fft=audio.FRAME_WINDOW,
        hop_length=audio.FRAME_HOP,
        n_mels=40,
        center=False,
    )
    parts = [cepstra] + [
        librosa.feature.delta(cepstra, order=order, width=5, mode="nearest") for order in (1, 2)
    ]
    parts = [
        weight
        * (part - part.mean(axis=1, keepdims=True))
        / (part.std(axis=1, keepdims=True) + 1e-3)
        for weight, part in zip(DELTA_WEIGHTS, parts, strict=True)
    ]
    return np.concatenate(parts).T.astype(np.float32)


def cluster_targets(
    corpus: Corpus,
    features: Callable[[Float[np.ndarray, " samples"]], Float[np.ndarray, "frames features"]],
    clusters: int,
    seed: int,
    fit_frames: int = 200_000,
) -> tuple[Int[np.ndarray, " all_frames"], Float[np.ndarray, "clusters features"]]:
    """Labels every frame of a corpus with the nearest of `clusters` centroids of its features.

    Centroids are fitted on about `fit_frames` frames, drawn evenly over the corpus.

    Returns:
      labels int16, utterance after utterance, and centroids float32. Frames of an utterance that
      cannot be read, which training leaves out, have the label 0.
    """
    counts = audio.frame_count(corpus.lengths)
    rows = []
    readable = np.ones(len(counts), bool)
    for index, name in enumerate(followed(corpus.names, "clustering")):
        try:
            waveform = corpus.read(index, 0, int(corpus.lengths[index]))
        except Exception as error:
            leave_out_item(name, error)
            readable[index] = False
            continue
        rows.append(features(waveform).astype(np.float16))
    stacked = np.concatenate(rows) if rows else np.zeros((0, 1), np.float16)
    rng = np.random.default_rng(seed)
    sample = rng.choice(len(stacked), min(fit_frames, len(stacked)), replace=False)
    centroids = fit_centroids(stacked[sample].astype(np.float32), clusters, seed)
    labels = np.zeros(counts.sum(), np.int16)
    labels[np.repeat(readable, counts)] = nearest_centroid(stacked, centroids)
    return labels, centroids


def fit_centroids(
    frames: Float[np.ndarray, "frames features"], clusters: int, seed: int
) -> Float[np.ndarray, "clusters features"]:
    """Centroids of mini-batch k-means, float32.

    Raises:
      InputError: there are fewer frames than clusters.
    """
    from sklearn.cluster import MiniBatchKMeans

    if len(frames) < clusters:
        raise InputError(
            f"{len(frames)} frames of speech for {clusters} clusters; give more speech or ask for "
            "fewer clusters"
        )
    kmeans = MiniBatchKMeans(
        clusters,
        batch_size=10_000,
        n_init=5,  # pyright: ignore[reportArgumentType]
        max_no_improvement=50,
        random_state=seed,
    )
    kmeans.fit(frames)
    return np.asarray(kmeans.cluster_centers_, np.float32)


def save_targets(
    path: pathlib.Path,
    labels: Int[np.ndarray, " all_frames"],
    centroids: Float[np.ndarray, "clusters features"],
) -> None:
    """Writes what `cluster_targets` returned into one .npz, under these names, or nothing."""
    with whole_files(path) as (partial,), open(partial, "wb") as stream:
        np.savez(stream, labels=labels, centroids=centroids)


def load_targets(
    path: pathlib.Path,
) -> tuple[Int[np.ndarray, " all_frames"], Float[np.ndarray, "clusters features"]]:
    """Labels and centroids that `save_targets` wrote; an InputError if the file is damaged."""
    remedy = "remove it, and train/pretrain.py --resume makes it again"
    try:
        labels, found = read_arrays(path, "labels", "centroids")
        centroids = numbers_of(path, found)
    except InputError as error:
        raise InputError(f"{error} ({remedy})") from None
    if labels.dtype.kind not in "iu" or labels.ndim != 1 or centroids.ndim != 2:
        shapes = f"labels {labels.dtype} {labels.shape}, centroids {centroids.shape}"
        raise InputError(f"{path}: holds {shapes}, no numbers of clusters; {remedy}")
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(centroids):
        raise InputError(
            f"{path}: its labels are {labels.min()} to {labels.max()} of {len(centroids)} clusters;"
            f" {remedy}"
        )
    return labels, centroids
