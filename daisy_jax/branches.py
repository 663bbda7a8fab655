"""Early-exit branches: one linear classifier a layer, its loss and its entropy."""

import jax
import jax.numpy as jnp
from flax import nnx


class Branches(nnx.Module):
    """L linear classifiers, stacked: kernel [L, dim, classes] and bias [L, classes], float32.

    `jax.tree.map(lambda leaf: leaf[k], branches)` is layer k's classifier. Paper: section 3.1; the
    bias is the authors'.
    """

    def __init__(self, num_layers: int, dim: int, num_classes: int, *, rngs: nnx.Rngs):
        init = nnx.initializers.lecun_normal(batch_axis=0)
        self.kernel = nnx.Param(init(rngs.params(), (num_layers, dim, num_classes)))
        self.bias = nnx.Param(jnp.zeros((num_layers, num_classes)))

    def __call__(self, tapped: jax.Array) -> jax.Array:
        """One layer's tapped features [batch, frames, dim] -> logits [batch, frames, classes].

        Always a float32 product at the highest precision: the reduced precision that accelerators
        use by default would move exit decisions.
        """
        logits = jnp.einsum(
            "btd,dc->btc",
            tapped.astype(jnp.float32),
            self.kernel[...],
            precision=jax.lax.Precision.HIGHEST,
        )
        return logits + self.bias[...][None, None]


def frame_mean(values: jax.Array, frame_mask: jax.Array) -> jax.Array:
    """Mean of values [..., frames] over each row's valid frames; 0 for a row without frames."""
    total = jnp.sum(jnp.where(frame_mask, values, 0), axis=-1)
    return total / jnp.maximum(jnp.sum(frame_mask, axis=-1), 1).astype(total.dtype)


def utterance_entropy(logits: jax.Array, frame_mask: jax.Array) -> jax.Array:
    """Mean entropy of a branch's predictions over an utterance's valid frames.

    Args:
      logits: float [batch, frames, classes].
      frame_mask: bool [batch, frames].

    Returns:
      float32 [batch], nats, between 0 and ln(classes); 0 for a row without frames.

    Paper: eq. (2), section 3.1.
    """
    scores = logits.astype(jnp.float32)
    scores = scores - jnp.max(scores, axis=-1, keepdims=True)
    weights = jnp.exp(scores)  # probabilities times their sum
    total = jnp.sum(weights, axis=-1)
    # A class of probability zero adds nothing, also where its logit is minus infinity. The sum of
    # two terms of one sign: nothing cancels.
    expected = jnp.sum(weights * jnp.where(weights > 0, scores, 0), axis=-1) / total
    return frame_mean(jnp.log(total) - expected, frame_mask)


def branch_loss(logits: jax.Array, labels: jax.Array, frame_mask: jax.Array) -> jax.Array:
    """Cross entropy of one branch: the mean over an utterance's frames, then over utterances.

    Arguments as of `utterance_loss`. Rows without a valid frame do not count.

    Returns:
      float32 scalar, nats.

    Paper: eq. (1), section 3.1.
    """
    rows = jnp.maximum(jnp.sum(jnp.any(frame_mask, axis=-1)), 1)
    return jnp.sum(utterance_loss(logits, labels, frame_mask)) / rows.astype(jnp.float32)


def utterance_loss(logits: jax.Array, labels: jax.Array, frame_mask: jax.Array) -> jax.Array:
    """Cross entropy of one branch on each utterance: the mean over its frames.

    Args:
      logits: float [batch, frames, classes].
      labels: int [batch, frames], HuBERT's own frame labels; whatever on padded frames.
      frame_mask: bool [batch, frames].

    Returns:
      float32 [batch], nats; 0 for a row without frames.
    """
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    chosen = jnp.take_along_axis(log_probs, jnp.maximum(labels, 0)[..., None], axis=-1)[..., 0]
    return frame_mean(-chosen, frame_mask)
