"""`convert`: a checkpoint of another library in, a model folder of ours out."""

import dataclasses
import hashlib
import os
import pathlib
import shlex

from daisy_jax import checkpoints
from daisy_jax.conversions.grafts import graft
from daisy_jax.conversions.rules import apply_rules
from daisy_jax.conversions.sources import open_source
from daisy_jax.model.config import HubertConfig
from daisy_jax.reporting import as_table


@dataclasses.dataclass(frozen=True)
class Report:
    """What a conversion did; as text, what the command prints."""

    source: str
    """The path that was read."""
    destination: str
    """The model folder that was written."""
    format: str
    """The format of the source, e.g. "transformers folder"."""
    sha256: tuple[tuple[str, str], ...]
    """The files of weights that were read, each with its checksum."""
    config: HubertConfig
    """The architecture."""
    used: int
    """Tensors of the source that went into the model."""
    ignored: tuple[str, ...]
    """Names of those that belong to task heads and were left out."""
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
            *(("sha256", f"{digest}  {path}") for path, digest in self.sha256),
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
        return as_table(rows)

    def _next_step(self) -> str:
        folder = shlex.quote(self.destination)
        full = f"daisy-jax encode --model {folder} --full FILES works now"
        if self.config.num_classes:
            return f"daisy-jax calibrate {folder} FILES"
        if self.config.num_clusters:
            return f"{full}; for early exit, train branches with train/branches.py"
        return (
            f"{full}; for early exit, branches must be trained, for which this model lacks "
            "HuBERT's prediction head: convert once more with --head-from and the fairseq or s3prl "
            "checkpoint of the same model, which has it"
        )


def convert(
    source: str | os.PathLike,
    destination: str | os.PathLike,
    *,
    head_from: str | os.PathLike | None = None,
    branches_from: str | os.PathLike | None = None,
    num_heads: int = 0,
) -> Report:
    """Converts a checkpoint into a model folder for `daisy_jax.load`.

    Every tensor of the source is used or on a short list of known extras, and every parameter is
    filled; half-precision tensors become float32. Nothing inside a pickle is run.

    Args:
      source: a checkpoint of fairseq, s3prl, torchaudio or the DAISY authors; a folder or file of
        transformers; or the name of a model of the Hugging Face hub.
      destination: the model folder to write; must not hold a model yet.
      head_from: a checkpoint of the same trunk whose HuBERT prediction head is taken over.
      branches_from: a checkpoint of the same trunk whose early-exit branches are taken over.
      num_heads: attention heads, for state dicts without configuration; 0: as HuBERT models of
        that width have.

    Returns:
      A `Report`, whose text says what was read, what was written and what to do next.

    Raises:
      InputError: not a checkpoint of a known format, a model that is no HuBERT, tensors that are
        missing or unknown, trunks that differ, or a destination that holds a model; nothing is
        written then.
      OSError: a file cannot be read or written.
    """
    target = pathlib.Path(destination)
    checkpoints.refuse_to_overwrite(target)
    whole = apply_rules(open_source(source, num_heads))
    for part, path in (("head", head_from), ("branches", branches_from)):
        if path is not None:
            whole = graft(part, apply_rules(open_source(path, num_heads)), whole)
    digests = tuple((str(file), _sha256(file)) for file in whole.source.files)
    abstract = checkpoints.abstract_model(whole.config)
    checkpoints.save(checkpoints.fill(abstract, whole.parameters), target)
    return Report(
        source=os.fspath(source),
        destination=str(target),
        format=whole.source.format,
        sha256=digests,
        config=whole.config,
        used=whole.used,
        ignored=whole.ignored,
        stored=", ".join(sorted(set().union(*whole.stored.values()))),
        parameters=sum(parameter.size for parameter in whole.parameters.values()),
        notes=whole.source.notes,
    )


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
