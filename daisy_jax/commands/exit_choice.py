"""Which threshold and layers the options of `daisy-jax encode` stand for."""

import json
import math
import pathlib
from typing import Any

import numpy as np

from daisy_jax.errors import InputError


def choose_exits(options: Any, model: Any) -> tuple[float | None, np.ndarray, str]:
    """Threshold, allowed layers, and both in words."""
    from daisy_jax.exits import exit_threshold, threshold_for_budget

    ways = {"--ratio": options.ratio, "--threshold": options.threshold, "--budget": options.budget}
    ways |= {"--layer": options.layer, "--full": options.full or None}
    given = [name for name, value in ways.items() if value is not None]
    if len(given) > 1:
        raise InputError(f"{' and '.join(given)} exclude each other; give one of them")
    allowed, span = _span(options, model.config.num_layers, given)
    if options.full:
        return None, allowed, "full depth"
    if options.layer is not None:
        if not 1 <= options.layer <= len(allowed):
            raise InputError(f"--layer {options.layer}: the model has layers 1 to {len(allowed)}")
        return None, np.arange(1, len(allowed) + 1) == options.layer, f"layer {options.layer}"
    if model.branches is None:
        raise InputError(
            "this model has no branches, so no threshold can be met; train them with "
            "train/branches.py, or give --full or --layer"
        )
    if options.threshold is not None:
        if math.isnan(options.threshold):
            raise InputError("--threshold is nan; it must be a number of nats")
        return options.threshold, allowed, f"threshold {options.threshold:.4g} nats{span}"
    calibration = model.calibration
    if calibration is None:
        raise InputError(
            "this model has no calibration; run daisy-jax calibrate, or give --threshold, "
            "--layer or --full"
        )
    if options.budget is not None:
        if not 1 <= options.budget <= len(allowed):
            raise InputError(f"--budget {options.budget:g}: give 1 to {len(allowed)} layers")
        threshold = threshold_for_budget(calibration.entropy, options.budget, allowed)
        way = f"budget {options.budget:g} layers"
    else:
        ratio = 0.7 if options.ratio is None else options.ratio
        threshold = float(exit_threshold(calibration.mean_entropy, ratio))
        way = f"ratio {ratio:g}"
    source = f" on {calibration.dataset}" if calibration.dataset else ""
    return threshold, allowed, f"threshold {threshold:.4g} nats ({way}{source}){span}"


def _span(options: Any, num_layers: int, given: list[str]) -> tuple[np.ndarray, str]:
    from daisy_jax.exits import span_mean, span_min_max, span_threshold

    if (options.span is None) != (options.exits is None):
        raise InputError("--span and --exits belong together; give both or none")
    if options.span is None or options.exits is None:
        return np.ones(num_layers, bool), ""
    if given in (["--layer"], ["--full"]):
        raise InputError(f"--span and {given[0]} exclude each other; give one of them")
    try:
        counts = np.asarray(json.loads(pathlib.Path(options.exits).read_text())["exit_counts"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f'{options.exits}: not an exits file ({error}); it must hold {{"exit_counts": [...]}}'
        ) from None
    if counts.shape != (num_layers,):
        raise InputError(
            f"{options.exits}: {counts.size} counts for a model of {num_layers} layers"
        )
    spans = {"mean": span_mean, "threshold": span_threshold, "min-max": span_min_max}
    allowed = spans[options.span](counts)
    layers = ", ".join(str(layer) for layer in np.flatnonzero(allowed) + 1)
    return allowed, f", span {options.span} (layers {layers})"
