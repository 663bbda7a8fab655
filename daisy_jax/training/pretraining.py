"""HuBERT pretraining: span masks and the masked-prediction loss."""

import jax
import jax.numpy as jnp
import numpy as np

from daisy_jax.model.hubert import Hubert, embed, final_norm, require_head
from daisy_jax.model.layer_loops import last_block


def span_mask(
    num_frames: np.ndarray,
    frames: int,
    rng: np.random.Generator,
    start_probability: float = 0.08,
    span: int = 10,
) -> np.ndarray:
    """Frames to be masked: spans of `span` frames whose starts are drawn without replacement.

    Args:
      num_frames: int [rows], valid frames of each row.
      frames: width of the result.
      rng: source of the starts.
      start_probability: share of the frames that begin a span; spans may overlap.
      span: frames.

    Returns:
      bool [rows, frames]; at least one span in each row that has frames.

    Source: HuBERT (Hsu et al. 2021), section IV-C; wav2vec 2.0's span masking.
    """
    mask = np.zeros((len(num_frames), frames), bool)
    for row, valid in enumerate(num_frames):
        places = max(int(valid) - span + 1, min(int(valid), 1))
        count = min(max(int(start_probability * valid + rng.random()), 1), places)
        starts = rng.choice(places, count, replace=False) if places else np.zeros(0, int)
        for start in starts:
            mask[row, start : start + span] = True
        mask[row, valid:] = False
    return mask


def masked_prediction_loss(
    model: Hubert,
    waveform: jax.Array,
    lengths: jax.Array,
    masked: jax.Array,
    labels: jax.Array,
    unmasked_weight: jax.Array,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Cross entropy of HuBERT's head on masked frames, and with a weight on the others.

    Args:
      model: a model with a prediction head.
      waveform: float [batch, samples], 16 kHz.
      lengths: int [batch], true sample counts.
      masked: bool [batch, frames], frames hidden from the transformer.
      labels: int [batch, frames], clusters from 0; whatever on padded frames.
      unmasked_weight: scalar, of the loss on the frames that are seen.

    Returns:
      the loss, nats (a mean over the masked frames plus the weighted mean over the others), and
      {"accuracy", "unmasked_accuracy": share of the frames predicted right}.

    Source: HuBERT (Hsu et al. 2021), eq. (1) with α = 1 / (1 + unmasked_weight), times 1 / α.
    """
    embedded = embed(model, waveform, lengths, masked)
    scores = require_head(model)(final_norm(model, last_block(model, embedded)))
    log_probs = jax.nn.log_softmax(scores)
    loss = -jnp.take_along_axis(log_probs, labels[..., None], axis=-1)[..., 0]
    hits = (jnp.argmax(scores, axis=-1) == labels).astype(jnp.float32)

    def mean_over(mask, values):
        count = jnp.sum(mask, dtype=jnp.float32)
        return jnp.sum(jnp.where(mask, values, 0)) / jnp.maximum(count, 1)

    hidden, seen = embedded.frame_mask & masked, embedded.frame_mask & ~masked
    metrics = {"accuracy": mean_over(hidden, hits), "unmasked_accuracy": mean_over(seen, hits)}
    return mean_over(hidden, loss) + unmasked_weight * mean_over(seen, loss), metrics
