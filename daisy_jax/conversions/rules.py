"""Which tensors of a checkpoint make which parameter of ours, complete in both directions.

A format brings a list of rules. Every tensor must then be used or be on the format's list of known
extras, and every parameter must be made; otherwise one error names all offenders. The same rules,
read backwards, make the tensors out of the parameters.
"""

import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from daisy_jax.checkpoints import abstract_model, named_leaves
from daisy_jax.errors import InputError
from daisy_jax.model.config import HubertConfig

FLOATS = ("float16", "bfloat16", "float32", "float64")
STACKED = ("layers.", "branches.")  # parameters with a leading axis of transformer layers
Weights = Float32[np.ndarray, "..."]


class Transform(NamedTuple):
    """How an array comes out of source arrays, which shapes those must have, and the way back."""

    source_shapes: Callable[[tuple[int, ...], int], list[tuple[int, ...]]]
    """(wanted shape, number of sources) -> the shape of each source."""
    apply: Callable[..., Weights]
    """source arrays, float32 -> the array."""
    invert: Callable[[Weights, int], list[Weights]] | None = None
    """(the array, number of sources) -> source arrays from which `apply` makes it; None: `apply`
    leaves something out."""


def _weight_norm_shapes(shape: tuple[int, ...], count: int) -> list[tuple[int, ...]]:
    return [(1, 1, shape[0]), (shape[2], shape[1], shape[0])]


def _fold_weight_norm(
    gain: Float32[np.ndarray, "1 1 taps"], direction: Float32[np.ndarray, "out in taps"]
) -> Float32[np.ndarray, "taps in out"]:
    exact = direction.astype(np.float64)
    norm = np.sqrt(np.sum(exact**2, axis=(0, 1), keepdims=True))
    with np.errstate(divide="ignore", invalid="ignore"):  # a zero norm is reported as NaN later
        return (gain * exact / norm).astype(np.float32).T


def _unfold_weight_norm(
    kernel: Float32[np.ndarray, "taps in out"], count: int
) -> list[Float32[np.ndarray, "_ _ taps"]]:
    direction = kernel.T.astype(np.float64)
    gain = np.sqrt(np.sum(direction**2, axis=(0, 1), keepdims=True))
    direction = np.where(gain == 0, 1, direction)  # a tap of zeros: any direction, gain 0
    return [gain.astype(np.float32), direction.astype(np.float32)]


TRANSPOSED = Transform(
    lambda shape, count: [(shape[-1] // count, *reversed(shape[:-1]))] * count,
    lambda *sources: np.concatenate([source.T for source in sources], axis=-1),
    lambda array, count: [part.T for part in np.split(array, count, axis=-1)],
)
"""torch's axes [out, in, taps] to flax's [taps, in, out], vectors as they are. Several sources are
put side by side along the output axis."""
WEIGHT_NORM = Transform(_weight_norm_shapes, _fold_weight_norm, _unfold_weight_norm)
"""gain [1, 1, taps] and direction [out, in, taps] of a weight-normalised convolution -> its kernel
[taps, in, out]: direction times gain over the direction's norm, which is taken for each tap."""
UNCHANGED = Transform(
    lambda shape, count: [shape], lambda source: source, lambda array, count: [array]
)
"""The axes as they are."""


class Rule(NamedTuple):
    """One parameter of ours."""

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
    symbols: tuple[str, ...] = ()
    """Names of the prediction head's clusters, in the order of the checkpoint, where it has them.
    """


class Converted(NamedTuple):
    """A checkpoint as parameters of ours."""

    source: Source
    """What was read; its tensors are used up."""
    config: HubertConfig
    parameters: dict[str, Weights]
    """By dotted path."""
    ignored: tuple[str, ...]
    """Names of tensors that were left out."""
    used: int
    """How many others there were."""
    stored: dict[str, set[str]]
    """The types that the tensors of each parameter had."""

    def part(self, name: str) -> dict[str, Weights]:
        """The parameters of the prediction head, "head", or of the branches."""
        return {n: p for n, p in self.parameters.items() if n.startswith(name + ".")}


def parameter_shapes(config: HubertConfig) -> dict[str, tuple[int, ...]]:
    """The shapes of a model's parameters, by dotted path."""
    return {name: leaf.shape for name, leaf in named_leaves(abstract_model(config)).items()}


def apply_rules(source: Source) -> Converted:
    """Makes the parameters; `source.tensors` is emptied on the way, so that large models fit.

    Raises:
      InputError: a tensor is missing, unknown, of another shape or not of finite floats; one line
        that names the file and all offenders.
    """
    parameters, stored, problems, flawed = {}, {}, [], []
    shapes = parameter_shapes(source.config)
    file, count = source.files[0], len(source.tensors)
    if source.config.num_layers > count:
        raise InputError(
            f"{file}: {count} tensors are too few for the {source.config.num_layers} layers that "
            "the config describes; copy weights and config from the same place"
        )
    for rule in source.rules:
        shape = shapes[rule.target]
        stacked = rule.target.startswith(STACKED)
        taken = [
            _take(rule, layer, shape[stacked:], source.tensors, problems)
            for layer in range(shape[0] if stacked else 1)
        ]
        stored[rule.target] = {tensor.dtype.name for tensors in taken for tensor in tensors}
        if not problems:  # else a wrong config could ask for any amount of memory
            parameters[rule.target] = _make(rule, shape, taken, flawed)
    extras = sorted(name for name in source.tensors if name.startswith(source.extras))
    problems += [f"{name} is unknown" for name in sorted(source.tensors) if name not in extras]
    source.tensors.clear()
    problems += flawed
    if problems:
        raise InputError(
            f"{file}: {len(problems)} tensors do not fit the HuBERT that the config describes, so "
            "nothing was written; copy weights and config from the same place: "
            f"{'; '.join(problems)}"
        )
    used = count - len(extras)
    return Converted(source, source.config, parameters, tuple(extras), used, stored)


def _take(
    rule: Rule,
    layer: int,
    shape: tuple[int, ...],
    tensors: dict[str, np.ndarray],
    problems: list[str],
) -> list[np.ndarray]:
    """The tensors of a rule for one layer, taken away from the others; or more problems."""
    names = [name.format(layer) for name in rule.sources]
    taken = []
    if not names:
        return taken
    wanted = rule.transform.source_shapes(shape, len(names))
    for name, wanted_shape in zip(names, wanted, strict=True):
        tensor = tensors.pop(name, None)
        if tensor is None:
            problems.append(f"{name} is missing")
        elif tensor.shape != wanted_shape:
            problems.append(f"{name} has the shape {tensor.shape} instead of {wanted_shape}")
        elif tensor.dtype.name not in FLOATS:
            problems.append(f"{name} is {tensor.dtype.name}, not one of {', '.join(FLOATS)}")
        else:
            taken.append(tensor)
    return taken


def _make(
    rule: Rule, shape: tuple[int, ...], taken: list[list[np.ndarray]], flawed: list[str]
) -> Weights:
    """A parameter out of the tensors of each layer, which are let go one after the other."""
    parameter = np.zeros(shape, np.float32)
    layers = parameter if rule.target.startswith(STACKED) else parameter[None]
    for layer in range(len(layers)):
        with np.errstate(over="ignore"):  # beyond float32 is infinity, which is reported
            sources = [tensor.astype(np.float32, copy=False) for tensor in taken[layer]]
        taken[layer] = []
        if sources:
            layers[layer] = rule.transform.apply(*sources)
        if not np.all(np.isfinite(layers[layer])):
            names = " with ".join(name.format(layer) for name in rule.sources)
            flawed.append(f"{names} gives NaN or infinite values")
    return parameter


def make_tensors(rules: Iterable[Rule], parameters: Mapping[str, Weights]) -> dict[str, Weights]:
    """The inverse of `apply_rules`, for rules that have one: tensors by name, C-contiguous."""
    tensors = {}
    for rule in rules:
        parameter = parameters[rule.target]
        stacked = rule.target.startswith(STACKED)
        for layer, array in enumerate(parameter if stacked else parameter[None]):
            assert rule.transform.invert is not None
            parts = rule.transform.invert(array, len(rule.sources))
            for name, part in zip(rule.sources, parts, strict=True):
                tensors[name.format(layer)] = np.ascontiguousarray(part)
    return tensors
