"""JSON files of our own, each with the name and version of its format inside."""

import json
import math
import os
import pathlib
from typing import Any

from daisy_jax.errors import InputError


def read_json(path: pathlib.Path, wanted: str, remedy: str) -> dict[str, Any]:
    """The content of a file whose "format" is `wanted`.

    Args:
      path: the file.
      wanted: name and version.
      remedy: what to do about another file, such as "make it again".

    Raises:
      InputError: it is not JSON, or of another format. One line that names the file.
      OSError: it cannot be opened.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); {remedy}") from None
    found = content.get("format") if isinstance(content, dict) else None
    if found != wanted:
        raise InputError(
            f"{path}: format is {found!r}, this version reads {wanted!r}; {remedy}, or install the "
            "daisy_jax that wrote it"
        )
    return content


def replace_text(path: pathlib.Path, text: str) -> None:
    """Writes a file as a whole: a kill leaves the old one or the new one."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def write_json(path: pathlib.Path, content: Any) -> None:
    """Writes a file as a whole: a kill leaves the old one or the new one.

    What is no number of JSON, NaN or infinite, becomes null.
    """
    replace_text(path, json.dumps(_finite(content), indent=2, allow_nan=False) + "\n")


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content
