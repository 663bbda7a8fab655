"""Branch entropies of a data set, at every layer."""

from collections.abc import Iterable

import jax
import numpy as np

from daisy_jax.encode import encode
from daisy_jax.errors import InputError
from daisy_jax.exits import Calibration
from daisy_jax.hubert import Hubert


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
    rows = []
    for waveform, lengths in batches:
        out = encode(model, waveform, lengths, threshold=-np.inf)
        rows.append(np.asarray(out.entropy)[np.asarray(out.num_frames) > 0])
    if not sum(map(len, rows)):
        raise InputError("no utterance to calibrate on; give at least one of 400 samples or more")
    return Calibration(np.concatenate(rows), dataset)
