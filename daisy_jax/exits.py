"""When to leave: calibration, thresholds, and the layers at which an utterance may leave."""

import bisect
import dataclasses
import functools
from typing import NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, Integer

from daisy_jax.errors import InputError
from daisy_jax.reporting import logger

AnyArray = TypeVar("AnyArray", jax.Array, np.ndarray)


@dataclasses.dataclass(frozen=True, eq=False)
class Calibration:
    """Branch entropies of a data set, from which thresholds are made."""

    entropy: Float[np.ndarray, "utterances layers"]
    """Nats: each utterance's mean entropy at each layer."""
    dataset: str = ""
    """Name of the data set."""

    @property
    def mean_entropy(self) -> Float[np.ndarray, " layers"]:
        """float32, nats: the mean over utterances."""
        return np.asarray(np.mean(self.entropy, axis=0, dtype=np.float64), np.float32)

    # A model carries its calibration as static data, so that it has to be hashable by content.
    @functools.cached_property
    def _key(self) -> tuple:
        return self.dataset, self.entropy.dtype.str, self.entropy.shape, self.entropy.tobytes()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Calibration) and (self is other or self._key == other._key)

    def __hash__(self) -> int:
        return self._hash

    @functools.cached_property
    def _hash(self) -> int:
        return hash(self._key)


def exit_threshold(
    mean_entropy: Float[Array, " layers"] | npt.ArrayLike,
    ratio: float | np.number | Float[Array, ""],
) -> Float[Array, ""]:
    """Entropy below which an utterance leaves the model.

    The mid-point between the largest and the smallest layer-wise mean entropy, scaled. A smaller
    ratio means later exits and more compute.

    Args:
      mean_entropy: float [L], mean branch entropy of each layer over a data set, nats.
      ratio: ρ, in [0, 1]; the paper uses 0.7, 0.76 and 1.0.

    Returns:
      The threshold τ, float32 scalar, nats.

    Raises:
      InputError: the ratio is concrete and outside of [0, 1].

    Paper: eq. (3), section 3.2.
    """
    if not isinstance(ratio, Tracer) and not 0 <= ratio <= 1:
        raise InputError(f"ratio is {ratio}; it must be in [0, 1], smaller for later exits")
    mean_entropy = jnp.asarray(mean_entropy, jnp.float32)
    return (jnp.max(mean_entropy) + jnp.min(mean_entropy)) / 2 * ratio


def fires(score: AnyArray, threshold: AnyArray) -> AnyArray:
    """Whether a score, such as a mean entropy, is low enough to leave: below the threshold.

    The one place where they are compared, on a device or on the host. Paper: section 3.1.
    """
    return score < threshold


def exit_layers(
    entropy: Float[np.ndarray, "utterances layers"],
    threshold: float,
    allowed: npt.ArrayLike | None = None,
) -> tuple[Int[np.ndarray, " utterances"], Bool[np.ndarray, " utterances"]]:
    """Where utterances leave, from entropies that were stored before; `encode` decides the same.

    Args:
      entropy: nats, as in `Calibration.entropy`.
      threshold: nats; an utterance leaves at the first allowed layer whose entropy is below it,
        else, forced, at the deepest allowed one.
      allowed: bool [L], where an utterance may leave; None: everywhere.

    Returns:
      exit layers, 1..L, and who was forced out.
    """
    layers = _layer_numbers(allowed, entropy.shape[1])
    # Rounded to float32 as encode rounds it; stored entropies are exact in it.
    low = fires(np.asarray(entropy, np.float32)[:, layers - 1], np.asarray(threshold, np.float32))
    forced = np.logical_not(low.any(axis=1))
    return layers[np.where(forced, -1, low.argmax(axis=1))], forced


class ExitRule(NamedTuple):
    """Where utterances leave, as `encode` takes it."""

    name: str
    threshold: float | None
    """Nats; None: at the deepest allowed layer, without any branch."""
    allowed: Bool[np.ndarray, " layers"]
    """Where they may leave."""

    @property
    def allowed_or_all(self) -> Bool[np.ndarray, " layers"] | None:
        """`allowed` for a jitted function; None where everybody runs all layers.

        A jitted function cannot see that, and would ask for each layer.
        """
        return None if self.threshold is None and self.allowed[-1] else self.allowed

    @property
    def evaluated(self) -> Bool[np.ndarray, " layers"]:
        """The layers whose branches are computed."""
        return self.allowed if self.threshold is not None else np.zeros_like(self.allowed)

    def exits(
        self, entropy: Float[np.ndarray, "utterances layers"]
    ) -> tuple[Int[np.ndarray, " utterances"], Bool[np.ndarray, " utterances"]]:
        """From stored entropies: exit layers, and who was forced out."""
        threshold = -np.inf if self.threshold is None else self.threshold
        if self.threshold is None:  # a model without branches has no entropies
            entropy = np.full((len(entropy), len(self.allowed)), np.inf, np.float32)
        return exit_layers(entropy, threshold, self.allowed)


def fixed_layer(layer: int, num_layers: int) -> ExitRule:
    """Everybody leaves at one layer; the last one is full depth."""
    if not 1 <= layer <= num_layers:
        raise InputError(f"layer {layer} of a model with {num_layers} layers")
    name = "full depth" if layer == num_layers else f"static layer {layer}"
    return ExitRule(name, None, np.arange(1, num_layers + 1) == layer)


def threshold_for_budget(
    entropy: Float[np.ndarray, "utterances layers"] | npt.ArrayLike,
    mean_layers: float | np.number,
    allowed: npt.ArrayLike | None = None,
) -> float:
    """The smallest threshold whose mean exit layer on these utterances is within a budget.

    Args:
      entropy: float [utterances, L], nats, as in `Calibration.entropy`.
      mean_layers: the largest mean exit layer wanted, from 1 to L.
      allowed: bool [L], where an utterance may leave; None: everywhere.

    Returns:
      The threshold, nats, a float32 value; -inf if the budget allows everybody the deepest layer.

    Raises:
      InputError: even leaving at the first allowed layer costs more than the budget.
    """
    entropy = np.asarray(entropy, np.float32)
    if entropy.ndim != 2 or not entropy.size:
        raise InputError(f"entropy has the shape {entropy.shape}; it must be [utterances, layers]")
    layers = _layer_numbers(allowed, entropy.shape[1])
    entropy = np.where(np.isnan(entropy), np.inf, entropy)[:, layers - 1]
    # An utterance is still inside after a layer unless a smaller entropy fired before: only the
    # running minimum matters, and the exit layer falls in steps as the threshold rises past it.
    lowest = np.minimum.accumulate(entropy, axis=1)[:, :-1]
    values = np.unique(lowest[np.isfinite(lowest)])
    # Not below the smallest normal number: XLA takes what is smaller for 0.
    above = np.maximum(np.nextafter(values, np.float32(np.inf)), np.finfo(np.float32).tiny)
    candidates = np.concatenate([[-np.inf], above])

    def within_budget(threshold: float) -> bool:
        # Leaving at the deepest layer, less each step that a layer before it spares.
        stays = lowest >= threshold
        total = layers[0] * len(entropy) + int(np.sum(stays.sum(axis=0) * np.diff(layers)))
        return bool(total / len(entropy) <= mean_layers)

    if not within_budget(candidates[-1]):
        raise InputError(
            f"a mean exit layer of {mean_layers} cannot be reached: the first allowed layer is "
            f"{layers[0]}; raise the budget or allow earlier layers"
        )
    return float(candidates[bisect.bisect_left(candidates, True, key=within_budget)])


def _layer_numbers(allowed: npt.ArrayLike | None, num_layers: int) -> Int[np.ndarray, " allowed"]:
    allowed = np.ones(num_layers, bool) if allowed is None else np.asarray(allowed, bool)
    if allowed.shape != (num_layers,) or not allowed.any():
        raise InputError(
            f"allowed must be bool [{num_layers}] with at least one layer; it has the shape "
            f"{allowed.shape} and {int(allowed.sum())} layers"
        )
    return np.flatnonzero(allowed) + 1


Counts: TypeAlias = Int[np.ndarray, " layers"] | npt.ArrayLike
Span: TypeAlias = Bool[np.ndarray, " layers"]


def span_mean(exit_counts: Counts) -> Span:
    """Allows the one or two layers around the mean exit layer: floor(mean) and ceil(mean).

    Args:
      exit_counts: int [L], how many utterances left at layer 1, 2, ..., L in downstream training,
        forced exits included.

    Returns:
      bool [L], to be given to `encode` as `allowed`.

    Raises:
      InputError: nobody has left anywhere.

    Paper: section 3.3, "mean".
    """
    counts, layers = _counts(exit_counts)
    mean = float(np.sum(counts * layers) / np.sum(counts))
    return (layers >= np.floor(mean)) & (layers <= np.ceil(mean))


def span_threshold(exit_counts: Counts, share: float | np.number = 0.15) -> Span:
    """Allows the layers at which more than `share` of the utterances left.

    Arguments and result as for `span_mean`.

    Raises:
      InputError: nobody has left anywhere, or no layer has more than `share`.

    Paper: section 3.3, "threshold".
    """
    counts, _ = _counts(exit_counts)
    shares = counts / np.sum(counts)
    if not np.any(shares > share):
        raise InputError(
            f"no layer has more than {share:.0%} of the exits (the largest share is "
            f"{np.max(shares):.1%}); lower share, or use span_mean or span_min_max"
        )
    return shares > share


def span_min_max(exit_counts: Counts) -> Span:
    """Allows every layer from the earliest to the latest at which an utterance left.

    Arguments, result and errors as for `span_mean`. Paper: section 3.3, "min-max".
    """
    counts, layers = _counts(exit_counts)
    used = layers[counts > 0]
    return (layers >= used.min()) & (layers <= used.max())


def span_rules(exit_counts: Counts, threshold: float, share: float) -> list[ExitRule]:
    """The three spans with one threshold: section 3.3. One without a layer is left out.

    Args:
      exit_counts: int [L], as for `span_mean`.
      threshold: nats.
      share: of the exits that a layer of the span "threshold" must have.
    """
    makers = {
        "mean": lambda: span_mean(exit_counts),
        "threshold": lambda: span_threshold(exit_counts, share),
        "min-max": lambda: span_min_max(exit_counts),
    }
    found = []
    for name, make in makers.items():
        try:
            found.append(ExitRule(f"span {name}", threshold, make()))
        except InputError as error:
            said = "no row for the span %s at the threshold %.4f: %s"
            logger.warning(said, name, threshold, error)
    return found


def _counts(
    exit_counts: Counts,
) -> tuple[Integer[np.ndarray, " layers"], Int[np.ndarray, " layers"]]:
    counts = np.asarray(exit_counts)
    if counts.ndim != 1 or counts.dtype.kind not in "iu" or np.any(counts < 0):
        raise InputError(
            f"exit_counts must be whole, non-negative numbers [layers]; it is {counts.dtype} "
            f"{counts.shape}"
        )
    if not counts.sum():
        raise InputError("exit_counts are all zero; count exits over a training run first")
    return counts, np.arange(1, len(counts) + 1)
