"""`encode`: from waveforms to features, each utterance leaving the model at its own layer."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from daisy_jax.errors import InputError
from daisy_jax.model.criteria import Criterion, MeanEntropy
from daisy_jax.model.hubert import Hubert, embed
from daisy_jax.model.inputs import checked, checked_batch, has_values
from daisy_jax.model.layer_loops import Keep, deepest_layer, early_exit, full_depth
from daisy_jax.model.pooling import normalize, running_weights

MEAN_ENTROPY = MeanEntropy()


class Encoded(NamedTuple):
    """What `encode` returns. The batch comes first everywhere.

    Rows are padded with zeros behind their `num_frames`; what an utterance did not reach, because
    it left before, is zero too.
    """

    last_hidden: jax.Array
    """[batch, frames, dim], the output of the block at each utterance's exit layer, without the
    final LayerNorm of pre-LN models (`final_norm` applies it)."""
    exit_layer: jax.Array
    """int32 [batch], 1..L; 0 for an utterance without a single frame."""
    forced: jax.Array
    """bool [batch], left at the deepest allowed layer because no threshold was met."""
    entropy: jax.Array
    """float32 [batch, L], nats; +inf where it was not evaluated."""
    num_frames: jax.Array
    """int32 [batch], valid frames; 0 below 400 samples."""
    hidden_states: jax.Array | None
    """[batch, L+1, frames, dim] or None; [:, 0] is the transformer's input, [:, k] block k's
    output."""
    pooled: jax.Array | None
    """float32 [batch, frames, dim] or None; the weighted sum of eq. (4)."""


def encode(
    model: Hubert,
    waveform: jax.Array | np.ndarray,
    lengths: jax.Array | np.ndarray | None = None,
    *,
    threshold: Any = None,
    allowed: jax.Array | np.ndarray | None = None,
    layer_weights: jax.Array | np.ndarray | None = None,
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
                "this model has no branches, so a threshold cannot be met; train them with "
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
    return _compiled(model, waveform, lengths, threshold, allowed, layer_weights, keep, criterion)


def encode_taps(
    model: Hubert, waveform: jax.Array, lengths: jax.Array, threshold: Any, allowed: Any
) -> Encoded:
    """`encode` with `hidden_states` that are what eq. (4) sums: item 0, then each layer's tap.

    For models whose tap is the block output and whose item 0 is the transformer's input, these are
    the hidden states themselves. Arguments as of `encode`.
    """
    if threshold is not None:
        threshold = _broadcast_threshold(threshold, waveform.shape[0])
    return _compiled(model, waveform, lengths, threshold, allowed, None, "taps", MEAN_ENTROPY)


def _broadcast_threshold(threshold: Any, batch: int) -> Any:
    """float32 [batch], on the host if possible, so that every kind of number compiles once."""
    xp = jnp if isinstance(threshold, jax.Array) else np
    values = xp.asarray(threshold)
    if values.shape not in ((), (batch,)) or values.dtype.kind not in "fiuV":
        raise InputError(
            f"threshold is {values.dtype} {values.shape}; it must be a number or [{batch}], nats"
        )
    with np.errstate(over="ignore"):  # beyond float32 is infinity
        return xp.broadcast_to(values.astype(np.float32), (batch,))


@functools.partial(jax.jit, static_argnames=("keep", "criterion"))
def _compiled(
    model: Hubert,
    waveform: jax.Array,
    lengths: jax.Array,
    threshold: jax.Array | None,
    allowed: jax.Array | None,
    layer_weights: jax.Array | None,
    keep: Keep,
    criterion: Criterion,
) -> Encoded:
    run = functools.partial(_encode, keep=keep, criterion=criterion)
    sharding = jax.typeof(waveform).sharding
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return run(model, waveform, lengths, threshold, allowed, layer_weights)
    # Each device packs its own rows, so that none waits for another and no row travels.
    rows, everywhere = PartitionSpec(sharding.spec[0]), PartitionSpec()
    specs = (everywhere, rows, rows, rows, everywhere, everywhere)
    arguments = (model, waveform, lengths, threshold, allowed, layer_weights)
    arguments = tuple(
        jax.sharding.reshard(argument, NamedSharding(sharding.mesh, spec))
        for argument, spec in zip(arguments, specs, strict=True)
    )
    return jax.shard_map(run, mesh=sharding.mesh, in_specs=specs, out_specs=rows)(*arguments)


def _encode(
    model: Hubert,
    waveform: jax.Array,
    lengths: jax.Array,
    threshold: jax.Array | None,
    allowed: jax.Array | None,
    layer_weights: jax.Array | None,
    keep: Keep,
    criterion: Criterion,
) -> Encoded:
    waveform = waveform.astype(jnp.float32)
    embedded = embed(model, waveform, lengths)
    hidden, frame_mask = embedded.hidden, embedded.frame_mask
    num_frames = jnp.sum(frame_mask, axis=1, dtype=jnp.int32)

    item0 = embedded.projected if model.config.item0 == "projection" else hidden
    weights, pooled = None, None
    if layer_weights is not None:
        weights = running_weights(layer_weights)
        pooled = weights.add[0] * normalize(item0)

    if threshold is None or allowed is None or not waveform.shape[0]:
        num_layers = model.config.num_layers
        deepest = None if allowed is None else deepest_layer(allowed)
        hidden, pooled, blocks = full_depth(model, embedded, pooled, weights, deepest, keep)
        last = num_layers if deepest is None else deepest
        exit_layer = jnp.where(num_frames > 0, last, 0).astype(jnp.int32)
        entropy = jnp.full_like(frame_mask, jnp.inf, jnp.float32, shape=(len(lengths), num_layers))
        forced = num_frames > 0
    else:
        hidden, pooled, blocks, entropy, exit_layer, forced = early_exit(
            model, embedded, pooled, weights, threshold, allowed, keep, criterion
        )

    valid = frame_mask[..., None]
    if blocks is not None:
        first = item0 if keep == "taps" else embedded.hidden
        blocks = jnp.concatenate([first[None], blocks])
        blocks = jnp.where(valid[:, None], jnp.moveaxis(blocks, 0, 1), 0)
    if pooled is not None:
        pooled = jnp.where(valid, pooled, 0)
    return Encoded(
        jnp.where(valid, hidden, 0), exit_layer, forced, entropy, num_frames, blocks, pooled
    )
