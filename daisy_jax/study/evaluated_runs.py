"""What eval/downstream.py leaves in RUN/evaluation, and rows of tables made of it."""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple, NotRequired, TypedDict

import numpy as np
from jaxtyping import Shaped

from daisy_jax import InputError
from daisy_jax.tasks.evaluation import Row
from daisy_jax.tasks.metrics import Sums, paired_interval, quotient
from daisy_jax.tasks.task import Measure
from daisy_jax.tasks.trained_heads import ExitCounts
from daisy_jax.whole_files import RESULTS, checked, read_results


class _Upstream(TypedDict):
    """The trunk."""

    path: str
    digest: str
    layers: int
    dim: int


class _Preset(TypedDict):
    """What is looked at of a run's preset."""

    steps: int
    batch_size: int
    learning_rate: float


class _Settings(_Preset):
    """What is looked at of a run's config.json."""

    preset: str
    seed: NotRequired[int]
    settings: _Preset
    """The preset itself."""
    ratio: float | None
    threshold: NotRequired[float | None]
    """This one and the next two earlier versions do not have."""
    compute_of_layer: NotRequired[int | None]
    normalize: NotRequired[bool]
    layer: int | None
    full: bool


class _Measure(TypedDict):
    """The fields of a `Measure`."""

    title: str
    unit: str
    higher_is_better: bool
    scale: float


def fields_of(measure: Measure) -> _Measure:
    """As results.json holds it."""
    return {
        "title": measure.title,
        "unit": measure.unit,
        "higher_is_better": measure.higher_is_better,
        "scale": measure.scale,
    }


class Result(TypedDict):
    """The content of results.json."""

    run: str
    task: str
    title: str
    whole: tuple[int, int] | None
    """As of every `Task`."""
    trained: str
    """The rule of training."""
    trained_on: str
    training_utterances: int
    data: str
    tested_on: str
    utterances: int
    hours: float
    upstream: _Upstream
    settings: dict[str, Any]
    """The run's config.json."""
    mean_entropy: list[float]
    exits: ExitCounts
    decoder: str | None
    device: str
    measures: dict[str, _Measure]
    unprocessed: Mapping[str, float | None]
    """Measures of the input itself, where the task has such; None where one is not defined."""
    rows: list[Row]


class Evaluated(NamedTuple):
    """One evaluation."""

    result: Result
    measures: dict[str, Measure]
    utterances: dict[str, dict[str, Shaped[np.ndarray, " rows"]]]
    """Columns of utterances.parquet, by rule."""

    def label(self, row: Row) -> str:
        """What the run and one of its rules are called together."""
        trained = self.result["trained"]
        return trained if row["kind"] == "own" else f"{trained}, {row['rule']}"


def read_evaluation(run: pathlib.Path) -> Evaluated | None:
    """The evaluation of a run's test set; None if there is none.

    Raises:
      InputError: it is cut off, or of an older version.
    """
    folder = run / "evaluation"
    if not (folder / RESULTS).is_file():
        return None
    remedy = f"evaluate {run} again"
    result, table = read_results(folder, Result, remedy)
    checked(f"{folder / RESULTS}, settings", result["settings"], _Settings, remedy)
    measured = [set(row["measures"]) for row in result["rows"]]
    measured += [set(result["unprocessed"])] if result["unprocessed"] else []
    names = set(result["measures"])
    if not names or not result["rows"] or any(each != names for each in measured):
        raise InputError(
            f"{folder / RESULTS}: its rows do not have the measures that it lists; {remedy}"
        )
    columns = {name: table[name].to_numpy() for name in table.column_names}
    utterances = {}
    for row in result["rows"]:
        chosen = columns["rule"] == row["rule"]
        utterances[row["rule"]] = {name: column[chosen] for name, column in columns.items()}
    measures = {name: Measure(**fields) for name, fields in result.get("measures", {}).items()}
    return Evaluated(result, measures, utterances)


def rule_header(measures: dict[str, Measure]) -> list[str]:
    """Titles of the columns of `rule_cells`."""
    titles = [measure.heading for measure in measures.values()]
    saved = ["multiply-adds saved", "time saved", "multiply-adds saved there"]
    return ["rule", *titles, "exit layer", "forced", *saved]


def rule_cells(measures: dict[str, Measure], row: Row) -> list[str]:
    """A rule's row; 95 % intervals stand in brackets."""
    cells = [row["rule"]]
    for name, measure in measures.items():
        value = row["measures"][name]
        low, high = map(measure.printed, value["interval"])
        cells.append(f"{measure.printed(value['value'])} ({low} to {high})")
    cells += [
        f"{row['mean_exit_layer']:.2f}",
        "" if row["forced"] is None else f"{row['forced']:.0%}",
        f"{row['multiply_adds_saved']:.1%}",
    ]
    time = row["time_saved"]
    if time is None:
        return [*cells, "", ""]
    low, high = time["interval"]
    interval = f"{time['value']:.1%} ({low:.1%} to {high:.1%})"
    return [*cells, interval, f"{time['multiply_adds_saved']:.1%}"]


def input_cells(measures: dict[str, Measure], result: Result) -> list[str]:
    """The row of the input itself, without any task head; empty where it has no measures."""
    if not result["unprocessed"]:
        return []
    values = (measure.printed(result["unprocessed"][name]) for name, measure in measures.items())
    return ["the input itself", *values, *[""] * 5]


def difference(ours: Evaluated, row: Row, theirs: Evaluated) -> str:
    """A row's first measure minus that of another run's own rule, on the utterances of both."""
    name, measure = next(iter(ours.measures.items()))
    sides = [ours.utterances[row["rule"]], theirs.utterances[theirs.result["rows"][0]["rule"]]]
    defined = [
        {key: column[np.isfinite(side[f"{name}_total"])] for key, column in side.items()}
        for side in sides
    ]
    ids, *rows = np.intersect1d(defined[0]["id"], defined[1]["id"], return_indices=True)
    if not len(ids):
        return ""
    sums: list[Sums] = [
        (side[f"{name}_total"][chosen], side[f"{name}_weight"][chosen])
        for side, chosen in zip(defined, rows, strict=True)
    ]
    value = float(quotient(*sums[0]) - quotient(*sums[1]))
    printed = [measure.printed(each, "+") for each in (value, *paired_interval(*sums))]
    return "{} ({} to {})".format(*printed)
