"""HuBERT pretraining: span masks and the masked-prediction loss."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from daisy_jax.model.hubert import Hubert, embed, final_norm, require_head
from daisy_jax.model.layer_loops import last_block


def span_mask(
    num_frames: Int[np.ndarray, " rows"],
    frames: int,
    rng: np.random.Generator,
    start_probability: float = 0.08,
    span: int = 10,
) -> Bool[np.ndarray, "rows {frames}"]:
    """Frames to be masked: spans of `span` frames whose starts are drawn without replacement.

    That share of a row's valid frames begins a span, at least one where there are frames; spans may
    overlap. Masked frames are true.

    Source: HuBERT (Hsu et al. 2021), section IV-C; wav2vec 2.0's span masking.
    """
    mask = np.zeros((len(num_frames), frames), bool)
    for row, valid in enumerate(num_frames):
        room = max(int(valid) - span + 1, min(int(valid), 1))  # frames that a span may begin at
        count = min(max(int(start_probability * valid + rng.random()), 1), room)
        starts = rng.choice(room, count, replace=False) if room else np.zeros(0, int)
        for start in starts:
            mask[row, start : start + span] = True
        mask[row, valid:] = False
    return mask


def masked_prediction_loss(
    model: Hubert,
    waveform: Float[Array, "batch samples"],
    lengths: Int[Array, " batch"],
    masked: Bool[Array, "batch frames"],
    labels: Int[Array, "batch frames"],
    unmasked_weight: Float[Array, ""],
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Cross entropy of the prediction head on masked frames, and with a weight on the others.

    Labels are classes from 0; frames without one (-1) and padded frames do not count. Frames that
    are `masked` are hidden from the transformer.

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

    def mean_over(
        mask: Bool[Array, "batch frames"], values: Float[Array, "batch frames"]
    ) -> Float[Array, ""]:
        count = jnp.sum(mask, dtype=jnp.float32)
        return jnp.sum(jnp.where(mask, values, 0)) / jnp.maximum(count, 1)

    labelled = embedded.frame_mask & (labels >= 0)
    hidden, seen = labelled & masked, labelled & ~masked
    metrics = {"accuracy": mean_over(hidden, hits), "unmasked_accuracy": mean_over(seen, hits)}
    return mean_over(hidden, loss) + unmasked_weight * mean_over(seen, loss), metrics
