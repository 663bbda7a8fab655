"""Tensor files (safetensors), and folders that hold one with JSON files beside it.

In such a folder the tensor file is what counts: its metadata hold what was written into the JSON
files, too, and one digest of all. Where a process died between replacing the one and the other, the
metadata are read in the place of a JSON file with another digest.
"""

import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from daisy_jax.errors import InputError, require_file
from daisy_jax.whole_files.reading import parse_json, read_text
from daisy_jax.whole_files.writing import whole_files

TENSORS = "model.safetensors"
DIGEST = "sha256"
"""Under which JSON files, and what is WRITTEN, hold the digest of tensors and JSON together."""
WRITTEN = "written"
"""Under which the metadata hold the JSON files' texts, in JSON."""


def write_folder(
    folder: pathlib.Path,
    tensors: dict[str, Shaped[np.ndarray, "..."]],
    contents: Mapping[str, Mapping[str, object]],
) -> None:
    """Writes `model.safetensors` and JSON files into a folder, all of them or none.

    Args:
      folder: made if absent.
      tensors: arrays by name.
      contents: what the JSON files hold, by file name.

    Raises:
      OSError: the folder cannot be written; files that were there before are kept then.
    """
    texts = {name: json.dumps(content, indent=2) for name, content in contents.items()}
    digest = _digest(tensors, texts)
    with whole_files(*(folder / name for name in (TENSORS, *contents))) as (weights, *partials):
        save_file(contiguous(tensors), weights, {WRITTEN: json.dumps({DIGEST: digest, **texts})})
        for partial, content in zip(partials, contents.values(), strict=True):
            text = json.dumps({**content, DIGEST: digest}, indent=2) + "\n"
            partial.write_text(text, encoding="utf-8")


def contiguous(
    tensors: dict[str, Shaped[np.ndarray, "..."]],
) -> dict[str, Shaped[np.ndarray, "..."]]:
    """As safetensors needs them: it writes others wrongly, without an error (its #825)."""
    return {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}


class Stored(NamedTuple):
    """What `write_folder` wrote."""

    tensors: dict[str, Shaped[np.ndarray, "..."]]
    texts: dict[str, str]
    """Of the JSON files."""


def read_folder(folder: pathlib.Path, names: tuple[str, ...]) -> Stored:
    """Tensors and JSON files of a folder, as they belong together.

    Raises:
      InputError: a file is none of its kind, or not what was written.
      OSError: a file is missing or unreadable.
    """
    remedy = "copy it again"
    texts = {name: read_text(folder / name, remedy=remedy) for name in names}
    tensors, metadata = _read(folder / TENSORS)
    if WRITTEN in metadata:
        place = f"{folder / TENSORS}, {WRITTEN}"
        written = parse_json(place, metadata[WRITTEN], dict[str, str], remedy)
        digest = written.pop(DIGEST, "")
        if _digest(tensors, written) != digest:
            raise InputError(f"{folder / TENSORS}: has changed since it was written; copy it again")
        for name in texts.keys() & written.keys():
            beside = parse_json(str(folder / name), texts[name], dict, remedy)
            if beside.get(DIGEST) != digest:
                # Of another saving: who wrote died between replacing the one and the other.
                texts[name] = written[name]
    return Stored(tensors, texts)


def _digest(tensors: dict[str, Shaped[np.ndarray, "..."]], texts: Mapping[str, str]) -> str:
    """SHA-256 of everything in a folder."""
    return arrays_digest(tensors, json.dumps(dict(sorted(texts.items()))))


def arrays_digest(arrays: Mapping[str, Shaped[np.ndarray, "..."]], text: str = "") -> str:
    """SHA-256 of a text and of arrays by name, with their types and shapes."""
    digest = hashlib.sha256(text.encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def read_tensors(path: pathlib.Path) -> dict[str, Shaped[np.ndarray, "..."]]:
    """The arrays of a safetensors file by name; an InputError if it is not a whole one."""
    return _read(path)[0]


def _read(path: pathlib.Path) -> tuple[dict[str, Shaped[np.ndarray, "..."]], dict[str, str]]:
    """Arrays and metadata of a safetensors file."""
    require_file(path)
    try:
        with safe_open(path, framework="numpy") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except SafetensorError as error:
        raise InputError(
            f"{path}: not a whole safetensors file ({error}); copy or convert it again"
        ) from None
    except (AttributeError, TypeError) as error:  # of types that numpy does not have
        raise InputError(f"{path}: holds tensors of a type that is not read ({error})") from None
