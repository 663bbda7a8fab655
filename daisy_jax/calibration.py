"""Branch entropies of a data set, at every layer."""

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from daisy_jax.devices import fetched_behind
from daisy_jax.encode import encode
from daisy_jax.errors import InputError
from daisy_jax.exits import Calibration
from daisy_jax.model.hubert import Hubert
from daisy_jax.model.inputs import as_array


def calibrate(
    model: Hubert,
    batches: Iterable[tuple[np.ndarray | jax.Array, np.ndarray | jax.Array | None]],
    dataset: str = "",
) -> Calibration:
    """Runs a data set through all layers and keeps each utterance's entropies.

    Args:
      model: a model with branches.
      batches: pairs of waveform, float [batch, samples], and lengths, int [batch] or None, as
        `encode` takes them. Rows without a frame are left out.
      dataset: its name, stored beside the entropies.

    Returns:
      A `Calibration` with float32 entropies. `model.replace(calibration=...)` puts it into a model,
      `save` stores it (as float16).

    Raises:
      InputError: the model has no branches, or there is no utterance.
    """

    def start(waveform: Any, lengths: Any) -> tuple[jax.Array, jax.Array]:
        out = encode(model, _own(waveform), _own(lengths), threshold=-np.inf)
        return out.entropy, out.num_frames

    started = (start(waveform, lengths) for waveform, lengths in batches)
    rows = [entropy[num_frames > 0] for entropy, num_frames in fetched_behind(started)]
    if not sum(map(len, rows)):
        raise InputError("no utterance to calibrate on; give at least one of 400 samples or more")
    return Calibration(np.concatenate(rows), dataset)


def _own(array: Any) -> Any:
    """A copy of what the caller may fill again for the next batch, while this one is computed."""
    known = None if array is None else as_array(array)
    return known.copy() if isinstance(known, np.ndarray) else known
