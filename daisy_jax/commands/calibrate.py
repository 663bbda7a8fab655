"""`daisy-jax calibrate`: stores what branches say of a data set with a model."""

import dataclasses
import os
import pathlib
import tempfile
from typing import Annotated

import numpy as np
import tyro

from daisy_jax import Calibration, Hubert, InputError
from daisy_jax.accelerator import Accelerator, use_accelerator
from daisy_jax.checkpoints import load_uncalibrated, save_calibration
from daisy_jax.commands.info import agreement_table, entropy_table
from daisy_jax.console.terminal import say
from daisy_jax.conversions.any_model import model_folder
from daisy_jax.data.file_list import FileList, expand_folders
from daisy_jax.features import contents
from daisy_jax.features.extract import encode_shard
from daisy_jax.features.extractor import Extractor
from daisy_jax.features.shard_format import Row
from daisy_jax.reporting import printable


@dataclasses.dataclass(frozen=True)
class Calibrate:
    """Measures each branch's entropy, and agreement with the last, and stores them with a model.

    From then on `daisy-jax encode --ratio`, `--budget` and `--agreement` work with this model. Take
    speech like the speech that will be encoded: the paper uses the downstream task's training
    split.
    """

    model: tyro.conf.Positional[str]
    """A model with branches, of any source; its calibration is replaced."""
    files: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILE...")]
    """Sound files, or folders that are searched for them."""
    name: str = ""
    """Name of the data set; empty: the first file's folder."""
    accelerator: Accelerator = "auto"
    """Where to compute."""

    def run(self) -> int:
        """Calibrates, saves, prints the table; 1 if a file could not be read."""
        use_accelerator(self.accelerator)
        folder = model_folder(self.model)
        model = load_uncalibrated(folder)
        if model.branches is None:
            raise InputError(f"{self.model} has no branches; train them with train/branches.py")
        rows = _measured(model, [os.path.abspath(path) for path in expand_folders(self.files)])
        good = [row for row in rows if row.error is None]
        for row in rows:
            if row.error is not None:
                say(f"error: {printable(row.error)}", to_stderr=True)
        if not good:
            raise InputError(
                f"{self.files[0]}: none of {len(rows)} files could be encoded, so that the "
                f"calibration of {self.model} stays as it was"
            )
        first = pathlib.Path(self.files[0]).absolute()
        name = self.name or (first if first.is_dir() else first.parent).name
        # In the type that is stored, so that the tables are those of daisy-jax info.
        entropy, agreement = (
            np.asarray([getattr(row, kind) for row in good], np.float16)
            for kind in ("entropy", "agreement")
        )
        calibration = Calibration(entropy, name, agreement)
        save_calibration(folder, calibration)
        say(entropy_table(calibration))
        say(agreement_table(calibration, model.config))
        return 1 if len(good) < len(rows) else 0


def _measured(model: Hubert, paths: list[str]) -> list[Row]:
    """A row a file, by way of a feature store without features."""
    paths = list(dict.fromkeys(paths))
    files = FileList(pathlib.Path(), paths, {}, 0, {})
    with tempfile.TemporaryDirectory() as folder:
        rows = encode_shard(Extractor(model, contents.layers(())), files, 0, 1, folder)
    order = {path: place for place, path in enumerate(paths)}
    return sorted(rows, key=lambda row: order[row.id])
