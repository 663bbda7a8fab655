"""Rows of Table 1: the rules that a task head is evaluated with, what they cost, what they take."""

import functools
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jaxtyping import Float, Int

from daisy_jax.audio import SAMPLE_RATE, batch_of_one
from daisy_jax.cost import multiply_adds, threshold_for_cost
from daisy_jax.encode import encode
from daisy_jax.exits import ExitRule, exit_threshold, fixed_layer, span_rules
from daisy_jax.model.config import HubertConfig
from daisy_jax.model.hubert import Hubert
from daisy_jax.parallel import medians
from daisy_jax.reporting import followed, leave_out_item
from daisy_jax.tasks.metrics import bootstrap_interval
from daisy_jax.tasks.task import Measure
from daisy_jax.tasks.task_data import Exits, TaskData
from daisy_jax.tasks.trained_heads import TrainedHead
from daisy_jax.tasks.training import Evaluation, Evaluator, Params

Kind = Literal["own", "span", "ratio", "layer", "risk", "oracle"]
"""The head's own rule; a span; another ratio or layer; a certified threshold; or an oracle."""


class Choice(NamedTuple):
    """One way to evaluate a task head."""

    label: str
    kind: Kind
    value: str | float | None
    """Which span, ratio, layer or risk."""
    rule: ExitRule
    exits: Exits | None = None
    """What an oracle says in the place of the rule."""

    def costs(
        self, evaluation: Evaluation, config: HubertConfig
    ) -> tuple[Int[np.ndarray, " utterances"], Int[np.ndarray, " utterances"]]:
        """Multiply-adds, branches included, of which an oracle needs none; and at full depth."""
        samples = np.asarray([utterance.samples for utterance in evaluation.utterances])
        layers = np.asarray([utterance.exit_layer for utterance in evaluation.utterances])
        none = np.zeros(config.num_layers, bool)
        evaluated = none if self.exits else self.rule.evaluated
        return (
            multiply_adds(config, samples, layers, evaluated),
            multiply_adds(config, samples, config.num_layers, none),
        )


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


def rule_at_compute(
    config: HubertConfig,
    entropy: Float[np.ndarray, "utterances layers"],
    samples: npt.ArrayLike,
    layer: int,
) -> ExitRule:
    """The threshold with which utterances cost what they cost if all leave at `layer`.

    The static exit is computed without any branch, the other with its branches.

    Args:
      config: the model's.
      entropy: float [utterances, L], nats.
      samples: int [utterances], valid samples.
      layer: 1..L.

    Raises:
      InputError: even leaving at the first layer costs more, because of its branch.
    """
    none = np.zeros(config.num_layers, bool)
    budget = int(multiply_adds(config, samples, layer, none).sum())
    threshold = threshold_for_cost(config, entropy, samples, budget)
    return ExitRule(f"compute of layer {layer}", threshold, np.ones(config.num_layers, bool))


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
    measure = next(iter(evaluator.task.measures.values()))
    totals, _ = sums_by_layer(head, evaluator, params)
    quality = totals if measure.higher_is_better else -totals
    best = np.nan_to_num(quality, nan=-np.inf).argmax(axis=1) + 1
    exits = best, np.zeros(len(best), bool)
    return Choice("best layer of each utterance", "oracle", None, head.rule, exits)


def sums_by_layer(
    head: TrainedHead, evaluator: Evaluator, params: Params
) -> tuple[Float[np.ndarray, "utterances layers"], Float[np.ndarray, "utterances layers"]]:
    """Totals and weights of the first measure, of each utterance if it leaves at each layer.

    NaN where an utterance could not be read.
    """
    name, layers = next(iter(evaluator.task.measures)), len(head.rule.allowed)
    numbers = {id: number for number, id in enumerate(evaluator.names)}
    sums = np.full((2, len(numbers), layers), np.nan)
    for layer in followed(range(1, layers + 1), "layers"):
        for each in evaluator(params, fixed_layer(layer, layers)).utterances:
            sums[:, numbers[each.id], layer - 1] = each.measured.values[name]
    totals, weights = sums
    return totals, weights


class Timing(NamedTuple):
    """How long the trunk takes with its branches, one utterance at a time."""

    indices: Int[np.ndarray, " timed"]
    """Utterances that were timed."""
    seconds: dict[str, Float[np.ndarray, " timed"]]
    """By the label of a choice; there are none of oracles."""
    full_depth: Float[np.ndarray, " timed"]
    """Seconds at full depth without branches."""


def time_trunk(
    trunk: Hubert, params: Params, data: TaskData, choices: Sequence[Choice], count: int, runs: int
) -> Timing | None:
    """Times the trunk, warm, all rules in turns; None if no utterance's sound can be read.

    Args:
      trunk: with its branches.
      params: with the weights of eq. (4), which is computed too.
      data: the utterances.
      choices: oracles among them are left out.
      count: how many utterances, evenly over the sorted durations.
      runs: measurements of each; medians are taken.
    """
    order = np.argsort(data.lengths, kind="stable")
    indices = order[np.unique(np.linspace(0, len(order) - 1, count).round().astype(int))]
    layers = trunk.config.num_layers
    rules = {choice.label: choice.rule for choice in choices if choice.exits is None}
    rules[""] = fixed_layer(layers, layers)  # what the others are compared with
    weights = jnp.asarray(params["layer_weights"])
    timed: list[int] = []
    times: list[list[float]] = []
    corpus = data.examples.corpus
    for index in followed(indices.tolist(), "timing"):
        try:
            waveform = corpus.read(index, 0, int(data.lengths[index]))
        except Exception as error:
            leave_out_item(corpus.names[index], error)
            continue
        batch = jax.device_put(batch_of_one(waveform))

        def pooled(rule: ExitRule, batch: tuple[jax.Array, jax.Array] = batch) -> object:
            options = {"threshold": rule.threshold, "allowed": rule.allowed}
            return jax.block_until_ready(
                encode(trunk, *batch, layer_weights=weights, **options).pooled
            )

        tasks = {label: functools.partial(pooled, rule) for label, rule in rules.items()}
        timed.append(index)
        times.append(list(medians(tasks, runs).values()))
    if not timed:
        return None
    seconds = dict(zip(rules, np.asarray(times).T, strict=True))
    full_depth = seconds.pop("")
    return Timing(np.asarray(timed), seconds, full_depth)


class MeasuredValue(TypedDict):
    """A measure of a whole part of a corpus; None in the place of what is not defined."""

    value: float | None
    interval: tuple[float | None, float | None]
    """Both ends, 95 %; None where the value is."""
    undefined: int
    """Utterances for which it is not defined."""


class TimeSaved(TypedDict):
    """Time against full depth."""

    value: float
    """Share of it."""
    interval: tuple[float, float]
    """Both ends, 95 %."""
    utterances: int
    """So many were timed."""
    multiply_adds_saved: float
    """On the same utterances."""


class Row(TypedDict):
    """A rule in results.json."""

    rule: str
    kind: Kind
    value: str | float | None
    threshold: float | None
    """Nats."""
    allowed: list[int]
    """Layers, from 1."""
    measures: dict[str, MeasuredValue]
    mean_exit_layer: float
    forced: float | None
    """Share of the utterances; None without a threshold."""
    layers_saved: float
    multiply_adds_saved: float
    time_saved: TimeSaved | None


def summary(
    choice: Choice,
    evaluation: Evaluation,
    config: HubertConfig,
    measures: dict[str, Measure],
    timing: Timing | None,
) -> Row:
    """One row of the table.

    Args:
      choice: how it was evaluated.
      evaluation: what came out.
      config: the trunk's.
      measures: the task's.
      timing: None: nothing was timed.
    """
    costs, full = choice.costs(evaluation, config)
    layer = float(np.mean([utterance.exit_layer for utterance in evaluation.utterances]))
    row: Row = {
        "rule": choice.label,
        "kind": choice.kind,
        "value": choice.value,
        "threshold": choice.rule.threshold,
        "allowed": (np.flatnonzero(choice.rule.allowed) + 1).tolist(),
        "measures": {},
        "mean_exit_layer": layer,
        "forced": None,
        "layers_saved": 1 - layer / config.num_layers,
        "multiply_adds_saved": float(1 - costs.sum() / full.sum()),
        "time_saved": None,
    }
    if choice.rule.threshold is not None and choice.exits is None:
        row["forced"] = float(np.mean([utterance.forced for utterance in evaluation.utterances]))
    for name in measures:
        sums = evaluation.measure(name)
        row["measures"][name] = {
            "value": evaluation.value(name),
            "interval": bootstrap_interval(sums),
            "undefined": len(evaluation.utterances) - len(sums[0]),
        }
    if timing is not None and choice.label in timing.seconds:
        seconds, timed = timing.seconds[choice.label], timing.indices
        low, high = bootstrap_interval((seconds, timing.full_depth))
        row["time_saved"] = {
            "value": float(1 - seconds.sum() / timing.full_depth.sum()),
            "interval": (1 - high, 1 - low),
            "utterances": len(timed),
            "multiply_adds_saved": float(1 - costs[timed].sum() / full[timed].sum()),
        }
    return row


def utterance_rows(
    choice: Choice, evaluation: Evaluation, config: HubertConfig, timing: Timing | None
) -> list[dict[str, object]]:
    """The rows of utterances.parquet, in the evaluation's order; arguments as of `summary`."""
    rows: list[dict[str, object]] = []
    for utterance, cost, full in zip(
        evaluation.utterances, *choice.costs(evaluation, config), strict=True
    ):
        row: dict[str, object] = {
            "rule": choice.label,
            "id": utterance.id,
            "seconds": utterance.samples / SAMPLE_RATE,
            "exit_layer": utterance.exit_layer,
            "forced": utterance.forced,
            "text": utterance.measured.text,
        }
        for name, (total, weight) in utterance.measured.values.items():
            row |= {f"{name}_total": total, f"{name}_weight": weight}
        row |= {"multiply_adds": int(cost), "full_multiply_adds": int(full)}
        rows.append(row | {"upstream_seconds": None, "full_depth_seconds": None})
    if timing is not None and choice.label in timing.seconds:
        times = zip(timing.indices, timing.seconds[choice.label], timing.full_depth, strict=True)
        for index, seconds, full in times:
            rows[index] |= {"upstream_seconds": float(seconds), "full_depth_seconds": float(full)}
    return rows
