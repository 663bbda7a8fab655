"""`encode`: from waveforms to features, each utterance leaving the model at its own layer."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Integer

from daisy_jax.errors import InputError
from daisy_jax.model.criteria import Criterion, MeanEntropy
from daisy_jax.model.hubert import Hubert, embed
from daisy_jax.model.inputs import AnyArray, checked, checked_batch, has_values
from daisy_jax.model.layer_loops import Keep, deepest_layer, early_exit, full_depth
from daisy_jax.model.pooling import normalize, running_weights

MEAN_ENTROPY = MeanEntropy()


class Encoded(NamedTuple):
    """What `encode` returns. The batch comes first everywhere.

    Rows are padded with zeros behind their `num_frames`; what an utterance did not reach, because
    it left before, is zero too.
    """

    last_hidden: Float[Array, "batch frames dim"]
    """The output of the block at each utterance's exit layer, without the final LayerNorm of pre-LN
    models (`final_norm` applies it)."""
    exit_layer: Int[Array, " batch"]
    """int32, 1..L; 0 for an utterance without a single frame."""
    forced: Bool[Array, " batch"]
    """Left at the deepest allowed layer because no threshold was met."""
    entropy: Float[Array, "batch layers"]
    """float32, nats; +inf where it was not evaluated."""
    num_frames: Int[Array, " batch"]
    """int32, valid frames; 0 below 400 samples."""
    hidden_states: Float[Array, "batch items frames dim"] | None
    """Items 0..L or None; [:, 0] is the transformer's input, [:, k] block k's output."""
    pooled: Float[Array, "batch frames dim"] | None
    """float32 or None; the weighted sum of eq. (4)."""


def encode(
    model: Hubert,
    waveform: Float[Array, "batch samples"] | npt.ArrayLike,
    lengths: Integer[Array, " batch"] | npt.ArrayLike | None = None,
    *,
    threshold: Float[Array, "*batch"] | npt.ArrayLike | None = None,
    allowed: Bool[Array, " layers"] | npt.ArrayLike | None = None,
    layer_weights: Float[Array, " items"] | npt.ArrayLike | None = None,
    return_hidden_states: bool = False,
    criterion: Criterion = MEAN_ENTROPY,
) -> Encoded:
    """Encodes speech, each utterance up to the first layer that is sure enough of it.

    A pure function, for eager use and inside jit, vmap, shard_map and AOT lowering. An utterance's
    result does not depend on what else is in the batch, on its padding, or on its place. Time
    follows the mean exit layer of a batch, not its largest. On a mesh with Explicit axes each
    device works on its own rows; under automatic sharding results are the same, savings are not
    promised. A frame is a window of 400 samples; there is one every 320 samples (20 ms).

    Args:
      model: from `load`. Its parts decide what is possible: thresholds need branches.
      waveform: float [batch, samples], 16 kHz, zero-padded at the end; at least 400 samples wide.
        Raw: the model's own input normalisation happens inside.
      lengths: int [batch], true sample counts; None: all full. Rows below 400 samples are legal,
        have no frames and cost nothing in the transformer.
      threshold: scalar or [batch], nats, any real number or +-inf; traced, so that another value
        does not recompile. An utterance leaves at the first allowed layer whose entropy is below
        it, else at the deepest allowed one. None: no branch is evaluated, everybody leaves at the
        deepest allowed layer; differentiable in reverse mode.
      allowed: bool [L], where an utterance may leave; None: everywhere. Branches of other layers
        are not evaluated (GPUs and TPUs, which that would keep waiting, drop what they say).
      layer_weights: float [L+1], raw scores of item 0 and the layers; makes `pooled`. To train them
        beside exits, pool kept hidden states with `model.pooling.pool`, which has a gradient.
      return_hidden_states: whether to keep every layer's output.
      criterion: what is compared with the threshold, and stands in `entropy` then; a
        `daisy_jax.model.criteria.Criterion`.

    Returns:
      An `Encoded`.

    Raises:
      InputError: an argument of the wrong shape or type, a threshold for a model without branches,
        or `allowed` all False.

    Example:
      model = daisy_jax.load()
      out = daisy_jax.encode(model, waveform, lengths, threshold=0.9)
      features = out.last_hidden[0, : out.num_frames[0]]

    Paper: sections 3.1 (threshold) and 3.3 (spans).
    """
    num_layers = model.config.num_layers
    waveform, lengths = checked_batch(waveform, lengths)
    if threshold is not None:
        if model.branches is None:
            raise InputError(
                "threshold cannot be met, as this model has no branches; train them with "
                "train/branches.py, or pass threshold=None for full depth"
            )
        threshold = _broadcast_threshold(threshold, waveform.shape[0])
    if allowed is None and threshold is not None:
        allowed = np.ones(num_layers, bool)
    if allowed is not None:
        allowed = checked(allowed, "allowed", "a bool array", (num_layers,), np.bool_)
        if has_values(allowed) and not np.any(np.asarray(allowed)):
            raise InputError("allowed is False everywhere; allow at least one layer")
        if threshold is None and has_values(allowed) and np.asarray(allowed)[-1]:
            allowed = None  # everybody runs all layers, and no condition is needed
    if layer_weights is not None:
        layer_weights = checked(
            layer_weights, "layer_weights", "a float array", (num_layers + 1,), np.floating
        )
    keep = "blocks" if return_hidden_states else "nothing"
    inputs = (waveform, lengths, threshold, allowed, layer_weights)
    return _compiled(model, inputs, keep, criterion)


def encode_taps(
    model: Hubert,
    waveform: Float[AnyArray, "batch samples"],
    lengths: Integer[AnyArray, " batch"],
    threshold: Float[AnyArray, "*batch"] | float | None,
    allowed: Bool[AnyArray, " layers"] | None,
) -> Encoded:
    """`encode` with `hidden_states` that are what eq. (4) sums: item 0, then each layer's tap.

    For models whose tap is the block output and whose item 0 is the transformer's input, these are
    the hidden states themselves. Arguments as of `encode`.
    """
    if threshold is not None:
        threshold = _broadcast_threshold(threshold, waveform.shape[0])
    inputs = (waveform, lengths, threshold, allowed, None)
    return _compiled(model, inputs, "taps", MEAN_ENTROPY)


def _broadcast_threshold(
    threshold: Float[Array, "..."] | npt.ArrayLike, batch: int
) -> Float[AnyArray, " {batch}"]:
    """float32, on the host if possible, so that every kind of number compiles once."""
    xp = jnp if isinstance(threshold, jax.Array) else np
    values = xp.asarray(threshold)
    if values.shape not in ((), (batch,)) or values.dtype.kind not in "fiuV":
        raise InputError(
            f"threshold is {values.dtype} {values.shape}; it must be a number or [{batch}], nats"
        )
    with np.errstate(over="ignore"):  # beyond float32 is infinity
        return xp.broadcast_to(values.astype(np.float32), (batch,))


class Inputs(NamedTuple):
    """What is encoded, and how, once it is checked: the arguments of `encode` as arrays of JAX."""

    waveform: Float[Array, "batch samples"]
    lengths: Integer[Array, " batch"]
    threshold: Float[Array, " batch"] | None
    allowed: Bool[Array, " layers"] | None
    layer_weights: Float[Array, " items"] | None


@functools.partial(jax.jit, static_argnames=("keep", "criterion"))
def _compiled(
    model: Hubert, inputs: tuple[Array | None, ...], keep: Keep, criterion: Criterion
) -> Encoded:
    def run(model: Hubert, inputs: tuple) -> Encoded:
        return _encode(model, Inputs(*inputs), keep, criterion)

    sharding = jax.typeof(inputs[0]).sharding
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return run(model, inputs)
    # Each device packs its own rows, so that none waits for another and no row travels.
    rows, everywhere = PartitionSpec(sharding.spec[0]), PartitionSpec()
    specs = (everywhere, (rows, rows, rows, everywhere, everywhere))
    placed = jax.tree.map(
        lambda spec, argument: jax.sharding.reshard(argument, NamedSharding(sharding.mesh, spec)),
        specs,
        (model, inputs),
    )
    return jax.shard_map(run, mesh=sharding.mesh, in_specs=specs, out_specs=rows)(*placed)


def _encode(model: Hubert, inputs: Inputs, keep: Keep, criterion: Criterion) -> Encoded:
    embedded = embed(model, inputs.waveform.astype(jnp.float32), inputs.lengths)
    item0 = embedded.projected if model.config.item0 == "projection" else embedded.hidden
    weights, pooled = None, None
    if inputs.layer_weights is not None:
        weights = running_weights(inputs.layer_weights)
        pooled = weights.add[0] * normalize(item0)

    allowed, threshold = inputs.allowed, inputs.threshold
    if threshold is None or allowed is None or not len(threshold):
        deepest = None if allowed is None else deepest_layer(allowed)
        out = full_depth(model, embedded, pooled, weights, deepest, keep)
    else:
        out = early_exit(model, embedded, pooled, weights, threshold, allowed, keep, criterion)

    valid = embedded.frame_mask[..., None]
    blocks, pooled = out.blocks, out.pooled
    if blocks is not None:
        first = item0 if keep == "taps" else embedded.hidden
        blocks = jnp.concatenate([first[None], blocks])
        blocks = jnp.where(valid[:, None], jnp.moveaxis(blocks, 0, 1), 0)
    return Encoded(
        last_hidden=jnp.where(valid, out.hidden, 0),
        exit_layer=out.exit_layer,
        forced=out.forced,
        entropy=out.score,
        num_frames=jnp.sum(embedded.frame_mask, axis=1, dtype=jnp.int32),
        hidden_states=blocks,
        pooled=None if pooled is None else jnp.where(valid, pooled, 0),
    )
