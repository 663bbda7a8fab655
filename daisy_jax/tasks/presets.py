"""Tasks by name: their presets, and what Table 1 of the paper says of them."""

import dataclasses
import importlib
import json
import pathlib
import tomllib
from typing import NamedTuple, TypedDict

from daisy_jax.errors import InputError
from daisy_jax.tasks.asr import Asr
from daisy_jax.tasks.masks import Enhancement, Separation
from daisy_jax.tasks.sid import Sid
from daisy_jax.tasks.task import Task, TaskSettings
from daisy_jax.whole_files import checked, read_text

TASKS: dict[str, type[Task]] = {kind.name: kind for kind in (Asr, Sid, Enhancement, Separation)}
PRESETS = pathlib.Path(__file__).with_name("presets.toml")
TABLE1 = pathlib.Path(__file__).with_name("table1.json")


def read_preset(task: str, preset: str) -> TaskSettings:
    """The settings of a task.

    Args:
      task: asr, sid, se or ss, or the name of a task of the user's.
      preset: superb, minisuperb, daisy-tiny, or a TOML file of the user's with one table
        [TASK.NAME].

    Raises:
      InputError: there is no such preset, or its table is not one of a task's settings.
    """
    own = preset.endswith(".toml")
    path = pathlib.Path(preset) if own else PRESETS
    try:
        content = tomllib.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a readable TOML file ({error})") from None
    tables = content.get(task, {})
    names = list(tables) if own else [preset]
    if len(names) != 1 or names[0] not in tables:
        raise InputError(
            f"{path}: one table [{task}.NAME] was wanted, found {', '.join(tables) or 'none'}"
            if own
            else f"no preset {preset!r} for {task}; there are {', '.join(tables)}, or give a file "
            "that ends with .toml"
        )
    return settings_of(tables[names[0]], str(path))


def settings_of(table: dict[str, object], where: str) -> TaskSettings:
    """Settings from a table of TOML or JSON; an InputError that begins with `where`."""
    names = {field.name for field in dataclasses.fields(TaskSettings)}
    unknown = sorted(set(table) - names)
    if unknown:
        raise InputError(f"{where}: unknown settings {', '.join(unknown)}")
    return checked(where, table, TaskSettings, "give settings as in presets.toml")


def task_class(task: str) -> type[Task]:
    """A task by its name, or by MODULE:CLASS.

    Raises:
      InputError: there is no such task.
    """
    if task in TASKS:
        return TASKS[task]
    module, _, name = task.partition(":")
    try:
        kind = getattr(importlib.import_module(module), name) if name else None
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"task {task!r}: {error}; give MODULE:CLASS that can be imported"
        ) from None
    if not (isinstance(kind, type) and issubclass(kind, Task)):
        names = ", ".join(TASKS)
        raise InputError(f"no task {task!r}; there are {names}, or MODULE:CLASS of a Task")
    return kind


def make_task(task: str, settings: TaskSettings) -> Task:
    """A task with its settings."""
    kind = task_class(task)
    try:
        return kind(settings)
    except (TypeError, KeyError) as error:
        raise InputError(
            f"the task head's settings of {kind.name} are not right: {error}"
        ) from None


def task_reference(task: Task) -> str:
    """What `task_class` finds a task by again."""
    kind = type(task)
    return kind.name if TASKS.get(kind.name) is kind else f"{kind.__module__}:{kind.__qualname__}"


class PaperRow(TypedDict):
    """A row of a task in Table 1, as it is printed there."""

    measures: str
    """One or two numbers."""
    time_saved: str
    """Per cent of the forward time."""


class Table1(NamedTuple):
    """Table 1 of the paper, and the averages that section 4.3 gives beside figure 5."""

    source: str
    rows: dict[str, dict[str, PaperRow]]
    """By task and rule."""
    average_wer: dict[str, str]
    """Per cent over all noise levels, by span, and of the static exit."""


def read_table1() -> Table1:
    """Table 1 of the paper, which has the four tasks that are ours."""
    content = json.loads(TABLE1.read_text(encoding="utf-8"))
    rows = {task: content[task] for task in TASKS}
    return Table1(content["source"], rows, content["average_wer"])
