"""What can be stored of an utterance: layers, its exit, eq. (4), labels, or units.

A content is a small immutable object with a jitted function. Everything it yields has the batch
first and an axis of items behind it, of length 1 but for layers.
"""

import dataclasses
import hashlib
import json
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from daisy_jax.encode import encode
from daisy_jax.errors import InputError
from daisy_jax.exits import ExitRule, fixed_layer
from daisy_jax.model.branches import frame_mean, utterance_entropy
from daisy_jax.model.frame_labels import frame_labels
from daisy_jax.model.hubert import Hubert, embed, require_head
from daisy_jax.model.layer_loops import tapped_layers


class Computed(NamedTuple):
    """All that is kept of a batch."""

    values: jax.Array
    """float16 [batch, items, frames, dim] or int32 [batch, 1, frames]; garbage on padded frames."""
    entropy: jax.Array
    """float32 [batch, L], nats, +inf where it was not evaluated; [batch, 0] without branches."""
    agreement: jax.Array
    """float32 [batch, L], share of the frames with the last layer's label; [batch, 0] where it is
    not known."""
    exit_layer: jax.Array
    """int32 [batch]."""
    forced: jax.Array
    """bool [batch]."""
    num_frames: jax.Array
    """int32 [batch]."""


@runtime_checkable
class Content(Protocol):
    """One kind of content."""

    @property
    def items(self) -> list[int | str]:
        """Names of what is stored."""
        ...

    def settings(self, model: Hubert) -> dict[str, str]:
        """What it depends on, beside the audio, the model's trunk and its branches."""
        ...

    def check(self, model: Hubert) -> None:
        """Refuses a model that cannot yield it."""
        ...

    def __call__(self, model: Hubert, waveform: jax.Array, lengths: jax.Array) -> Computed:
        """Computes it: waveform float [batch, samples], lengths int [batch]."""
        ...


def half(values: jax.Array) -> jax.Array:
    """As float16; half precision ends at 65 504, and a value beyond is kept as that."""
    limit = float(jnp.finfo(jnp.float16).max)
    return jnp.clip(values, -limit, limit).astype(jnp.float16)


@dataclasses.dataclass(frozen=True)
class Layers:
    """Some or all items of eq. (4), with the entropies of every layer; no item: entropies alone."""

    chosen: tuple[int, ...]
    """Of 0 to L."""

    @property
    def items(self) -> list[int | str]:
        """As for every `Content`."""
        return list(self.chosen)

    def settings(self, model: Hubert) -> dict[str, str]:
        """As for every `Content`."""
        return {}

    def check(self, model: Hubert) -> None:
        """As for every `Content`."""
        bad = [item for item in self.chosen if not 0 <= item <= model.config.num_layers]
        if bad:
            raise InputError(f"layer {bad[0]}: the model has 0 to {model.config.num_layers}")

    def __call__(self, model: Hubert, waveform: jax.Array, lengths: jax.Array) -> Computed:
        """Runs all layers."""
        embedded = embed(model, waveform, lengths)
        _, tapped = tapped_layers(model, embedded)
        item0 = embedded.projected if model.config.item0 == "projection" else embedded.hidden
        stacked = [half(item0 if item == 0 else tapped[item - 1]) for item in self.chosen]
        shape = (len(lengths), 0, *item0.shape[1:])
        stored = jnp.stack(stacked, axis=1) if stacked else jnp.zeros(shape, jnp.float16)
        nothing = jnp.zeros((len(lengths), 0), jnp.float32)
        num_frames = jnp.sum(embedded.frame_mask, axis=1, dtype=jnp.int32)
        last = jnp.where(num_frames > 0, jnp.int32(model.config.num_layers), jnp.int32(0))
        if model.branches is None:
            return Computed(stored, nothing, nothing, last, last > 0, num_frames)

        def one_layer(branch_and_tapped):
            branch, tapped = branch_and_tapped
            logits = branch(tapped)
            return utterance_entropy(logits, embedded.frame_mask), jnp.argmax(logits, axis=-1)

        entropy, labels = jax.lax.map(one_layer, (model.branches, tapped))
        same = (labels == labels[-1:]).astype(jnp.float32)
        agreement = frame_mean(same, embedded.frame_mask[None])
        return Computed(stored, entropy.T, agreement.T, last, last > 0, num_frames)


@dataclasses.dataclass(frozen=True, eq=False)
class AtExit:
    """The block's output where each utterance leaves, or eq. (4) up to there."""

    rule: ExitRule
    layer_weights: np.ndarray | None = None
    """float [L+1], raw scores; None: the exit's output itself."""

    @property
    def items(self) -> list[int | str]:
        """As for every `Content`."""
        return ["exit" if self.layer_weights is None else "pooled"]

    def settings(self, model: Hubert) -> dict[str, str]:
        """As for every `Content`."""
        found = {
            "threshold": str(self.rule.threshold),
            "allowed": json.dumps((np.flatnonzero(self.rule.allowed) + 1).tolist()),
        }
        if self.layer_weights is not None:
            found["layer_weights"] = digest(self.layer_weights)
        return found

    def check(self, model: Hubert) -> None:
        """As for every `Content`."""
        if self.rule.threshold is not None and model.branches is None:
            raise InputError("this model has no branches, so no threshold can be met")

    def __call__(self, model: Hubert, waveform: jax.Array, lengths: jax.Array) -> Computed:
        """Runs each utterance up to its exit."""
        out = encode(
            model,
            waveform,
            lengths,
            threshold=self.rule.threshold,
            allowed=self.rule.allowed,
            layer_weights=self.layer_weights,
        )
        features = out.last_hidden if out.pooled is None else out.pooled
        return computed(half(features), out)


@dataclasses.dataclass(frozen=True)
class Labels:
    """HuBERT's own label of each frame."""

    @property
    def items(self) -> list[int | str]:
        """As for every `Content`."""
        return ["labels"]

    def settings(self, model: Hubert) -> dict[str, str]:
        """As for every `Content`."""
        head = require_head(model)
        return {"head": digest(*jax.tree.leaves(head)), "classes": str(model.config.num_clusters)}

    def check(self, model: Hubert) -> None:
        """As for every `Content`."""
        require_head(model)

    def __call__(self, model: Hubert, waveform: jax.Array, lengths: jax.Array) -> Computed:
        """Runs all layers."""
        labels = frame_labels(model, waveform, lengths)
        num_frames = jnp.sum(labels >= 0, axis=1, dtype=jnp.int32)
        nothing = jnp.zeros((len(lengths), 0), jnp.float32)
        last = jnp.where(num_frames > 0, jnp.int32(model.config.num_layers), jnp.int32(0))
        return Computed(labels[:, None], nothing, nothing, last, last > 0, num_frames)


@dataclasses.dataclass(frozen=True, eq=False)
class Units:
    """The nearest of some centroids at one layer, for each frame: k-means units."""

    centroids: np.ndarray
    """float32 [clusters, dim]."""
    layer: int
    """1 to L; the layer that the centroids were found at."""

    @property
    def items(self) -> list[int | str]:
        """As for every `Content`."""
        return ["units"]

    def settings(self, model: Hubert) -> dict[str, str]:
        """As for every `Content`."""
        return {"centroids": digest(self.centroids), "layer": str(self.layer)}

    def check(self, model: Hubert) -> None:
        """As for every `Content`."""
        fixed_layer(self.layer, model.config.num_layers)
        shape = self.centroids.shape
        if len(shape) != 2 or not shape[0] or shape[1] != model.config.dim:
            raise InputError(
                f"centroids have the shape {shape}; for this model it must be "
                f"[clusters, {model.config.dim}]"
            )
        if not np.isfinite(self.centroids).all():
            raise InputError("centroids hold NaN or infinite numbers; find them again")

    def __call__(self, model: Hubert, waveform: jax.Array, lengths: jax.Array) -> Computed:
        """Runs the layers up to this one."""
        allowed = fixed_layer(self.layer, model.config.num_layers).allowed
        out = encode(model, waveform, lengths, allowed=allowed)
        centroids = jnp.asarray(self.centroids, jnp.float32)
        products = jnp.einsum(
            "btd,cd->btc",
            out.last_hidden.astype(jnp.float32),
            centroids,
            precision=jax.lax.Precision.HIGHEST,
        )
        # |x - c|^2 without |x|^2, which is the same for all.
        distances = jnp.sum(centroids * centroids, axis=1)[None, None] - 2 * products
        return computed(jnp.argmin(distances, axis=-1).astype(jnp.int32), out)


def computed(values: jax.Array, out: Any) -> Computed:
    """One item of what `encode` returned, with where it left."""
    nothing = jnp.zeros((len(out.num_frames), 0), jnp.float32)
    return Computed(
        values[:, None], out.entropy, nothing, out.exit_layer, out.forced, out.num_frames
    )


def digest(*arrays: Any) -> str:
    """Tells arrays apart."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(np.ascontiguousarray(array, np.float32).tobytes())
    return found.hexdigest()[:16]
