"""What branches say of a data set, at every layer."""

from collections.abc import Iterable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jaxtyping import Array, Float, Int

from daisy_jax.errors import InputError
from daisy_jax.exits import Calibration
from daisy_jax.model.branches import entropy_and_agreement
from daisy_jax.model.hubert import Hubert, embed
from daisy_jax.model.inputs import AnyArray, as_array, checked_batch
from daisy_jax.model.layer_loops import tapped_layers
from daisy_jax.parallel import fetched_behind

Scores: TypeAlias = Float[Array, "batch layers"]


def calibrate(
    model: Hubert,
    batches: Iterable[tuple[Array | npt.ArrayLike, Array | npt.ArrayLike | None]],
    dataset: str = "",
) -> Calibration:
    """Runs a data set through all layers and keeps what each branch says of each utterance.

    Args:
      model: a model with branches.
      batches: pairs of waveform, float [batch, samples], and lengths, int [batch] or None, as
        `encode` takes them. Rows without a frame are left out.
      dataset: its name, stored beside the numbers.

    Returns:
      A `Calibration` with float32 entropies and agreements. `model.replace(calibration=...)` puts
      it into a model, `save` stores it (as float16).

    Raises:
      InputError: the model has no branches, or there is no utterance.
    """
    if model.branches is None:
        raise InputError("model has no branches to calibrate; train them with train/branches.py")

    def start(
        waveform: Array | npt.ArrayLike, lengths: Array | npt.ArrayLike | None
    ) -> tuple[Scores, Scores, Int[Array, " batch"]]:
        lengths = None if lengths is None else _own(lengths)
        return _scores(model, *checked_batch(_own(waveform), lengths))

    started = (start(waveform, lengths) for waveform, lengths in batches)
    rows = [(e[frames > 0], a[frames > 0]) for e, a, frames in fetched_behind(started)]
    if not sum(len(entropy) for entropy, _ in rows):
        raise InputError(
            "batches hold no utterance to calibrate on; give at least one of 400 samples or more"
        )
    entropy, agreement = map(np.concatenate, zip(*rows, strict=True))
    return Calibration(entropy, dataset, agreement)


@jax.jit
def _scores(
    model: Hubert, waveform: Float[Array, "batch samples"], lengths: Int[Array, " batch"]
) -> tuple[Scores, Scores, Int[Array, " batch"]]:
    """Entropy and agreement at every layer, and how many frames there are."""
    embedded = embed(model, waveform, lengths)
    _, tapped = tapped_layers(model, embedded)
    assert model.branches is not None  # as `calibrate` has found
    entropy, agreement = entropy_and_agreement(model.branches, tapped, embedded.frame_mask)
    return entropy, agreement, jnp.sum(embedded.frame_mask, axis=1, dtype=jnp.int32)


def _own(values: Array | npt.ArrayLike) -> AnyArray:
    """A copy of what the caller may fill again for the next batch, while this one is computed."""
    array = as_array(values)
    return array.copy() if isinstance(array, np.ndarray) else array
