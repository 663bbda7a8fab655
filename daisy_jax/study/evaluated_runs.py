"""What eval/downstream.py leaves in RUN/evaluation, and rows of tables made of it."""

import pathlib
from typing import Any, NamedTuple, NotRequired, TypedDict

import numpy as np
from jaxtyping import Shaped

from daisy_jax import InputError
from daisy_jax.tasks.evaluation import Row
from daisy_jax.tasks.metrics import Sums, paired_interval, quotient
from daisy_jax.tasks.task import Measure
from daisy_jax.tasks.trained_heads import ExitCounts
from daisy_jax.whole_files import files_digest, read_json


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
    upstream: dict[str, str | int]
    """Path, digest, layers and dim of the trunk."""
    settings: dict[str, Any]
    """The run's config.json."""
    mean_entropy: list[float]
    exits: ExitCounts
    decoder: str | None
    device: str
    measures: dict[str, dict[str, Any]]
    """The fields of each `Measure`."""
    unprocessed: dict[str, float]
    """Measures of the input itself, where the task has such."""
    rows: list[Row]
    utterances_sha256: NotRequired[str | None]
    """Of utterances.parquet; earlier versions have none."""


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
    import pyarrow
    import pyarrow.parquet

    path = run / "evaluation" / "results.json"
    if not path.is_file():
        return None
    try:
        result = read_json(path, Result, f"evaluate {run} again")
        beside = path.with_name("utterances.parquet")
        digest = result.get("utterances_sha256")
        if digest is not None and files_digest([beside]) != digest:
            raise InputError(
                f"{beside}: is of another evaluation, or has changed; evaluate {run} again"
            )
        table = pyarrow.parquet.read_table(beside)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path.parent}: not whole ({error}); evaluate {run} again") from None
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
