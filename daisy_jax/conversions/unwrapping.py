"""Finds a HuBERT where a training framework has put it: in boxes, and behind prefixes.

What is taken must be a whole HuBERT in the end: the rules of its format use every tensor of it.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from daisy_jax.conversions.torch_files import Unread
from daisy_jax.conversions.trunk import (
    FAIRSEQ,
    INSIDE_FAIRSEQ,
    INSIDE_TORCHAUDIO,
    INSIDE_TRANSFORMERS,
    TORCHAUDIO,
    TRANSFORMERS,
)
from daisy_jax.errors import InputError

DEPTH = 3
"""Of boxes inside boxes."""
USUAL = ("state_dict", "model")
"""Boxes that hold the model where others hold copies of it, such as averages."""
ENDINGS = {
    f"{TORCHAUDIO['feature_projection']}.weight": INSIDE_TORCHAUDIO,
    f"{TRANSFORMERS['feature_projection']}.weight": INSIDE_TRANSFORMERS,
    f"{FAIRSEQ['feature_projection']}.weight": INSIDE_FAIRSEQ,
}
"""A tensor that every HuBERT has, by format, and what the format itself puts before a trunk inside
another model."""


class Unwrapped(NamedTuple):
    """A HuBERT's tensors under the names of their format."""

    content: object
    """Of the box, or what was given if there is no HuBERT in it."""
    notes: tuple[str, ...]
    """Where it was, and what was beside it."""


def unwrap(content: object) -> Unwrapped:
    """Opens boxes and takes prefixes away.

    Raises:
      InputError: there are two HuBERTs, and nothing says which one is meant.
    """
    boxes = dict(_boxes(content, "", DEPTH))
    usual = {path: box for path, box in boxes.items() if path.rpartition(".")[2] in USUAL}
    boxes = usual or boxes
    if not boxes:
        return Unwrapped(content, ())
    if len(boxes) > 1:
        raise InputError(f"holds several models, in {', '.join(boxes)}; save one of them alone")
    ((path, tensors),) = boxes.items()
    tensors, notes = without_prefix(tensors)
    if path:
        assert isinstance(content, dict)
        beside = [name for name in content if name != path.partition(".")[0]]
        notes = (f"the model was taken out of {path}{_left_out(beside)}", *notes)
    return Unwrapped(tensors, notes)


def without_prefix(tensors: Mapping[str, object]) -> Unwrapped:
    """Takes away what a framework has put before the names of a format, such as "module."."""
    outer = {prefix for name in tensors if (prefix := _outer(name)) is not None}
    if len(outer) > 1:
        behind = ", ".join(map(repr, sorted(outer)))
        raise InputError(f"holds several models, behind {behind}; save one of them alone")
    prefix = next(iter(outer), "")
    if not prefix:
        return Unwrapped(tensors, ())
    others = [name for name in tensors if not name.startswith(prefix)]
    inside = {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
    note = f"{prefix!r} was taken away from names of tensors{_left_out(others)}"
    return Unwrapped(inside, (note,))


def _boxes(content: object, path: str, depth: int) -> Iterator[tuple[str, dict[str, object]]]:
    """Dictionaries that hold a HuBERT's tensors themselves, by where they are."""
    if not isinstance(content, dict):
        return
    if any(_outer(name) is not None and isinstance(content[name], np.ndarray) for name in content):
        yield path, content
    elif depth:
        for name, value in content.items():
            yield from _boxes(value, f"{path}.{name}" if path else name, depth - 1)


def _outer(name: str) -> str | None:
    """What stands before the format's own name of a tensor that every HuBERT has; None: another."""
    for ending, inside in ENDINGS.items():
        prefix = name.removesuffix(ending)
        if prefix != name and (not prefix or prefix.endswith(".")):
            return prefix.removesuffix(inside)
    return None


def unread_notes(content: object) -> tuple[str, ...]:
    """A note for the report on objects in a file that were not read."""
    unread = list(_unread(content, "", DEPTH))
    if not unread:
        return ()
    return (f"never read, as code in such files is not run{_left_out(unread)}",)


def _unread(content: object, path: str, depth: int) -> Iterator[str]:
    if isinstance(content, Unread):
        yield f"{path} (an object of {content.kind})"
    elif isinstance(content, dict) and depth:
        for name, value in content.items():
            yield from _unread(value, f"{path}.{name}" if path else name, depth - 1)


def _left_out(names: list[str]) -> str:
    return f"; left out: {', '.join(names)}" if names else ""
