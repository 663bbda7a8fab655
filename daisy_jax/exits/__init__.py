"""When to leave: calibration, thresholds, and the layers at which an utterance may leave."""

from daisy_jax.exits.budget import threshold_for_budget
from daisy_jax.exits.calibrated import Calibration, exit_threshold
from daisy_jax.exits.risk import threshold_for_agreement, threshold_for_risk
from daisy_jax.exits.rules import ExitRule, exit_layers, fires, fixed_layer
from daisy_jax.exits.spans import span_mean, span_min_max, span_rules, span_threshold
from daisy_jax.exits.steps import exit_steps

__all__ = [
    "Calibration",
    "ExitRule",
    "exit_layers",
    "exit_steps",
    "exit_threshold",
    "fires",
    "fixed_layer",
    "span_mean",
    "span_min_max",
    "span_rules",
    "span_threshold",
    "threshold_for_agreement",
    "threshold_for_budget",
    "threshold_for_risk",
]
