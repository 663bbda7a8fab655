"""What encoding costs, in multiply-adds."""

import bisect

import numpy as np
import numpy.typing as npt
from jaxtyping import Float, Int, Integer

from daisy_jax.audio import CONV_KERNELS, CONV_STRIDES, frame_count
from daisy_jax.errors import InputError
from daisy_jax.exits import exit_layers, exit_steps
from daisy_jax.model.config import HubertConfig


def multiply_adds(
    config: HubertConfig,
    samples: int | Integer[np.ndarray, "..."] | npt.ArrayLike,
    exit_layer: int | Integer[np.ndarray, "..."] | npt.ArrayLike,
    allowed: npt.ArrayLike | None = None,
) -> Int[np.ndarray, "..."]:
    """Multiply-adds of the front end, the layers up to the exit and the branches evaluated there.

    Counts matrix products and convolutions; norms, activations and softmax are left out, as usual.

    Args:
      config: the model's.
      samples: valid samples of an utterance, or an int array.
      exit_layer: 0..L, or an int array that broadcasts with `samples`.
      allowed: bool [L], where branches are evaluated; None: at every layer, if the model has
        branches. All False is the cost of a run without a threshold.

    Returns:
      int64, of the broadcast shape. 0 for audio without a frame.
    """
    samples, exit_layer = np.asarray(samples, np.int64), np.asarray(exit_layer, np.int64)
    if np.any((exit_layer < 0) | (exit_layer > config.num_layers)):
        raise InputError(f"exit_layer must lie between 0 and {config.num_layers}")
    evaluated = np.ones(config.num_layers, bool) if allowed is None else np.asarray(allowed, bool)
    if evaluated.shape != (config.num_layers,):
        raise InputError(f"allowed has the shape {evaluated.shape}, not ({config.num_layers},)")

    frames = frame_count(samples)
    front_end = frames * config.conv_dim * config.dim  # projection
    front_end += frames * config.dim * config.dim // config.pos_conv_groups * config.pos_conv_kernel
    steps, channels = samples, 1
    for kernel, stride in zip(CONV_KERNELS, CONV_STRIDES, strict=True):
        steps = (steps - kernel) // stride + 1
        front_end += steps * kernel * channels * config.conv_dim
        channels = config.conv_dim

    projections = frames * (4 * config.dim**2 + 2 * config.dim * config.ffn_dim)
    attention = 2 * frames * frames * config.dim
    branch = frames * config.dim * config.num_classes
    branches = np.concatenate([[0], np.cumsum(evaluated)])[exit_layer] * branch
    total = front_end + exit_layer * (projections + attention) + branches
    return np.asarray(np.where(frames > 0, total, 0))


def threshold_for_cost(
    config: HubertConfig,
    entropy: Float[np.ndarray, "utterances layers"],
    samples: npt.ArrayLike,
    budget: int,
) -> float:
    """The smallest threshold with which utterances cost at most `budget`, branches included.

    Args:
      config: the model's.
      entropy: float [utterances, L], nats, as in `Calibration.entropy`.
      samples: int [utterances], valid samples.
      budget: multiply-adds of all of them together.

    Returns:
      The threshold, nats; -inf if all may go through all layers.

    Raises:
      InputError: even leaving at the first layer costs more.
    """
    candidates = exit_steps(entropy, None).thresholds.tolist()

    def within(threshold: float) -> bool:
        exits, _ = exit_layers(entropy, threshold)
        return int(multiply_adds(config, samples, exits).sum()) <= budget

    if not within(candidates[-1]):
        raise InputError(
            f"{budget} multiply-adds cannot be kept to: leaving at the first layer costs "
            f"{multiply_adds(config, samples, 1).sum()}; raise the budget"
        )
    # The cost falls as the threshold rises.
    return candidates[bisect.bisect_left(candidates, True, key=within)]
