"""Branch entropies of a data set, at every layer."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from jaxtyping import Array, Float, Int

from daisy_jax.encode import encode
from daisy_jax.errors import InputError
from daisy_jax.exits import Calibration
from daisy_jax.model.hubert import Hubert
from daisy_jax.model.inputs import AnyArray, as_array
from daisy_jax.parallel import fetched_behind


def calibrate(
    model: Hubert,
    batches: Iterable[tuple[Array | npt.ArrayLike, Array | npt.ArrayLike | None]],
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

    def start(
        waveform: Array | npt.ArrayLike, lengths: Array | npt.ArrayLike | None
    ) -> tuple[Float[Array, "batch layers"], Int[Array, " batch"]]:
        lengths = None if lengths is None else _own(lengths)
        out = encode(model, _own(waveform), lengths, threshold=-np.inf)
        return out.entropy, out.num_frames

    started = (start(waveform, lengths) for waveform, lengths in batches)
    rows = [entropy[num_frames > 0] for entropy, num_frames in fetched_behind(started)]
    if not sum(map(len, rows)):
        raise InputError(
            "batches hold no utterance to calibrate on; give at least one of 400 samples or more"
        )
    return Calibration(np.concatenate(rows), dataset)


def _own(values: Array | npt.ArrayLike) -> AnyArray:
    """A copy of what the caller may fill again for the next batch, while this one is computed."""
    array = as_array(values)
    return array.copy() if isinstance(array, np.ndarray) else array
