"""Which tensors of a checkpoint make which parameter of ours, complete in both directions.

A format brings a list of rules. Every tensor must then be used or be on the format's list of known
extras, and every parameter must be made; otherwise one error names all offenders.
"""

import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from daisy_jax.checkpoints import abstract_model, named_leaves
from daisy_jax.config import HubertConfig
from daisy_jax.errors import InputError

FLOATS = ("float16", "bfloat16", "float32", "float64")


class Transform(NamedTuple):
    """How an array comes out of source arrays, and which shapes those must have for it."""

    source_shapes: Callable[[tuple[int, ...], int], list[tuple[int, ...]]]
    """(wanted shape, number of sources) -> the shape of each source."""
    apply: Callable[..., np.ndarray]
    """source arrays, float32 -> the array."""


def _transposed_shapes(shape: tuple[int, ...], count: int) -> list[tuple[int, ...]]:
    return [(shape[-1] // count, *reversed(shape[:-1]))] * count


def _concatenate_transposed(*sources: np.ndarray) -> np.ndarray:
    return np.concatenate([source.T for source in sources], axis=-1)


def _weight_norm_shapes(shape: tuple[int, ...], count: int) -> list[tuple[int, ...]]:
    return [(1, 1, shape[0]), (shape[2], shape[1], shape[0])]


def _fold_weight_norm(gain: np.ndarray, direction: np.ndarray) -> np.ndarray:
    direction = direction.astype(np.float64)
    norm = np.sqrt(np.sum(direction**2, axis=(0, 1), keepdims=True))
    with np.errstate(divide="ignore", invalid="ignore"):  # a zero norm is reported as NaN later
        return (gain * direction / norm).astype(np.float32).T


TRANSPOSED = Transform(_transposed_shapes, _concatenate_transposed)
"""torch's axes [out, in, taps] to flax's [taps, in, out], vectors as they are. Several sources are
put side by side along the output axis."""
WEIGHT_NORM = Transform(_weight_norm_shapes, _fold_weight_norm)
"""gain [1, 1, taps] and direction [out, in, taps] of a weight-normalised convolution -> its kernel
[taps, in, out]: direction times gain over the direction's norm, which is taken for each tap."""


class Rule(NamedTuple):
    """One parameter of ours. Those under `layers.` are stacked over the transformer layers."""

    target: str
    """Dotted path of the parameter."""
    sources: tuple[str, ...]
    """Names in the checkpoint; "{}" stands for the layer, from 0. Empty: the parameter is zero."""
    transform: Transform = TRANSPOSED


class Source(NamedTuple):
    """A checkpoint that has been read: all that the formats have in common."""

    format: str
    """For the report, e.g. "transformers folder"."""
    config: HubertConfig
    tensors: dict[str, np.ndarray]
    rules: list[Rule]
    extras: tuple[str, ...]
    """Beginnings of the names of tensors that belong to other models' heads and are left out."""
    files: tuple[pathlib.Path, ...]
    """Where the tensors come from."""
    notes: tuple[str, ...]
    """What the user should know, one line each."""


def make_parameters(source: Source) -> tuple[dict[str, np.ndarray], list[str]]:
    """Applies the rules; `source.tensors` is emptied, so that large models fit twice at most.

    Returns:
      every parameter by dotted path, float32, and the names of the extras that were left out.

    Raises:
      InputError: a tensor is missing, unknown, of another shape or not of finite floats; all
        offenders are listed.
    """
    parameters, problems = {}, []
    shapes = {
        name: leaf.shape for name, leaf in named_leaves(abstract_model(source.config)).items()
    }
    for rule in source.rules:
        shape = shapes[rule.target]
        if not rule.sources:
            parameters[rule.target] = np.zeros(shape, np.float32)
        elif rule.target.startswith("layers."):
            layers = [
                _make(rule, layer, shape[1:], source.tensors, problems) for layer in range(shape[0])
            ]
            if not problems:
                parameters[rule.target] = np.stack(layers)
        else:
            parameters[rule.target] = _make(rule, 0, shape, source.tensors, problems)
    extras = sorted(name for name in source.tensors if name.startswith(source.extras))
    problems += [f"{name} is unknown" for name in sorted(source.tensors) if name not in extras]
    source.tensors.clear()
    if problems:
        raise InputError(
            f"{len(problems)} tensors do not fit the HuBERT that the config describes, so nothing "
            f"was written; copy weights and config from the same place: {'; '.join(problems)}"
        )
    return parameters, extras


def _make(
    rule: Rule,
    layer: int,
    shape: tuple[int, ...],
    tensors: dict[str, np.ndarray],
    problems: list[str],
) -> np.ndarray:
    """One array of a rule, out of tensors that are taken away; zeros after adding a problem."""
    names = [name.format(layer) for name in rule.sources]
    wanted = rule.transform.source_shapes(shape, len(names))
    found, before = [], len(problems)
    for name, wanted_shape in zip(names, wanted, strict=True):
        tensor = tensors.pop(name, None)
        if tensor is None:
            problems.append(f"{name} is missing")
        elif tensor.shape != wanted_shape:
            problems.append(f"{name} has the shape {tensor.shape} instead of {wanted_shape}")
        elif tensor.dtype.name not in FLOATS:
            problems.append(f"{name} is {tensor.dtype.name}, not one of {', '.join(FLOATS)}")
        else:
            found.append(tensor.astype(np.float32, copy=False))
    if len(problems) > before:
        return np.zeros(shape, np.float32)
    made = rule.transform.apply(*found)
    if not np.all(np.isfinite(made)):
        problems.append(f"{' with '.join(names)} gives NaN or infinite values")
    return made
