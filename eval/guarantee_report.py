"""Tables and the picture of eval/guarantee.py."""

import dataclasses
import functools
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from daisy_jax.console.pages import escaped, table
from daisy_jax.study.guarantees import Halves, Promise, Replay, above, savings
from daisy_jax.tasks.metrics import interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Study:
    """What was measured."""

    model: str
    data: str
    """The clean speech."""
    hours: float
    clean: Replay
    conditions: dict[str, int]
    """Utterances of the others, by title."""
    promises: list[Promise]
    """Certified on all clean utterances."""
    halves: list[Halves]
    """The same ones, certified on halves."""
    criteria: dict[str, Replay]
    """Clean speech with every criterion, DAISY's first."""
    level: str
    """Whose decibels the SNR is of: the "mean" or the "active" power of the speech."""
    seed: int

    @property
    def levels(self) -> list[float]:
        """Losses that are promised."""
        return list(dict.fromkeys(promise.level for promise in self.promises))

    @functools.cached_property
    def savings(
        self,
    ) -> tuple[
        Float[np.ndarray, "criteria levels"], Float[np.ndarray, "resamples criteria levels"]
    ]:
        """What every criterion saves at each level, and a bootstrap of it."""
        return savings(self.criteria, self.levels)

    def content(self) -> dict[str, object]:
        """For results.json."""
        names = ("model", "data", "hours", "conditions", "level", "seed")
        content: dict[str, object] = {name: getattr(self, name) for name in names}
        content["promises"] = [
            {**dataclasses.asdict(promise), "certified": promise.threshold is not None}
            for promise in self.promises
        ]
        content["halves"] = [
            {
                "drawn": halves.drawn,
                "certified": len(halves.loss),
                "broken": above(halves.whole, promise.level),
                "above_on_the_other_half": above(halves.loss, promise.level),
                "whole": halves.whole.tolist(),
                "loss": halves.loss.tolist(),
                "saved": halves.saved.tolist(),
                "best": halves.best.tolist(),
                "elsewhere": {name: loss.tolist() for name, loss in halves.elsewhere.items()},
            }
            for promise, halves in zip(self.promises, self.halves, strict=True)
        ]
        content["levels"] = self.levels
        values, _ = self.savings
        content["criteria"] = dict(zip(self.criteria, values.tolist(), strict=True))
        return content


def report(study: Study, picture: str) -> list[str]:
    """Markdown lines, with a picture of this name if there is one."""
    count = len(study.clean.loss)
    lines = [
        "# Exits with a guarantee",
        "",
        f"Model {escaped(study.model)}, {study.clean.score.shape[1]} layers; {count} clean "
        f"utterances of {escaped(study.data)}, {study.hours:.2g} h. A promise is a share of an "
        "utterance's frames that keep the label of the last layer's branch, on average over new "
        "utterances of the same kind. Multiply-adds are compared with full depth without branches.",
    ]
    if picture:
        lines += ["", f"![loss and multiply-adds saved]({picture})"]
    lines += ["", "## Certified on all of them"]
    lines += promise_table(study)
    lines += ["## Is the promise kept?", ""]
    lines += [
        f"{study.halves[0].drawn} times the utterances were divided into halves at random (seed "
        f"{study.seed}): a threshold was certified on one half and tested on the other. What is "
        "promised is the expected loss of an utterance, here the mean over the whole set. With a "
        "confidence, it may be above the level for at most a share of one minus the confidence of "
        "the halves. The other half has luck of its own, so that its mean may be above it more "
        "often; on average over the halves it may not be, if the promise is one on average. "
        'Intervals are those of drawing halves of this set. "At best" is what the best threshold '
        "for the other half would have saved, knowing it."
    ]
    lines += halves_table(study)
    if study.conditions:
        lines += ["## What it does not promise", ""]
        lines += elsewhere(study)
    return [*lines, "## Other criteria", "", *criteria_table(study)]


def promised(promise: Promise) -> list[str]:
    """The first two columns."""
    sure = "on average" if promise.confidence is None else f"{100 * promise.confidence:.4g}%"
    return [f"{1 - promise.level:.6g}", sure]


def promise_table(study: Study) -> list[str]:
    """A row a promise, and below them why some were not certified."""
    header = ["agreement promised", "confidence", "threshold, nats", "mean exit layer"]
    header += ["agreement here", "multiply-adds saved"]
    rows, notes = [], []
    for promise in study.promises:
        if promise.threshold is None:
            rows.append([*promised(promise), "none", "", "", ""])
            notes.append(f"- {', '.join(promised(promise))}: {escaped(promise.why_not)}")
            continue
        loss, saved, layer = study.clean.at(promise.threshold)
        cells = [f"{promise.threshold:.4f}", f"{layer:.2f}", f"{1 - loss:.2%}", f"{saved:.1%}"]
        rows.append([*promised(promise), *cells])
    return [*table(header, rows), *notes, *([""] if notes else [])]


def halves_table(study: Study) -> list[str]:
    """A row a promise."""
    header = ["agreement promised", "confidence", "halves that could certify it"]
    header += ["broken", "broken on the other half", "agreement there", "multiply-adds saved"]
    header += ["at best"]
    rows = []
    for promise, halves in zip(study.promises, study.halves, strict=True):
        row = [*promised(promise), f"{len(halves.loss)} of {halves.drawn}"]
        if len(halves.loss):
            for losses in (halves.whole, halves.loss):
                row.append("{:.1%} ({:.1%} to {:.1%})".format(*above(losses, promise.level)))
            row += [
                f"{1 - halves.loss.mean():.2%}",
                f"{halves.saved.mean():.1%}",
                f"{halves.best.mean():.1%}",
            ]
        else:
            row += [""] * 5
        rows.append(row)
    return table(header, rows)


def elsewhere(study: Study) -> list[str]:
    """The same thresholds under other conditions."""
    lines = [
        "A promise is for utterances like those that it was certified on. Here thresholds that "
        "were certified on halves of the clean speech meet the other half under noise (decibels "
        f"of the speech's {study.level} power), and speech of other kinds: the mean agreement, "
        "and in brackets the share of thresholds with which it is lower than promised. Utterances "
        "that may be versions of those that a threshold was certified on are left out. Where a "
        "promise holds, that is what these recordings show and no guarantee: noisy speech that "
        "leaves later may keep more labels than clean speech, other speech fewer. Certify a "
        "threshold on speech of the kind that it is to meet."
    ]
    header = ["condition", "of utterances"]
    columns = []
    for promise, halves in zip(study.promises, study.halves, strict=True):
        if len(halves.loss):
            header.append(", ".join(promised(promise)))
            columns.append((promise, {"clean, other half": halves.loss, **halves.elsewhere}))
    rows = []
    counts = {"clean, other half": -(-len(study.clean.loss) // 2), **study.conditions}
    for title, count in counts.items():
        cells = []
        for promise, losses in columns:
            loss = losses[title][np.isfinite(losses[title])]
            share, _, _ = above(loss, promise.level)
            cells.append(f"{1 - loss.mean():.1%} ({share:.0%})" if len(loss) else "none left")
        rows.append([title, str(count), *cells])
    return lines + table(header, rows)


def criteria_table(study: Study) -> list[str]:
    """What every criterion saves at each level, and the difference to DAISY's."""
    levels = study.levels
    lines = [
        "The same clean utterances, the same branches, the same losses; what is compared with a "
        "threshold is another number. Multiply-adds saved with the best threshold that keeps the "
        "agreement on these utterances, and in brackets the difference to mean entropy in points "
        "with its 95 % interval (bootstrap over utterances, thresholds chosen anew)."
    ]
    values, drawn = study.savings
    apart, drawn_apart = 100 * (values - values[0]), 100 * (drawn - drawn[:, :1])
    rows = []
    for row, name in enumerate(study.criteria):
        cells = []
        for column in range(len(levels)):
            cell = f"{values[row, column]:.1%}"
            if row:
                low, high = interval(drawn_apart[:, row, column])
                cell += f" ({apart[row, column]:+.1f}, {low:+.1f} to {high:+.1f})"
            cells.append(cell)
        rows.append([name, *cells])
    return lines + table(["criterion", *(f"agreement {1 - level:.4g}" for level in levels)], rows)


def picture(study: Study) -> "Figure":
    """Loss against compute: certified thresholds on DAISY's curve, and every criterion's curve."""
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    loss, saved = study.clean.curve()
    left.plot(100 * saved, 100 * loss, color="black", label="all thresholds, mean entropy")
    for number, promise in enumerate(study.promises):
        color = f"C{number // 2}"
        left.axhline(100 * promise.level, color=color, linewidth=0.6, linestyle=":")
        if promise.threshold is not None:
            lost, spared, _ = study.clean.at(promise.threshold)
            marker = "o" if promise.confidence is None else "s"
            label = ", ".join(promised(promise))
            left.plot(100 * spared, 100 * lost, marker, color=color, label=label)
    for name, replay in study.criteria.items():
        loss, saved = replay.curve()
        right.plot(100 * saved, 100 * loss, label=name)
    top = 100 * max(2 * promise.level for promise in study.promises)
    for axis, title in ((left, "certified"), (right, "criteria")):
        axis.set(
            xlabel="multiply-adds saved, %",
            ylabel="frames with another label than the last layer's, %",
            title=title,
            ylim=(0, top),
        )
        axis.legend(fontsize="small")
    return figure
