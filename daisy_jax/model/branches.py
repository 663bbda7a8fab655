"""Early-exit branches: one linear classifier a layer, its loss and its entropy."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from daisy_jax.model.forms import run_form


class Branches(nnx.Module):
    """L linear classifiers, stacked: kernel [L, dim, classes] and bias [L, classes], float32.

    `jax.tree.map(lambda leaf: leaf[k], branches)` is layer k's classifier. Paper: section 3.1; the
    bias is the authors'.
    """

    def __init__(self, num_layers: int, dim: int, num_classes: int, *, rngs: nnx.Rngs):
        init = nnx.initializers.lecun_normal(batch_axis=0)
        self.kernel = nnx.Param(init(rngs.params(), (num_layers, dim, num_classes)))
        self.bias = nnx.Param(jnp.zeros((num_layers, num_classes)))

    def __call__(
        self, tapped: Float[Array, "batch frames dim"]
    ) -> Float[Array, "batch frames classes"]:
        """Logits, float32, from one layer's tapped features, by the classifier of that layer.

        As exact as a float32 product at the highest precision, in every form: the reduced precision
        that accelerators use by default would move exit decisions.
        """
        forms = {"float32": _float32_product, "three_parts": _float32_product}
        if tapped.dtype == jnp.bfloat16:
            forms["three_parts"] = _product_of_three_parts
        logits = run_form("branch", forms, tapped, self.kernel[...])
        return logits + self.bias[...][None, None]


def _float32_product(
    tapped: Float[Array, "batch frames dim"], kernel: Float[Array, "dim classes"]
) -> Float[Array, "batch frames classes"]:
    return jnp.einsum(
        "btd,dc->btc", tapped.astype(jnp.float32), kernel, precision=jax.lax.Precision.HIGHEST
    )


@jax.custom_jvp
def _product_of_three_parts(
    tapped: Float[Array, "batch frames dim"], kernel: Float[Array, "dim classes"]
) -> Float[Array, "batch frames classes"]:
    """The float32 product of bfloat16 features and a float32 kernel, in matrix units for bfloat16.

    The kernel is cut into three parts of eight bits each, whose sum is the kernel: products of two
    bfloat16 numbers are exact in float32, so nothing is lost but what every sum in float32 loses.
    """
    classes, parts = kernel.shape[1], []
    for _ in range(3):
        # Not a cast to bfloat16 and back, which XLA may take for a waste of time.
        part = jax.lax.reduce_precision(kernel, exponent_bits=8, mantissa_bits=7)
        parts.append(part.astype(jnp.bfloat16))
        kernel = kernel - part
    products = jnp.einsum(
        "btd,dc->btc",
        tapped,
        jnp.concatenate(parts, axis=1),  # one product, so that features are read once
        preferred_element_type=jnp.float32,
    )
    return products[..., :classes] + products[..., classes : 2 * classes] + products[..., -classes:]


@_product_of_three_parts.defjvp
def _product_of_three_parts_jvp(primals, tangents):
    # Linear in each factor. Differentiated as it is written, a bfloat16 part would round gradients.
    (tapped, kernel), (to_tapped, to_kernel) = primals, tangents
    tangent = _float32_product(to_tapped, kernel) + _float32_product(tapped, to_kernel)
    return _product_of_three_parts(tapped, kernel), tangent


def frame_mean(
    values: Float[Array, "*rows frames"], frame_mask: Bool[Array, "*#rows frames"]
) -> Float[Array, "*rows"]:
    """Mean over each row's valid frames; 0 for a row without frames."""
    total = jnp.sum(jnp.where(frame_mask, values, 0), axis=-1)
    return total / jnp.maximum(jnp.sum(frame_mask, axis=-1), 1).astype(total.dtype)


def utterance_entropy(
    logits: Float[Array, "*rows frames classes"], frame_mask: Bool[Array, "*#rows frames"]
) -> Float[Array, "*rows"]:
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


def entropy_and_agreement(
    branches: Branches,
    tapped: Float[Array, "layers batch frames dim"],
    frame_mask: Bool[Array, "batch frames"],
) -> tuple[Float[Array, "batch layers"], Float[Array, "batch layers"]]:
    """What every branch says of every utterance: eq. (2), and how far it says what the last says.

    Args:
      branches: of all layers.
      tapped: each layer's tapped features.
      frame_mask: true on valid frames.

    Returns:
      float32 [batch, layers], nats; and the share of the valid frames whose most probable class is
      the last layer's, 0 for a row without frames.
    """

    def one_layer(branch_and_tapped):
        branch, tapped = branch_and_tapped
        logits = branch(tapped)
        return utterance_entropy(logits, frame_mask), jnp.argmax(logits, axis=-1)

    # One after the other: logits of all layers would be twelve times as much memory.
    entropy, labels = jax.lax.map(one_layer, (branches, tapped))
    return entropy.T, agreement_with_last(labels, frame_mask).T


def agreement_with_last(
    labels: Int[Array, "layers batch frames"], frame_mask: Bool[Array, "batch frames"]
) -> Float[Array, "layers batch"]:
    """Share of each row's valid frames to which a layer gives the last layer's label."""
    return frame_mean((labels == labels[-1:]).astype(jnp.float32), frame_mask[None])


def branch_loss(
    logits: Float[Array, "batch frames classes"],
    labels: Int[Array, "batch frames"],
    frame_mask: Bool[Array, "batch frames"],
) -> Float[Array, ""]:
    """Cross entropy of one branch: the mean over an utterance's frames, then over utterances.

    Arguments as of `utterance_loss`. Rows without a valid frame do not count.

    Returns:
      float32 scalar, nats.

    Paper: eq. (1), section 3.1.
    """
    rows = jnp.maximum(jnp.sum(jnp.any(frame_mask, axis=-1)), 1)
    return jnp.sum(utterance_loss(logits, labels, frame_mask)) / rows.astype(jnp.float32)


def utterance_loss(
    logits: Float[Array, "batch frames classes"],
    labels: Int[Array, "batch frames"],
    frame_mask: Bool[Array, "batch frames"],
) -> Float[Array, " batch"]:
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
