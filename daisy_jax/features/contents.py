"""What can be stored of an utterance: layers, its exit, eq. (4), labels, or units."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from daisy_jax.encode import Encoded, encode
from daisy_jax.errors import InputError
from daisy_jax.exits import ExitRule, fixed_layer
from daisy_jax.model.branches import entropy_and_agreement
from daisy_jax.model.frame_labels import frame_labels
from daisy_jax.model.hubert import Hubert, embed, require_head
from daisy_jax.model.layer_loops import tapped_layers

Waveform: TypeAlias = Float[Array, "batch samples"]
Lengths: TypeAlias = Int[Array, " batch"]


class Computed(NamedTuple):
    """All that is kept of a batch."""

    values: Shaped[Array, "batch items frames *dim"]
    """float16 vectors or int32 numbers; garbage on padded frames."""
    entropy: Float[Array, "batch layers"]
    """float32, nats, +inf where it was not evaluated; [batch, 0] without branches."""
    agreement: Float[Array, "batch layers"]
    """float32, share of the frames with the last layer's label; [batch, 0] if it is not known."""
    exit_layer: Int[Array, " batch"]
    """int32."""
    forced: Bool[Array, " batch"]
    num_frames: Int[Array, " batch"]
    """int32."""


def _anything(model: Hubert) -> None:
    """The check of a content that every model can yield."""


@dataclasses.dataclass(frozen=True, eq=False)
class Content:
    """One kind of content."""

    items: tuple[int | str, ...]
    """Names of what is stored, along the axis behind the batch."""
    dtype: type[np.float16] | type[np.int32]
    """float16: a vector a frame; int32: one number."""
    compute: Callable[[Hubert, Waveform, Lengths], Computed]
    settings: Callable[[Hubert], dict[str, str]]
    """What it depends on, beside the audio, the model's trunk and its branches."""
    check: Callable[[Hubert], object] = _anything
    """Refuses a model that cannot yield it."""


def layers(chosen: tuple[int, ...]) -> Content:
    """Some or all of the items 0 to L of eq. (4), with every layer's entropies; or these alone."""

    def check(model: Hubert) -> None:
        for item in chosen:
            if not 0 <= item <= model.config.num_layers:
                raise InputError(f"layer {item}: the model has 0 to {model.config.num_layers}")

    def compute(model: Hubert, waveform: Waveform, lengths: Lengths) -> Computed:
        embedded = embed(model, waveform, lengths)
        _, tapped = tapped_layers(model, embedded)
        item0 = embedded.projected if model.config.item0 == "projection" else embedded.hidden
        stacked = [half(item0 if item == 0 else tapped[item - 1]) for item in chosen]
        shape = (len(lengths), 0, *item0.shape[1:])
        values = jnp.stack(stacked, axis=1) if stacked else jnp.zeros(shape, jnp.float16)
        num_frames = jnp.sum(embedded.frame_mask, axis=1, dtype=jnp.int32)
        if model.branches is None:
            return all_layers(model, values, num_frames)

        entropy, agreement = entropy_and_agreement(model.branches, tapped, embedded.frame_mask)
        computed = all_layers(model, values, num_frames)
        return computed._replace(entropy=entropy, agreement=agreement)

    return Content(chosen, np.float16, compute, lambda model: {}, check)


def at_exit(rule: ExitRule, layer_weights: Float[np.ndarray, " items"] | None = None) -> Content:
    """The block's output where each utterance leaves, or with raw layer weights eq. (4) so far."""

    def settings(model: Hubert) -> dict[str, str]:
        allowed = json.dumps((np.flatnonzero(rule.allowed) + 1).tolist())
        weights = {} if layer_weights is None else {"layer_weights": digest(layer_weights)}
        return {"threshold": str(rule.threshold), "allowed": allowed} | weights

    def check(model: Hubert) -> None:
        if rule.threshold is not None and model.branches is None:
            raise InputError(
                f"threshold {rule.threshold:g}: this model has no branches, so that none can be met"
            )

    def compute(model: Hubert, waveform: Waveform, lengths: Lengths) -> Computed:
        exits = {"threshold": rule.threshold, "allowed": rule.allowed}
        out = encode(model, waveform, lengths, layer_weights=layer_weights, **exits)
        return one_item(half(out.last_hidden if out.pooled is None else out.pooled), out)

    name = "exit" if layer_weights is None else "pooled"
    return Content((name,), np.float16, compute, settings, check)


AtExit = at_exit  # its name in docs/corpora.md


def labels() -> Content:
    """HuBERT's own label of each frame."""

    def settings(model: Hubert) -> dict[str, str]:
        head = digest(*jax.tree.leaves(require_head(model)))
        return {"head": head, "classes": str(model.config.num_clusters)}

    def compute(model: Hubert, waveform: Waveform, lengths: Lengths) -> Computed:
        numbers = frame_labels(model, waveform, lengths)
        num_frames = jnp.sum(numbers >= 0, axis=1, dtype=jnp.int32)
        return all_layers(model, numbers[:, None], num_frames)

    return Content(("labels",), np.int32, compute, settings, require_head)


def units(centroids: Float[np.ndarray, "..."], layer: int) -> Content:
    """Units: for each frame the nearest of k-means centroids [clusters, dim] of a layer, 1 to L."""

    def settings(model: Hubert) -> dict[str, str]:
        return {"centroids": digest(centroids), "layer": str(layer)}

    def check(model: Hubert) -> None:
        fixed_layer(layer, model.config.num_layers)
        shape = centroids.shape
        if len(shape) != 2 or not shape[0] or shape[1] != model.config.dim:
            raise InputError(
                f"centroids have the shape {shape}; for this model it must be "
                f"[clusters, {model.config.dim}]"
            )
        if not np.isfinite(centroids).all():
            raise InputError("centroids hold NaN or infinite numbers; find them again")

    def compute(model: Hubert, waveform: Waveform, lengths: Lengths) -> Computed:
        allowed = fixed_layer(layer, model.config.num_layers).allowed
        out = encode(model, waveform, lengths, allowed=allowed)
        points = jnp.asarray(centroids, jnp.float32)
        products = jnp.einsum(
            "btd,cd->btc",
            out.last_hidden.astype(jnp.float32),
            points,
            precision=jax.lax.Precision.HIGHEST,
        )
        # |x - c|^2 without |x|^2, which is the same for all.
        distances = jnp.sum(points * points, axis=1)[None, None] - 2 * products
        return one_item(jnp.argmin(distances, axis=-1).astype(jnp.int32), out)

    return Content(("units",), np.int32, compute, settings, check)


def half(values: Float[Array, "..."]) -> Float[Array, "..."]:
    """As float16; half precision ends at 65 504, and a value beyond is kept as that."""
    limit = float(jnp.finfo(jnp.float16).max)
    return jnp.clip(values, -limit, limit).astype(jnp.float16)


def one_item(values: Shaped[Array, "batch frames *dim"], out: Encoded) -> Computed:
    """What was made of `encode`'s result, with where utterances left."""
    unknown = jnp.zeros((len(out.num_frames), 0), jnp.float32)
    return Computed(
        values[:, None], out.entropy, unknown, out.exit_layer, out.forced, out.num_frames
    )


def all_layers(
    model: Hubert, values: Shaped[Array, "batch items frames *dim"], num_frames: Lengths
) -> Computed:
    """What was made of all layers, at which everybody leaves; entropies are not known."""
    unknown = jnp.zeros((len(num_frames), 0), jnp.float32)
    last = jnp.where(num_frames > 0, jnp.int32(model.config.num_layers), jnp.int32(0))
    return Computed(values, unknown, unknown, last, last > 0, num_frames)


def digest(*arrays: Array | np.ndarray) -> str:
    """Tells arrays apart."""
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(np.ascontiguousarray(array, np.float32).tobytes())
    return sha.hexdigest()[:16]
