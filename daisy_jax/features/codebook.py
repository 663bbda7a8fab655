"""Codebooks of discrete units: k-means centroids, and what they belong to.

A codebook is a folder of `train/units.py`: `model.safetensors` with `centroids`, float32 [clusters,
dim], and `units.json` with the layer and the digest of the trunk. A `.npy` file with the centroids
alone says neither.
"""

import os
import pathlib
import shlex
from typing import NamedTuple, TypedDict

import numpy as np
from jaxtyping import Float, Int, Shaped

from daisy_jax.checkpoints import parameters
from daisy_jax.errors import InputError
from daisy_jax.model.frame_labels import nearest_centroid
from daisy_jax.model.hubert import Hubert
from daisy_jax.whole_files import (
    arrays_digest,
    numbers_of,
    parse_json,
    read_folder,
    read_numbers,
    write_folder,
)

FORMAT = "daisy_jax_units/1"
CONFIG = "units.json"
FROM_JOBLIB = (
    "import sys, joblib, numpy; numpy.save(sys.argv[2], joblib.load(sys.argv[1]).cluster_centers_)"
)
"""Python that turns a pickled k-means into a .npy file."""


class _Fields(TypedDict):
    """What is read of units.json."""

    layer: int
    trunk: str


class Codebook(NamedTuple):
    """Centroids; a unit is the number of the nearest one to a frame of a layer's output."""

    centroids: Float[np.ndarray, "clusters dim"]
    """float32."""
    layer: int | None
    """1 to L, the layer whose block output they were found in; None: nobody says."""
    trunk: str | None
    """`trunk_digest` of the model; None: nobody says."""

    def units(self, hidden: Float[np.ndarray, "frames dim"]) -> Int[np.ndarray, " frames"]:
        """The unit of each frame of the layer's output."""
        return nearest_centroid(np.asarray(hidden, np.float32), self.centroids)

    def layer_for(self, model: Hubert, layer: int | None, source: str) -> int:
        """The layer at which utterances must leave, for the units of this codebook.

        Args:
          model: whose features they are.
          layer: what a person asked for; None: nothing.
          source: the codebook's place, for messages.

        Raises:
          InputError: it belongs to another layer or another trunk, nobody says to which layer, or
            centroids have another width than features.
        """
        if self.layer is None and layer is None:
            raise InputError(f"{source}: does not say to which layer it belongs; give --layer")
        if self.layer is not None and layer not in (None, self.layer):
            raise InputError(
                f"{source}: belongs to layer {self.layer}, not to {layer}; leave --layer out"
            )
        if self.trunk is not None and self.trunk != trunk_digest(model):
            raise InputError(
                f"{source}: was made with another model; give that one with --model, or make units "
                "for this one (train/units.py)"
            )
        if self.centroids.shape[1] != model.config.dim:
            raise InputError(
                f"{source}: centroids have the shape {self.centroids.shape}; for this model it "
                f"must be [clusters, {model.config.dim}]"
            )
        chosen = self.layer if layer is None else layer
        assert chosen is not None
        return chosen


def trunk_digest(model: Hubert) -> str:
    """Tells trunks apart, whatever head, branches and calibration they have."""
    leaves = parameters(model.replace(head=None, branches=None))
    # In float32, so that the type that a device computes in makes no other trunk of it.
    arrays = {name: np.asarray(leaf, np.float32) for name, leaf in leaves.items()}
    return arrays_digest(arrays, model.config.tap)[:16]


def save_codebook(folder: str | os.PathLike[str], codebook: Codebook) -> None:
    """Writes a codebook's folder, all of it or nothing."""
    config = {"format": FORMAT, "layer": codebook.layer, "trunk": codebook.trunk}
    write_folder(pathlib.Path(folder), {"centroids": codebook.centroids}, {CONFIG: config})


def load_codebook(path: str | os.PathLike[str]) -> Codebook:
    """Reads a folder of `save_codebook`, or a .npy file of centroids.

    Raises:
      InputError: it is neither, or damaged. For a k-means of scikit-learn the line says how to turn
        it into a .npy file: it is a pickle, whose code is never run here.
    """
    folder = pathlib.Path(path)
    if not folder.is_dir():
        return Codebook(_two_axes(path, _read_npy(os.fspath(path))), None, None)
    remedy = "make it again with train/units.py"
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder}: no {CONFIG} there; give a folder of train/units.py")
    tensors, texts = read_folder(folder, (CONFIG,))
    config = parse_json(str(folder / CONFIG), texts[CONFIG], _Fields, remedy, FORMAT)
    if "centroids" not in tensors:
        raise InputError(f"{folder}: holds no centroids; {remedy}")
    centroids = _two_axes(folder, numbers_of(folder, tensors["centroids"]))
    return Codebook(centroids, config["layer"], config["trunk"])


def _read_npy(path: str) -> Shaped[np.ndarray, "..."]:
    try:
        return read_numbers(path)
    except InputError as error:
        if path.endswith(".npy"):
            raise
        turned = shlex.join(["python", "-c", FROM_JOBLIB, path, f"{path}.npy"])
        raise InputError(
            f"{error}. A k-means of scikit-learn is a pickle, whose code is never run here; if you "
            f"trust it: {turned}"
        ) from None


def _two_axes(
    path: str | os.PathLike[str], array: Shaped[np.ndarray, "..."]
) -> Float[np.ndarray, "clusters dim"]:
    if array.ndim != 2 or not len(array):
        raise InputError(
            f"{os.fspath(path)}: holds an array of the shape {array.shape}; centroids are "
            "[clusters, dim]"
        )
    return array


def as_text(units: Int[np.ndarray, " frames"], collapse: bool) -> str:
    """Units with spaces between them; with `collapse` one of each run of equal ones."""
    if collapse and len(units):
        units = units[np.insert(units[1:] != units[:-1], 0, True)]
    return " ".join(map(str, units.tolist()))
