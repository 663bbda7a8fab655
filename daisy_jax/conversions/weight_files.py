"""Tensors out of safetensors and torch files, whole or in shards. No code in a file is ever run."""

import pathlib

import numpy as np

from daisy_jax.conversions.torch_files import Unread, read_torch_file
from daisy_jax.errors import InputError, require_file
from daisy_jax.whole_files import read_json, read_tensors

NAMES = ("model.safetensors", "pytorch_model.bin")  # the first is preferred
INDEX = ".index.json"


def read_weights(folder: pathlib.Path) -> tuple[dict[str, np.ndarray], tuple[pathlib.Path, ...]]:
    """All tensors of a folder that transformers' `save_pretrained` wrote.

    Returns:
      the tensors by name, in the type they are stored in, and the files they come from.

    Raises:
      InputError: no weights in the folder, or a file that is cut off, incomplete, holds code or
        needs torch where there is none.
      OSError: a file cannot be read.
    """
    for name in NAMES:
        if (folder / name).is_file():
            return check_tensors(folder / name, read_file(folder / name)), (folder / name,)
        if (folder / (name + INDEX)).is_file():
            return _read_shards(folder / (name + INDEX))
    raise InputError(
        f"{folder}: no weights there; put {' or '.join(NAMES)} beside config.json (for sharded "
        f"weights, the {INDEX} file and all shards)"
    )


def read_file(path: pathlib.Path) -> object:
    """What a file holds: tensors by name, for torch files anything; raises as `read_weights`."""
    require_file(path)
    with path.open("rb") as file:
        beginning = file.read(19)
    if beginning == b"version https://git":
        raise InputError(f"{path}: a git-lfs pointer, not the weights; run git lfs pull there")
    # safetensors begin with the length of a header in JSON, torch's files never so.
    if path.suffix != ".safetensors" and beginning[7:9] != b"\0{":
        return read_torch_file(path)
    return read_tensors(path)


def check_tensors(path: pathlib.Path, content: object) -> dict[str, np.ndarray]:
    """The content of a file, as tensors by name.

    Raises:
      InputError: it holds something else.
    """
    if isinstance(content, Unread):
        raise InputError(
            f"{path}: is an object of {content.kind}, and code in such files is never run; save "
            "the tensors alone, torch.save(model.state_dict(), ...)"
        )
    if not isinstance(content, dict) or not content:
        kind = "no tensors" if isinstance(content, dict) else f"a {type(content).__name__}"
        raise InputError(f"{path}: holds {kind}, where tensors by name were wanted")
    others = [
        f"{name} (an object of {value.kind}, whose code is never run)"
        if isinstance(value, Unread)
        else name
        for name, value in content.items()
        if not isinstance(value, np.ndarray)
    ]
    if others:
        raise InputError(
            f"{path}: wanted plain tensors only, but these are none: {', '.join(others)}"
        )
    return dict(content)


def _read_shards(index: pathlib.Path) -> tuple[dict[str, np.ndarray], tuple[pathlib.Path, ...]]:
    file_of = read_json(index, dict[str, object], "copy it again").get("weight_map")
    if not isinstance(file_of, dict) or not file_of or set(map(type, file_of.values())) != {str}:
        raise InputError(f"{index}: no weight_map of tensor names to files; copy it again")
    files = tuple(index.parent / name for name in sorted(set(file_of.values())))
    for file in files:
        if file.parent != index.parent or not file.is_file():
            raise InputError(f"{index}: its shard {file.name} is not in the folder; put it there")
    tensors: dict[str, np.ndarray] = {}
    for file in files:
        shard = check_tensors(file, read_file(file))
        strays = [name for name in shard if file_of.get(name) != file.name]
        if strays:
            raise InputError(
                f"{index}: {file.name} holds tensors that are not listed as its own: "
                f"{', '.join(strays)}; copy the shards again"
            )
        tensors |= shard
    absent = sorted(set(file_of) - set(tensors))
    if absent:
        raise InputError(f"{index}: no shard holds {', '.join(absent)}; copy the shards again")
    return tensors, files
