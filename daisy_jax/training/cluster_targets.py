"""Frame targets of HuBERT pretraining: k-means clusters of MFCC, then of a model's own features."""

from collections.abc import Callable

import numpy as np

from daisy_jax import audio
from daisy_jax.data.corpus import Corpus
from daisy_jax.errors import InputError
from daisy_jax.reporting import followed

# How much deltas and their deltas count beside the cepstra, which tell phones apart better.
DELTA_WEIGHTS = (1.0, 0.6, 0.4)


def mfcc(waveform: np.ndarray) -> np.ndarray:
    """39 features a frame: 13 cepstra and their first and second differences over time.

    Args:
      waveform: float [samples], 16 kHz.

    Returns:
      float32 [frames, 39], each coefficient standardised over the utterance and weighted by its
      kind; windows of 25 ms every 20 ms, the same samples that HuBERT's frames see.
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
    features: Callable[[np.ndarray], np.ndarray],
    clusters: int,
    seed: int,
    fit_frames: int = 200_000,
) -> tuple[np.ndarray, np.ndarray]:
    """Labels every frame of a corpus with the nearest of `clusters` centroids.

    Args:
      corpus: utterances.
      features: float [samples] -> float [frames, features].
      clusters: how many centroids.
      seed: of the choice of frames and of k-means.
      fit_frames: centroids are fitted on about so many frames, drawn evenly over the corpus.

    Returns:
      labels int16 [all frames], utterance after utterance, and centroids float32
      [clusters, features].
    """
    from sklearn.cluster import MiniBatchKMeans

    rows = [
        features(corpus.read(i, 0, int(corpus.lengths[i]))).astype(np.float16)
        for i in followed(range(len(corpus.names)), "clustering")
    ]
    stacked = np.concatenate(rows)
    if len(stacked) < clusters:
        raise InputError(
            f"{len(stacked)} frames of speech for {clusters} clusters; give more speech or ask for "
            "fewer clusters"
        )
    rng = np.random.default_rng(seed)
    sample = rng.choice(len(stacked), min(fit_frames, len(stacked)), replace=False)
    kmeans = MiniBatchKMeans(
        clusters,
        batch_size=10_000,
        n_init=5,  # pyright: ignore[reportArgumentType]
        max_no_improvement=50,
        random_state=seed,
    )
    kmeans.fit(stacked[sample].astype(np.float32))
    centroids = np.asarray(kmeans.cluster_centers_, np.float32)
    return nearest_centroid(stacked, centroids).astype(np.int16), centroids


def nearest_centroid(features: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """The nearest centroid, [clusters, features], of each row of features [frames, features]."""
    labels = []
    for block in np.array_split(features, max(1, len(features) // 50_000)):
        # The squared distance less the row's own norm, which does not change the order.
        distance = np.sum(centroids**2, axis=1) - 2 * block.astype(np.float32) @ centroids.T
        labels.append(np.argmin(distance, axis=1))
    return np.concatenate(labels)
