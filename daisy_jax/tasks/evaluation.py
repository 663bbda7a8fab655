"""Rows of Table 1: the rules that a head is evaluated with, what they cost, what they take."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from daisy_jax.audio import SAMPLE_RATE, batch_of_one
from daisy_jax.cost import multiply_adds, threshold_for_cost
from daisy_jax.devices import medians
from daisy_jax.encode import encode
from daisy_jax.exits import (
    ExitRule,
    exit_threshold,
    fixed_layer,
    span_rules,
)
from daisy_jax.model.config import HubertConfig
from daisy_jax.model.hubert import Hubert
from daisy_jax.reporting import followed
from daisy_jax.tasks.metrics import bootstrap_interval
from daisy_jax.tasks.task import Measure
from daisy_jax.tasks.task_data import TaskData
from daisy_jax.tasks.trained_heads import TrainedHead
from daisy_jax.tasks.training import Evaluation, Evaluator, Params


class Choice(NamedTuple):
    """One way to evaluate a head."""

    label: str
    kind: Literal["own", "span", "ratio", "layer", "compute", "oracle"]
    """The head's own rule; a span; another ratio or layer; equal compute; or an oracle."""
    value: str | float | None
    """Which span, ratio, layer, or layer whose compute it is."""
    rule: ExitRule
    exits: tuple[np.ndarray, np.ndarray] | None = None
    """Exit layers and forced exits that are told, in the place of the rule's: an oracle's."""

    def cost(self, config: HubertConfig, samples: np.ndarray, exit_layer: np.ndarray) -> np.ndarray:
        """Multiply-adds, branches included; an oracle needs none."""
        evaluated = np.zeros_like(self.rule.allowed) if self.exits else self.rule.evaluated
        return multiply_adds(config, samples, exit_layer, evaluated)


def spans(head: TrainedHead, share: float) -> list[Choice]:
    """The three spans of section 3.3 with the threshold of training: rows of Table 1.

    Args:
      head: trained with a threshold.
      share: of the exits that a layer of the span "threshold" must have.
    """
    counts, threshold = np.asarray(head.exits["exit_counts"]), head.rule.threshold
    assert threshold is not None
    rules = span_rules(counts, threshold, share)
    return [Choice(rule.name, "span", rule.name.removeprefix("span "), rule) for rule in rules]


def equal_compute(data: TaskData, config: HubertConfig, layer: int) -> Choice:
    """The threshold with which these utterances cost what a static exit at `layer` costs.

    Raises:
      InputError: even leaving at the first layer costs more, because of its branch.
    """
    none = np.zeros(config.num_layers, bool)
    budget = int(multiply_adds(config, data.lengths, layer, none).sum())
    threshold = threshold_for_cost(config, data.entropy, data.lengths, budget)
    rule = ExitRule("", threshold, np.ones(config.num_layers, bool))
    return Choice(f"compute of layer {layer}", "compute", layer, rule)


def at_ratio(head: TrainedHead, ratio: float) -> Choice:
    """Another ratio at inference."""
    threshold = float(exit_threshold(head.mean_entropy, ratio))
    rule = ExitRule("", threshold, np.ones_like(head.rule.allowed))
    return Choice(f"at ratio {ratio:g}", "ratio", ratio, rule)


def label_oracle(head: TrainedHead, data: TaskData, share: float) -> Choice:
    """Leaves at the first layer at which a share of the frames has the last layer's labels."""
    agrees = np.asarray(data.agreement >= share)
    never = np.logical_not(agrees.any(axis=1))
    label = f"first layer with {share:.0%} of the final labels"
    return Choice(label, "oracle", None, head.rule, (agrees.argmax(axis=1) + 1, never))


def best_layers(head: TrainedHead, evaluator: Evaluator, params: Params) -> Choice:
    """Leaves at the layer that is best for the measure, the first of equals.

    No rule that decides by utterance can do better with this head: an upper bound, with the
    targets known. Needs stored features, and an evaluation a layer.
    """
    task = evaluator.task
    name, measure = next(iter(task.measures.items()))
    layers = range(1, len(head.rule.allowed) + 1)
    quality = []
    for layer in followed(layers, "layers"):
        rows = evaluator(params, fixed_layer(layer, len(layers))).rows
        values = np.asarray([row[f"{name}_total"] for row in rows], np.float64)
        quality.append(values if measure.higher_is_better else -values)
    ranked = np.nan_to_num(np.stack(quality), nan=-np.inf)
    best = ranked.argmax(axis=0) + 1
    exits = best, np.zeros(len(best), bool)
    return Choice("best layer of each utterance", "oracle", None, head.rule, exits)


def upstream_seconds(
    upstream: Hubert,
    params: Params,
    data: TaskData,
    choices: Sequence[Choice],
    count: int,
    runs: int,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Times of the upstream, one utterance at a time, warm, all rules in turns.

    Args:
      upstream: the model.
      params: with the weights of eq. (4), which is computed too.
      data: the utterances.
      choices: oracles among them are left out.
      count: how many utterances, evenly over the sorted durations.
      runs: measurements of each; medians are taken.

    Returns:
      which utterances, int [timed], and seconds of each by label, float [timed]; "reference" is
      full depth without branches.
    """
    order = np.argsort(data.lengths, kind="stable")
    chosen = order[np.unique(np.linspace(0, len(order) - 1, count).round().astype(int))]
    layers = upstream.config.num_layers
    rules = {choice.label: choice.rule for choice in choices if choice.exits is None}
    rules["reference"] = fixed_layer(layers, layers)
    weights = jnp.asarray(params["layer_weights"])
    seconds: dict[str, list[float]] = {label: [] for label in rules}
    for index in followed(chosen, "timing"):
        waveform = data.examples.corpus.read(int(index), 0, int(data.lengths[index]))
        placed = jax.device_put(batch_of_one(waveform))

        def task(rule: ExitRule, placed: Any = placed) -> Callable[[], object]:
            options = {"threshold": rule.threshold, "allowed": rule.allowed}
            return lambda: jax.block_until_ready(
                encode(upstream, *placed, layer_weights=weights, **options).pooled
            )

        for label, time in medians({k: task(rule) for k, rule in rules.items()}, runs).items():
            seconds[label].append(time)
    return chosen, {label: np.asarray(times) for label, times in seconds.items()}


def summary(
    choice: Choice,
    evaluation: Evaluation,
    config: HubertConfig,
    measures: dict[str, Measure],
    times: tuple[np.ndarray, np.ndarray, np.ndarray] | None,
) -> dict[str, Any]:
    """One row of the table; what each utterance costs is added to the evaluation's rows.

    Args:
      choice: how it was evaluated.
      evaluation: what came out.
      config: the upstream's.
      measures: the task's.
      times: which utterances were timed, their seconds, and those at full depth; None: no times.
    """
    layers = np.asarray([row["exit_layer"] for row in evaluation.rows])
    samples = np.asarray([round(row["seconds"] * SAMPLE_RATE) for row in evaluation.rows])
    full = multiply_adds(config, samples, config.num_layers, np.zeros(config.num_layers, bool))
    costs = choice.cost(config, samples, layers)
    for row, cost, whole in zip(evaluation.rows, costs, full, strict=True):
        row |= {"multiply_adds": int(cost), "full_multiply_adds": int(whole)}
        row |= {"upstream_seconds": None, "full_depth_seconds": None}
    found: dict[str, Any] = {
        "rule": choice.label,
        "kind": choice.kind,
        "value": choice.value,
        "threshold": choice.rule.threshold,
        "allowed": (np.flatnonzero(choice.rule.allowed) + 1).tolist(),
        "measures": {},
        "mean_exit_layer": float(layers.mean()),
        "forced": None,
        "layers_saved": float(1 - layers.mean() / config.num_layers),
        "multiply_adds_saved": float(1 - costs.sum() / full.sum()),
        "time_saved": None,
    }
    if choice.rule.threshold is not None and choice.exits is None:
        found["forced"] = float(np.mean([row["forced"] for row in evaluation.rows]))
    for name in measures:
        totals, weights = evaluation.measure(name)
        found["measures"][name] = {
            "value": evaluation.value(name),
            "interval": bootstrap_interval(totals, weights),
            "undefined": len(evaluation.rows) - len(totals),
        }
    if times is not None:
        chosen, seconds, reference = times
        for index, spent, whole in zip(chosen, seconds, reference, strict=True):
            evaluation.rows[index] |= {
                "upstream_seconds": float(spent),
                "full_depth_seconds": float(whole),
            }
        low, high = bootstrap_interval(seconds, reference)
        found["time_saved"] = {
            "value": float(1 - seconds.sum() / reference.sum()),
            "interval": (1 - high, 1 - low),
            "utterances": len(chosen),
            "multiply_adds_saved": float(1 - costs[chosen].sum() / full[chosen].sum()),
        }
    return found
