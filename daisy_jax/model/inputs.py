"""Checks of what callers pass, before anything is traced."""

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.core import Tracer
from jaxtyping import Array, Float, Integer

from daisy_jax import audio
from daisy_jax.errors import InputError

AnyArray = Array | np.ndarray


def as_array(values: Array | npt.ArrayLike) -> AnyArray:
    """Lists, torch tensors and the like as numpy arrays; what JAX knows as it is."""
    if isinstance(values, (np.ndarray, jax.Array)):
        return values
    try:
        return jnp.asarray(values) if hasattr(values, "__jax_array__") else np.asarray(values)
    except ValueError:
        raise InputError(
            "values are lists of different length and so no batch; daisy_jax.audio.pad_batch makes "
            "one of them"
        ) from None


def has_values(array: AnyArray) -> bool:
    """Whether an array's values can be looked at here: not traced, not on other hosts."""
    if isinstance(array, Tracer):
        return False
    return not isinstance(array, jax.Array) or array.is_fully_addressable


def checked(
    values: Array | npt.ArrayLike, name: str, kind: str, shape: tuple[int, ...], dtype: type
) -> AnyArray:
    """The values as an array of the shape and of a kind of type; raises InputError otherwise."""
    array = as_array(values)
    if array.shape != shape or not jnp.issubdtype(array.dtype, dtype):
        raise InputError(f"{name} is {array.dtype} {array.shape}; it must be {kind} {list(shape)}")
    return array


def checked_batch(
    waveform: Array | npt.ArrayLike, lengths: Array | npt.ArrayLike | None
) -> tuple[Float[AnyArray, "batch samples"], Integer[AnyArray, " batch"]]:
    """A batch of waveforms and their lengths, which are all full if None.

    Raises:
      InputError: another rank or type, fewer than 400 samples, or lengths outside of the waveform.
    """
    waveform = as_array(waveform)
    if waveform.ndim != 2 or not jnp.issubdtype(waveform.dtype, jnp.floating):
        raise InputError(
            f"waveform is {waveform.dtype} {waveform.shape}; wanted float [batch, samples] at "
            "16 kHz, full scale 1 (daisy_jax.audio.load reads files so)"
        )
    batch, samples = waveform.shape
    if samples < audio.FRAME_WINDOW:
        raise InputError(
            f"waveform has {samples} samples; HuBERT needs at least {audio.FRAME_WINDOW} (25 ms)"
        )
    given = np.full(batch, samples, np.int32) if lengths is None else lengths
    lengths = checked(given, "lengths", "an int array", (batch,), np.integer)
    if batch and has_values(lengths):
        shortest, longest = np.min(np.asarray(lengths)), np.max(np.asarray(lengths))
        if shortest < 0 or longest > samples:
            raise InputError(
                f"lengths go from {shortest} to {longest}; they must lie between 0 and the "
                f"{samples} samples of the waveform"
            )
    return waveform, lengths
