"""`convert`: a checkpoint of another library in, a model folder of ours out."""

import dataclasses
import hashlib
import os
import pathlib

from daisy_jax import checkpoints
from daisy_jax.config import HubertConfig
from daisy_jax.conversions import transformers_folder
from daisy_jax.conversions.rules import make_parameters
from daisy_jax.errors import InputError

READERS = (transformers_folder,)


@dataclasses.dataclass(frozen=True)
class Report:
    """What a conversion did; as text, what the command prints."""

    source: str
    """The path that was read."""
    destination: str
    """The model folder that was written."""
    format: str
    """The format of the source, e.g. "transformers folder"."""
    sha256: dict[str, str]
    """Checksums of the files of weights, by file name."""
    config: HubertConfig
    """The architecture."""
    used: int
    """Tensors of the source that went into the model."""
    ignored: tuple[str, ...]
    """Names of those that belong to other heads and were left out."""
    stored: str
    """Types of the source's tensors, e.g. "float16"; the model is float32."""
    parameters: int
    """Numbers in the model."""
    notes: tuple[str, ...]
    """What else the user should know."""

    def __str__(self) -> str:
        config = self.config
        rows = [
            ("source", f"{self.source} ({self.format})"),
            *(("sha256", f"{digest}  {name}") for name, digest in self.sha256.items()),
            (
                "architecture",
                f"{config.num_layers} {'pre' if config.norm_first else 'post'}-LN layers of width "
                f"{config.dim}, {config.num_heads} heads, front end of {config.conv_dim} channels "
                f"with {config.conv_norm} norm and {'' if config.conv_bias else 'no '}biases",
            ),
            ("tensors", f"{self.used} used, {len(self.ignored)} ignored"),
            *(("ignored", name) for name in self.ignored),
            ("parameters", f"{self.parameters:,}, written as float32, came as {self.stored}"),
            ("head", f"{config.num_clusters} clusters" if config.num_clusters else "absent"),
            ("branches", f"{config.num_classes} classes" if config.num_classes else "absent"),
            *(("note", note) for note in self.notes),
            ("written", self.destination),
            ("next", self._next_step()),
        ]
        return "\n".join(f"{name:<13} {text}" for name, text in rows)

    def _next_step(self) -> str:
        full = f"daisy-jax encode --model {self.destination} --full FILES works now"
        if self.config.num_classes:
            return f"daisy-jax calibrate {self.destination} FILES"
        if self.config.num_clusters:
            return f"{full}; for early exit, train branches with train/branches.py"
        return (
            f"{full}; for early exit, branches must be trained, for which this model lacks "
            "HuBERT's prediction head: convert the fairseq or s3prl checkpoint of the same model, "
            "which have it"
        )


def convert(source: str | os.PathLike, destination: str | os.PathLike) -> Report:
    """Converts a checkpoint into a model folder for `daisy_jax.load`.

    Every tensor of the source is used or on a short list of known extras, and every parameter is
    filled; half-precision tensors become float32. Nothing inside a pickle is run.

    Args:
      source: a folder written by transformers' `save_pretrained`, or downloaded from a model hub.
      destination: the model folder to write; must not hold a model yet.

    Returns:
      A `Report`, whose text says what was read, what was written and what to do next.

    Raises:
      InputError: not a checkpoint of a known format, a model that is no HuBERT, tensors that are
        missing or unknown, or a destination that holds a model; nothing is written then.
      OSError: a file cannot be read or written.
    """
    path, target = pathlib.Path(source), pathlib.Path(destination)
    for name in (checkpoints.CONFIG, checkpoints.TENSORS):
        if (target / name).exists():
            raise InputError(
                f"{target}: already holds a model ({name}), which is not overwritten; give a new "
                "folder, or delete that one first"
            )
    reader = _reader(path)
    opened = reader.read(path)
    stored = ", ".join(sorted({tensor.dtype.name for tensor in opened.tensors.values()}))
    count = len(opened.tensors)
    try:
        parameters, extras = make_parameters(opened)
        model = checkpoints.fill(checkpoints.abstract_model(opened.config), parameters)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    digests = {file.name: _sha256(file) for file in opened.files}
    checkpoints.save(model, target)
    return Report(
        source=str(path),
        destination=str(target),
        format=opened.format,
        sha256=digests,
        config=opened.config,
        used=count - len(extras),
        ignored=tuple(extras),
        stored=stored,
        parameters=sum(parameter.size for parameter in parameters.values()),
        notes=opened.notes,
    )


def _reader(path: pathlib.Path):
    """The module that reads the format which a path holds."""
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: no such file or folder; give a checkpoint on this machine (a model of the "
            f"Hugging Face hub is fetched by: hf download {path} --local-dir FOLDER)"
        )
    for reader in READERS:
        if reader.recognizes(path):
            return reader
    raise InputError(
        f"{path}: not a checkpoint of a known format; wanted a folder with config.json and "
        "model.safetensors or pytorch_model.bin, as transformers' save_pretrained writes it"
    )


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
