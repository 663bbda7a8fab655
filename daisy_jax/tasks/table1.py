"""Table 1 of the paper: what it says of each task."""

import json
import pathlib
from typing import Any

TABLE = pathlib.Path(__file__).with_name("table1.json")


def paper_source() -> str:
    """Where the figures are from."""
    return json.loads(TABLE.read_text(encoding="utf-8"))["source"]


def paper_rows(task: str) -> dict[str, dict[str, Any]]:
    """The paper's rows of a task, by rule: "measures" and "time_saved"; none of other tasks."""
    return json.loads(TABLE.read_text(encoding="utf-8")).get(task, {})
