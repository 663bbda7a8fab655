"""Exits in replay: what is lost and saved at any threshold, and whether certified ones keep it."""

import dataclasses
import pathlib
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from daisy_jax import InputError, multiply_adds, threshold_for_risk
from daisy_jax.data.corpus import Corpus
from daisy_jax.exits import exit_layers, exit_steps
from daisy_jax.features.criterion_scores import criterion_scores
from daisy_jax.model.config import HubertConfig
from daisy_jax.model.criteria import LeastConfidence, Patience
from daisy_jax.model.hubert import Hubert
from daisy_jax.study.conditions import Condition
from daisy_jax.tasks.metrics import resampled

Scores = Float[np.ndarray, "utterances layers"]


class Replay(NamedTuple):
    """What a criterion says of some utterances, and what they lose and cost where they leave."""

    score: Scores
    """float32; one leaves below a threshold."""
    loss: Scores
    """Share of the frames that do not have the last layer's label."""
    cost: Scores
    """Multiply-adds, branches included."""
    full: Float[np.ndarray, " utterances"]
    """Multiply-adds at full depth without branches."""

    def of(self, chosen: Int[np.ndarray, " some"]) -> "Replay":
        """Some of the utterances."""
        return Replay(*(values[chosen] for values in self))

    def at(self, threshold: float) -> tuple[float, float, float]:
        """Mean loss, multiply-adds saved, and mean exit layer."""
        layers, _ = exit_layers(self.score, threshold)
        rows = np.arange(len(layers))
        saved = 1 - self.cost[rows, layers - 1].sum() / self.full.sum()
        return float(self.loss[rows, layers - 1].mean()), float(saved), float(layers.mean())

    def curve(self) -> tuple[Float[np.ndarray, " steps"], Float[np.ndarray, " steps"]]:
        """Mean loss and multiply-adds saved at all thresholds, from the lowest on."""
        steps = exit_steps(self.score, None)
        loss = steps.totals(self.loss) / len(self.loss)
        return loss, 1 - steps.totals(self.cost) / self.full.sum()

    def best_savings(self, levels: list[float]) -> list[float]:
        """The most multiply-adds that a threshold saves with a mean loss up to each level here."""
        loss, saved = self.curve()
        return [float(saved[loss <= level + 1e-9].max()) for level in levels]


def replay_of(condition: Condition, config: HubertConfig) -> Replay:
    """A condition's utterances with DAISY's criterion."""
    layers = np.arange(1, config.num_layers + 1)
    none = np.zeros(config.num_layers, bool)
    return Replay(
        condition.entropy,
        1 - condition.agreement.astype(np.float64),
        multiply_adds(config, condition.samples[:, None], layers).astype(np.float64),
        multiply_adds(config, condition.samples, config.num_layers, none).astype(np.float64),
    )


def with_other_criteria(
    model: Hubert, corpus: Corpus, names: list[str], entropy: Replay, patience: int
) -> dict[str, Replay]:
    """The same utterances with every criterion, by its name; fewer if some are gone since.

    Args:
      model: with branches.
      corpus: where the utterances are.
      names: theirs.
      entropy: with DAISY's criterion.
      patience: labels that have not changed for one layer, for two, up to so many.
    """
    unsure = criterion_scores(model, corpus, names, lambda frames: LeastConfidence())
    replays = {"mean entropy": entropy, "largest probability": entropy._replace(score=unsure)}
    changes = criterion_scores(model, corpus, names, Patience)
    # Whoever could not be read again is compared by no criterion.
    there = np.flatnonzero(np.isfinite(unsure + changes).all(axis=1))
    for layers in range(1, patience + 1):
        # The largest of the last ones; 2 is what Patience says where there were too few.
        padded = np.pad(changes, ((0, 0), (layers - 1, 0)), constant_values=2.0)
        windows = np.lib.stride_tricks.sliding_window_view(padded, layers, axis=1)
        name = f"labels unchanged for {layers} layer{'s' if layers > 1 else ''}"
        replays[name] = entropy._replace(score=windows.max(axis=2))
    return {name: replay.of(there) for name, replay in replays.items()}


def savings(
    replays: dict[str, Replay], levels: list[float]
) -> tuple[Float[np.ndarray, "criteria levels"], Float[np.ndarray, "resamples criteria levels"]]:
    """The most that each criterion saves at each level of loss, and a bootstrap of it.

    Utterances are drawn for all criteria together, and thresholds are chosen anew.
    """

    def of(chosen: Int[np.ndarray, " some"]) -> Float[np.ndarray, "criteria levels"]:
        drawn = [replay.of(chosen) for replay in replays.values()]
        return np.asarray([replay.best_savings(levels) for replay in drawn])

    count = len(next(iter(replays.values())).loss)
    return of(np.arange(count)), resampled(count, of)


@dataclasses.dataclass(frozen=True)
class Promise:
    """A threshold that is certified on some utterances."""

    level: float
    """The largest expected loss."""
    confidence: float | None
    """None: on average over calibrations."""
    threshold: float | None
    """None: there are too few utterances."""
    why_not: str = ""


def certified(replay: Replay, level: float, confidence: float | None) -> Promise:
    """The cheapest threshold with an expected loss of at most `level`, if any can be certified."""
    try:
        threshold = threshold_for_risk(replay.score, replay.loss, level, confidence)
    except InputError as error:
        return Promise(level, confidence, None, str(error))
    return Promise(level, confidence, threshold)


class Halves(NamedTuple):
    """What came of certifying a threshold on random halves, each tested on the other half."""

    drawn: int
    whole: Float[np.ndarray, " certified"]
    """Mean loss over all utterances, of the halves that could certify a threshold: the expected
    loss of which the promise is, where utterances are drawn out of this set."""
    loss: Float[np.ndarray, " certified"]
    """Mean loss on the other half, which has luck of its own."""
    saved: Float[np.ndarray, " certified"]
    """Share of the multiply-adds there."""
    best: Float[np.ndarray, " certified"]
    """What could have been saved with the best threshold, knowing the other half."""
    elsewhere: dict[str, Float[np.ndarray, " certified"]]
    """Mean loss under other conditions, by their titles; NaN where nothing was left to test."""


def above(losses: Float[np.ndarray, " draws"], level: float) -> tuple[float, float, float]:
    """In which share of the draws the loss was above a level, with an exact 95 % interval.

    The interval is that of drawing out of this one set. NaN are left out; all are NaN if none is
    left.
    """
    from scipy.stats import binomtest  # comes with JAX

    known = losses[np.isfinite(losses)]
    if not len(known):
        return float("nan"), float("nan"), float("nan")
    count = int(np.sum(known > level + 1e-9))
    ends = binomtest(count, len(known)).proportion_ci(0.95)
    return count / len(known), float(ends.low), float(ends.high)


def certified_on_halves(
    clean: Condition,
    others: list[Condition],
    config: HubertConfig,
    promise: Promise,
    count: int,
    seed: int,
) -> Halves:
    """Certifies on one half of the clean utterances, tests on the other half, again and again.

    Under another condition a threshold is tested on whatever can be no version of an utterance that
    it was certified on.

    Args:
      clean: what is divided.
      others: further conditions.
      config: the model's.
      promise: what is certified; its own threshold is not looked at.
      count: how many halves are drawn.
      seed: of the draws, the same for every level.
    """
    replay, rng = replay_of(clean, config), np.random.default_rng(seed)
    replays = {other.title: replay_of(other, config) for other in others}
    versions = {other.title: may_be_versions(clean, other) for other in others}
    rows, elsewhere = [], {title: [] for title in replays}
    for _ in range(count):
        order = rng.permutation(len(clean.names))
        ours, theirs = np.split(order, [len(order) // 2])
        threshold = certified(replay.of(ours), promise.level, promise.confidence).threshold
        if threshold is None:
            continue
        tested = replay.of(theirs)
        whole, other_half = replay.at(threshold)[0], tested.at(threshold)[:2]
        rows.append((whole, *other_half, *tested.best_savings([promise.level])))
        for title, other in replays.items():
            unseen = np.flatnonzero(~versions[title][:, ours].any(axis=1))
            mean = other.of(unseen).at(threshold)[0] if len(unseen) else np.nan
            elsewhere[title].append(mean)
    whole, loss, saved, best = np.asarray(rows, np.float64).reshape(-1, 4).T
    means = {title: np.asarray(values, np.float64) for title, values in elsewhere.items()}
    return Halves(count, whole, loss, saved, best, means)


def may_be_versions(clean: Condition, other: Condition) -> Bool[np.ndarray, "others cleans"]:
    """Which utterances may be versions of which clean ones.

    Of one name, or else of one file name, endings aside, and of durations within a tenth.
    """
    numbers = {name: number for number, name in enumerate(clean.names)}
    stems = np.asarray([pathlib.PurePath(name).stem for name in clean.names])
    versions = np.zeros((len(other.names), len(clean.names)), bool)
    for row, (name, samples) in enumerate(zip(other.names, other.samples, strict=True)):
        if name in numbers:
            versions[row, numbers[name]] = True
        else:
            alike = np.abs(samples / clean.samples - 1) <= 0.1
            versions[row] = alike & (stems == pathlib.PurePath(name).stem)
    return versions
