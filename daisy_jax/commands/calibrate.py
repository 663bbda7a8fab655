"""`daisy-jax calibrate`: stores a data set's entropies with a model."""

import dataclasses
import pathlib
from typing import Annotated

import numpy as np
import tyro

import daisy_jax
from daisy_jax import Calibration, InputError
from daisy_jax.accelerator import Accelerator, use_accelerator
from daisy_jax.checkpoints import load_uncalibrated, save_calibration
from daisy_jax.commands.info import entropy_table
from daisy_jax.console.terminal import say
from daisy_jax.conversions.any_model import model_folder
from daisy_jax.data.file_list import expand_folders
from daisy_jax.reporting import followed, printable


@dataclasses.dataclass(frozen=True)
class Calibrate:
    """Measures every branch's entropy on a data set and stores it in the model folder.

    From then on `daisy-jax encode --ratio` and `--budget` work with this model. Take speech like
    the speech that will be encoded: the paper uses the downstream task's training split.
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
        files = expand_folders(self.files)
        rows, failed = [], 0
        results = daisy_jax.encode_files(model, files, threshold=-np.inf)
        for result in followed(results, "calibrating", len(files), lambda done: done.seconds):
            if result.error is not None:
                say(f"error: {printable(result.error)}", to_stderr=True)
                failed += 1
            else:
                rows.append(result.entropy)
        if not rows:
            raise InputError(
                f"{self.files[0]}: none of {len(files)} files could be encoded, so that the "
                f"calibration of {self.model} stays as it was"
            )
        first = pathlib.Path(self.files[0]).absolute()
        name = self.name or (first if first.is_dir() else first.parent).name
        # In the type that is stored, so that the table is that of daisy-jax info.
        calibration = Calibration(np.stack(rows).astype(np.float16), name)
        save_calibration(folder, calibration)
        say(entropy_table(calibration))
        return 1 if failed else 0
