"""HuBERT's own labels of frames, features of one layer for clustering, and the nearest cluster."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jaxtyping import Array, Bool, Float, Int

from daisy_jax import audio
from daisy_jax.errors import InputError
from daisy_jax.model.hubert import Hubert, embed, final_norm, require_head
from daisy_jax.model.inputs import checked_batch
from daisy_jax.model.layer_arrays import first_layers
from daisy_jax.model.layer_loops import last_block


def label_frames(
    model: Hubert, last: Float[Array, "batch frames dim"], frame_mask: Bool[Array, "batch frames"]
) -> Int[Array, "batch frames"]:
    """Labels from the last block's output, int32; -1 on padded frames."""
    scores = require_head(model)(final_norm(model, last))
    return jnp.where(frame_mask, jnp.argmax(scores, axis=-1).astype(jnp.int32), -1)


def frame_labels(
    model: Hubert,
    waveform: Float[Array, "batch samples"] | npt.ArrayLike,
    lengths: Int[Array, " batch"] | npt.ArrayLike | None = None,
) -> Int[Array, "batch frames"]:
    """HuBERT's own label of each frame: the best-scoring cluster on unmasked input.

    Args:
      model: a model with HuBERT's prediction head.
      waveform: float [batch, samples], 16 kHz.
      lengths: int [batch], true sample counts; None: all full.

    Returns:
      int32 [batch, frames], clusters from 0; -1 on padded frames.

    Raises:
      InputError: the model has no prediction head, or an argument is of the wrong shape or type.

    Paper: section 3.1, "running HuBERT and taking the argmax from the last linear layer".
    """
    require_head(model)
    waveform, lengths = checked_batch(waveform, lengths)
    return _compiled(model, waveform, lengths)


@jax.jit
def _compiled(
    model: Hubert, waveform: Float[Array, "batch samples"], lengths: Int[Array, " batch"]
) -> Int[Array, "batch frames"]:
    embedded = embed(model, waveform, lengths)
    return label_frames(model, last_block(model, embedded), embedded.frame_mask)


def block_features(
    model: Hubert, layer: int
) -> Callable[[Float[np.ndarray, " samples"]], Float[np.ndarray, "frames dim"]]:
    """A function from one waveform to layer `layer`'s output.

    For use on the host; waveforms are padded to whole seconds, so that few shapes are compiled.
    """
    if not 1 <= layer <= model.config.num_layers:
        raise InputError(f"layer {layer} of a model with {model.config.num_layers} layers")
    shallow = model.replace(layers=first_layers(model.layers, layer))

    @jax.jit
    def run(
        model: Hubert, waveform: Float[Array, "1 samples"], lengths: Int[Array, " 1"]
    ) -> Float[Array, "frames dim"]:
        return last_block(model, embed(model, waveform, lengths))[0]

    def features(waveform: Float[np.ndarray, " samples"]) -> Float[np.ndarray, "frames dim"]:
        hidden = run(shallow, *audio.batch_of_one(waveform))
        return np.asarray(hidden)[: audio.frame_count(len(waveform))]

    return features


def nearest_centroid(
    features: Float[np.ndarray, "frames features"],
    centroids: Float[np.ndarray, "clusters features"],
) -> Int[np.ndarray, " frames"]:
    """Number of the centroid nearest to each frame's features."""
    labels = []
    for block in np.array_split(features, max(1, len(features) // 50_000)):
        # The squared distance less the row's own norm, which does not change the order.
        distance = np.sum(centroids**2, axis=1) - 2 * block.astype(np.float32) @ centroids.T
        labels.append(np.argmin(distance, axis=1))
    return np.concatenate(labels)
