"""Model folders: `model.safetensors` and `config.json`, readable without torch.

The config file says how to build the model; the tensor file holds every parameter under its path
(`layers.ffn.up.kernel`) and, if there is one, the calibration. Tensors may be stored as
float32, bfloat16 or float16.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Mapping
from typing import Any, TypeAlias, TypedDict, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, PyTree, Shaped

from daisy_jax.errors import InputError
from daisy_jax.exits import Calibration
from daisy_jax.model.config import HubertConfig
from daisy_jax.model.hubert import Hubert, arranged, dtype_computed
from daisy_jax.model.layer_arrays import stacked
from daisy_jax.whole_files import TENSORS, parse_json, read_folder, write_folder

FORMAT = "daisy_jax/1"
PACKAGED = pathlib.Path(__file__).parent / "models" / "daisy-tiny"
CONFIG = "config.json"
CALIBRATION_TENSOR = "calibration.entropy"
AGREEMENT_TENSOR = "calibration.agreement"
ENTROPY_ROUNDING = 1e-3
"""Nats that an entropy may lie below 0, where it was computed in few digits."""
DTYPES = ("float32", "bfloat16", "float16")
FLOAT32_PARTS = ("branches.", "head.")  # what decides stays exact, whatever the trunk computes in

Leaf: TypeAlias = Array | np.ndarray | jax.ShapeDtypeStruct
Tree = TypeVar("Tree")


def named_leaves(tree: PyTree) -> dict[str, Leaf]:
    """The arrays of a pytree of modules, by dotted path, in the order of `jax.tree.leaves`."""
    named = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        steps = [
            str(getattr(step, "name", getattr(step, "key", getattr(step, "idx", ""))))
            for step in path
        ]
        named[".".join(steps).removesuffix(".value")] = leaf
    return named


def parameters(model: Hubert) -> dict[str, Leaf]:
    """The arrays of a model by the names that they have in a model folder: layers are stacked."""
    return named_leaves(model.replace(layers=stacked(model.layers)))


def fill(tree: Tree, tensors: Mapping[str, Array | np.ndarray]) -> Tree:
    """A pytree like `tree` (arrays or shapes) with its leaves taken from `tensors`, by path.

    Raises:
      InputError: a tensor is missing, left over, or of another shape; all offenders are listed.
    """
    wanted = named_leaves(tree)
    problems = [f"{name} is missing" for name in wanted if name not in tensors]
    problems += [f"{name} is not part of the model" for name in tensors if name not in wanted]
    problems += [
        f"{name} has the shape {tuple(tensors[name].shape)} instead of {tuple(leaf.shape)}"
        for name, leaf in wanted.items()
        if name in tensors and tuple(tensors[name].shape) != tuple(leaf.shape)
    ]
    if problems:
        raise InputError("; ".join(problems))
    return jax.tree.unflatten(jax.tree.structure(tree), [tensors[name] for name in wanted])


def check_numbers(tensors: Mapping[str, np.ndarray]) -> None:
    """Raises an InputError if a tensor holds something else than finite floating-point numbers."""
    problems = []
    for name, tensor in tensors.items():
        if not jnp.issubdtype(tensor.dtype, jnp.floating):
            problems.append(f"{name} holds {tensor.dtype}, not floating-point numbers")
        elif not np.all(np.isfinite(tensor)):
            problems.append(f"{name} holds NaN or infinite numbers")
    if problems:
        raise InputError("; ".join(problems))


@functools.lru_cache(maxsize=8)  # tracing takes as long as reading a large model
def abstract_model(config: HubertConfig) -> Hubert:
    """The model of a config with shapes in the place of arrays."""
    return jax.eval_shape(lambda: Hubert(config, rngs=nnx.Rngs(0)))


def save(model: Hubert, path: str | os.PathLike, *, dtype: str | None = None) -> None:
    """Writes a model folder: parameters, config and calibration.

    Args:
      model: any model.
      path: the folder; made if absent, its model is replaced if present.
      dtype: storage type, "float32", "bfloat16" or "float16"; None: as the model has it.

    Raises:
      OSError: the folder cannot be written. A model that was there before is kept then.
    """
    folder = pathlib.Path(path)
    tensors = {name: np.asarray(leaf) for name, leaf in parameters(model).items()}
    if dtype is not None:
        storage = _checked_dtype(dtype)
        with np.errstate(over="ignore"):
            stored = {name: tensor.astype(storage) for name, tensor in tensors.items()}
        for name, tensor in stored.items():
            if not np.all(np.isfinite(tensor)) and np.all(np.isfinite(tensors[name])):
                raise InputError(f"dtype {dtype} cannot hold {name}; give bfloat16 or float32")
        tensors = stored
    _write(folder, tensors, model.config, model.calibration)


def save_calibration(path: str | os.PathLike, calibration: Calibration) -> None:
    """Stores a calibration in a model folder; every other tensor keeps its bytes.

    Raises:
      OSError: the folder cannot be written. The calibration that was there before is kept then.
    """
    folder = pathlib.Path(path)
    config, _, tensors = _read_folder(folder)
    for name in (CALIBRATION_TENSOR, AGREEMENT_TENSOR):
        tensors.pop(name, None)  # also where `load` would refuse it
    _write(folder, tensors, config, calibration)


def _write(
    folder: pathlib.Path,
    tensors: dict[str, Shaped[np.ndarray, "..."]],
    config: HubertConfig,
    calibration: Calibration | None,
) -> None:
    if calibration is not None:
        tensors = tensors | {CALIBRATION_TENSOR: np.asarray(calibration.entropy, np.float16)}
        if calibration.agreement is not None:
            tensors[AGREEMENT_TENSOR] = np.asarray(calibration.agreement, np.float16)
    content = {
        "format": FORMAT,
        "model": dataclasses.asdict(config),
        "calibration": None if calibration is None else {"dataset": calibration.dataset},
    }
    write_folder(folder, tensors, {CONFIG: content})


def refuse_to_overwrite(folder: pathlib.Path, names: tuple[str, ...] = (CONFIG, TENSORS)) -> None:
    """Raises an InputError if a new model folder cannot be made there, before any work is done."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; give a new folder")
    for name in names:
        if (folder / name).exists():
            raise InputError(
                f"{folder}: already holds a model ({name}), which is not overwritten; give a new "
                "folder, or delete that one first"
            )


def load(path: str | os.PathLike | None = None, dtype: str | None = None) -> Hubert:
    """Reads a model folder.

    Args:
      path: a folder written by `save`, by the converter or by training; None: the small pretrained
        model inside the package.
      dtype: of the trunk, "float32", "bfloat16" or "float16"; None: float32. On a CPU weights are
        rounded to it, and computed with in float32, which is faster there and more exact. Branches
        and prediction head are always float32.

    Raises:
      InputError: the folder is not a model of this version, or not a whole one: a tensor missing,
        left over or of the wrong shape, a file cut off.
      OSError: the folder or a file of it is missing or unreadable.
    """
    folder = PACKAGED if path is None else pathlib.Path(path)
    model, (entropy, agreement), dataset = _load(folder, dtype)
    if entropy is None and agreement is None and dataset is None:
        return model
    if entropy is None or dataset is None:
        raise InputError(
            f"{folder}: {CONFIG} and {TENSORS} disagree about the calibration; calibrate the model "
            "again"
        )
    try:
        _check_calibration(entropy, agreement, model.config.num_layers)
    except InputError as error:
        raise InputError(f"{folder / TENSORS}: {error}; calibrate the model again") from None
    return model.replace(calibration=Calibration(entropy, dataset, agreement))


def load_uncalibrated(path: str | os.PathLike) -> Hubert:
    """Reads a model folder as `load` does, whatever its calibration holds: to make another."""
    return _load(pathlib.Path(path), None)[0]


def _load(
    folder: pathlib.Path, dtype: str | None
) -> tuple[Hubert, tuple[Shaped[np.ndarray, "..."] | None, ...], str | None]:
    """The model without calibration, the calibration's two tensors and its data set."""
    stored = _checked_dtype(dtype or "float32")
    computed = dtype_computed(stored)
    config, dataset, tensors = _read_folder(folder)
    calibrated = tuple(tensors.pop(name, None) for name in (CALIBRATION_TENSOR, AGREEMENT_TENSOR))
    try:
        check_numbers(tensors)
    except InputError as error:
        raise InputError(f"{folder / TENSORS}: {error}") from None
    arrays = {
        name: tensor.astype(np.float32, copy=False)
        if name.startswith(FLOAT32_PARTS)
        else tensor.astype(stored, copy=False).astype(computed, copy=False)
        for name, tensor in tensors.items()
    }
    try:
        model = fill(abstract_model(config), arrays)
    except InputError as error:
        raise InputError(f"{folder / TENSORS}: {error}") from None
    # Arranged first: parts of an array in memory are views, and nothing is held twice. Put there by
    # one call, which compiles nothing, as `jnp.asarray` does for each new shape.
    return jax.device_put(arranged(model), may_alias=False), calibrated, dataset


def _check_calibration(
    entropy: Shaped[np.ndarray, "..."], agreement: Shaped[np.ndarray, "..."] | None, layers: int
) -> None:
    check_numbers({CALIBRATION_TENSOR: entropy})
    if entropy.ndim != 2 or not len(entropy) or entropy.shape[1] != layers:
        raise InputError(
            f"{CALIBRATION_TENSOR} has the shape {entropy.shape} instead of (utterances, {layers})"
        )
    if np.min(entropy) < -ENTROPY_ROUNDING:
        raise InputError(f"{CALIBRATION_TENSOR} is negative somewhere")
    if agreement is None:
        return
    check_numbers({AGREEMENT_TENSOR: agreement})
    if agreement.shape != entropy.shape:
        raise InputError(f"{AGREEMENT_TENSOR} has the shape {agreement.shape}, not {entropy.shape}")
    if np.any((agreement < 0) | (agreement > 1)):
        raise InputError(f"{AGREEMENT_TENSOR} is outside of 0 to 1 somewhere")


def _checked_dtype(name: str) -> jnp.dtype:
    if name not in DTYPES:
        raise InputError(f"dtype is {name!r}; it must be one of {', '.join(DTYPES)}")
    return jnp.dtype(name)


class _Dataset(TypedDict):
    dataset: str


class _Config(TypedDict):
    """The content of config.json."""

    model: dict[str, Any]
    """Fields of `HubertConfig`, which checks them."""
    calibration: _Dataset | None


def _read_folder(
    folder: pathlib.Path,
) -> tuple[HubertConfig, str | None, dict[str, Shaped[np.ndarray, "..."]]]:
    """Config, the calibration's data set, and all tensors of a model folder."""
    for name in (CONFIG, TENSORS):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder}: no {name} there; give a folder written by daisy-jax convert or training"
            )
    tensors, texts = read_folder(folder, (CONFIG,))
    remedy = "convert the model again"
    content = parse_json(str(folder / CONFIG), texts[CONFIG], _Config, remedy, FORMAT)
    try:
        config = HubertConfig.from_dict(content["model"])
    except InputError as error:
        raise InputError(f"{folder / CONFIG}: {error}") from None
    calibration = content["calibration"]
    dataset = None if calibration is None else calibration["dataset"]
    return config, dataset, tensors
