"""HuBERT in JAX and Flax, with DAISY early exit."""

from daisy_jax.errors import InputError, end_at_once_on_interrupts

end_at_once_on_interrupts()  # before the second that JAX takes

from daisy_jax import audio
from daisy_jax.calibration import calibrate
from daisy_jax.checkpoints import save
from daisy_jax.conversions.any_model import KnownCheckpoint, known_checkpoints, load
from daisy_jax.cost import multiply_adds
from daisy_jax.encode import Encoded, encode
from daisy_jax.exits import (
    Calibration,
    exit_threshold,
    span_mean,
    span_min_max,
    span_threshold,
    threshold_for_budget,
    threshold_for_risk,
)
from daisy_jax.features.files import FileResult, encode_files
from daisy_jax.model.config import HubertConfig
from daisy_jax.model.frame_labels import frame_labels
from daisy_jax.model.hubert import Hubert, final_norm

__version__ = "0.1.0"

__all__ = [
    "Calibration",
    "Encoded",
    "FileResult",
    "Hubert",
    "HubertConfig",
    "InputError",
    "KnownCheckpoint",
    "audio",
    "calibrate",
    "encode",
    "encode_files",
    "exit_threshold",
    "final_norm",
    "frame_labels",
    "known_checkpoints",
    "load",
    "multiply_adds",
    "save",
    "span_mean",
    "span_min_max",
    "span_threshold",
    "threshold_for_budget",
    "threshold_for_risk",
]
