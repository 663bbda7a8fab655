"""What the tests share: the one tolerance and how it is applied, and results as numpy arrays."""

import jax
import numpy as np

import daisy_jax

RELATIVE_TOLERANCE = 1e-5
"""Largest error allowed, as a share of the RMS of the expected tensor.

float32 has a unit roundoff of 6e-8. Sums over some hundred to thousand terms, chained through a
dozen layers each of which brings its result back to unit scale, leave a few times 1e-7 to 3e-6;
real mistakes (another epsilon, the tanh GELU, one frame of padding in a mean) start at 1e-4.
So 1e-5 separates the two. It is not raised to let a test pass.
"""


def assert_close_to_scale(actual, desired) -> None:
    """The largest absolute difference is at most 1e-5 of the RMS of `desired`; same shapes.

    Pass valid frames only: zeros of padding would make the scale, and so the bound, smaller.
    """
    actual, desired = np.asarray(actual), np.asarray(desired)
    assert actual.shape == desired.shape, f"shape {actual.shape} is not {desired.shape}"
    error = relative_error(actual, desired)
    assert error <= RELATIVE_TOLERANCE, f"off by {error:.2e} of the scale"


def relative_error(actual, desired) -> float:
    """Largest absolute difference over the RMS of `desired`; NaN or infinity if either has some."""
    actual, desired = np.asarray(actual, np.float64), np.asarray(desired, np.float64)
    if not actual.size:
        return 0.0
    difference = float(np.max(np.abs(actual - desired)))
    scale = float(np.sqrt(np.mean(desired * desired)))
    return difference / scale if scale else (0.0 if difference == 0 else np.inf)


def numpy_of(tree):
    """As numpy arrays: each index into an array of JAX would be a program of its own."""
    return jax.tree.map(np.asarray, tree)


def encoded_alone(model, waveform, width: int, **options):
    """What `encode` has for one waveform [samples]; valid frames.

    Args:
      model: any model.
      waveform: at most `width` samples.
      width: what it is padded to, so that one program serves waveforms of all lengths.
      **options: of `encode`.
    """
    batch = daisy_jax.audio.pad_batch([waveform], width)
    out = numpy_of(daisy_jax.encode(model, *batch, **options))
    frames, hidden, pooled = int(out.num_frames[0]), out.hidden_states, out.pooled
    return out._replace(
        last_hidden=out.last_hidden[:, :frames],
        hidden_states=None if hidden is None else hidden[:, :, :frames],
        pooled=None if pooled is None else pooled[:, :frames],
    )
