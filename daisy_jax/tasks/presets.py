"""Tasks by name and preset."""

import dataclasses
import pathlib
import tomllib
from typing import Any

from daisy_jax.errors import InputError
from daisy_jax.tasks.asr import Asr
from daisy_jax.tasks.mixtures import Enhancement, Separation
from daisy_jax.tasks.sid import Sid
from daisy_jax.tasks.task import Task, TaskSettings

TASKS: dict[str, type] = {kind.name: kind for kind in (Asr, Sid, Enhancement, Separation)}
PRESETS = pathlib.Path(__file__).with_name("presets.toml")


def read_preset(task: str, preset: str) -> TaskSettings:
    """The settings of a task.

    Args:
      task: asr, sid, se or ss.
      preset: superb, minisuperb, or a TOML file of the user's with one table [TASK.NAME].

    Raises:
      InputError: there is no such preset, or its table is not one of a task's settings.
    """
    own = preset.endswith(".toml")
    path = pathlib.Path(preset) if own else PRESETS
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
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


def settings_of(table: dict[str, Any], where: str) -> TaskSettings:
    """Settings from a table of TOML or JSON; an InputError that begins with `where`."""
    known = {field.name for field in dataclasses.fields(TaskSettings)}
    left = sorted(set(table) - known)
    if left:
        raise InputError(f"{where}: unknown settings {', '.join(left)}")
    values: dict[str, Any] = {
        key: tuple(v) if isinstance(v, list) else v for key, v in table.items()
    }
    try:
        return TaskSettings(**values)
    except TypeError as error:
        raise InputError(f"{where}: {error}") from None


def make_task(task: str, settings: TaskSettings) -> Task:
    """A task with its settings."""
    if task not in TASKS:
        raise InputError(f"no task {task!r}; there are {', '.join(TASKS)}")
    try:
        return TASKS[task](settings)
    except (TypeError, KeyError) as error:
        raise InputError(f"the head's settings of {task} are not right: {error}") from None
