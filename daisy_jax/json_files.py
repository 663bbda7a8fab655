"""JSON files of our own, each with the name and version of its format inside."""

import json
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
