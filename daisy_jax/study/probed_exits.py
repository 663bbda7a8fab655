"""What leaving early is worth to linear probes, against a static exit that costs as much.

A probe for each layer is a task head at its simplest, trained for the very layer at which an
utterance leaves.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from daisy_jax import HubertConfig
from daisy_jax.exits import exit_layers
from daisy_jax.study.probes import Hits
from daisy_jax.tasks.evaluation import rule_at_compute
from daisy_jax.tasks.metrics import paired_interval, quotient

ALL = "all"
"""All conditions together."""


class Compared(NamedTuple):
    """Early and static exit under one condition."""

    condition: str
    mean_exit_layer: float
    early: float
    """Share of the frames whose label the probe of the utterance's own exit layer finds."""
    static: float
    """The same of the static exit layer's probe."""
    interval: tuple[float, float]
    """Of their difference, by a bootstrap over utterances, each with all its conditions."""


def compare_exits(
    config: HubertConfig,
    conditions: Mapping[str, Hits],
    samples: Int[np.ndarray, " utterances"],
    layer: int,
) -> list[Compared]:
    """Compares exits by one threshold with the static exit of `layer`.

    The threshold is the one with which all utterances under all conditions together cost what the
    static exit costs, branches included.

    Args:
      config: the model's.
      conditions: what probes found in the same utterances, by condition, with entropies.
      samples: lengths of the utterances.
      layer: of the static exit, 1 to L.

    Returns:
      A row a condition, and one of all of them.

    Raises:
      InputError: even leaving at the first layer costs more.
    """
    every = list(conditions.values())
    entropy = np.concatenate([hits.entropy for hits in every])
    rule = rule_at_compute(config, entropy, np.tile(samples, len(every)), layer)
    assert rule.threshold is not None
    exits = [exit_layers(hits.entropy, rule.threshold)[0] for hits in every]
    early = [
        np.take_along_axis(hits.right, at[:, None], axis=1)[:, 0]
        for hits, at in zip(every, exits, strict=True)
    ]
    static = [hits.right[:, layer] for hits in every]
    frames = [hits.frames for hits in every]
    rows = [*zip(conditions, exits, early, static, frames, strict=True)]
    if len(rows) > 1:
        sums = (np.sum(each, axis=0) for each in (early, static, frames))
        rows.append((ALL, np.mean(exits, axis=0), *sums))
    return [
        Compared(
            name,
            float(np.mean(at)),
            float(quotient(ours, weight)),
            float(quotient(theirs, weight)),
            paired_interval((ours, weight), (theirs, weight)),
        )
        for name, at, ours, theirs, weight in rows
    ]
