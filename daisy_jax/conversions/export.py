"""A model folder of ours in, a folder for `transformers.HubertModel.from_pretrained` out."""

import dataclasses
import json
import os
import pathlib

import numpy as np
from safetensors.numpy import save_file

from daisy_jax import checkpoints
from daisy_jax.audio import CONV_KERNELS, CONV_STRIDES, SAMPLE_RATE
from daisy_jax.conversions.rules import make_tensors
from daisy_jax.conversions.transformers_folder import (
    CONFIG,
    EPSILON,
    MASK_EMBEDDING,
    ONLY,
    PREPROCESSORS,
    SIZES,
    SWITCHES,
)
from daisy_jax.conversions.trunk import TRANSFORMERS, trunk_rules
from daisy_jax.reporting import as_table
from daisy_jax.whole_files import TENSORS, contiguous, whole_files


@dataclasses.dataclass(frozen=True)
class ExportReport:
    """What an export did; as text, what the command prints."""

    source: str
    destination: str
    tensors: int
    """Tensors written."""
    left_out: tuple[str, ...]
    """Parts of the model that transformers' HubertModel has no place for."""
    notes: tuple[str, ...] = ()
    """What else the user should know."""

    def __str__(self) -> str:
        rows = [
            ("source", f"{self.source} (daisy_jax model folder)"),
            (
                "tensors",
                f"{self.tensors} written as float32, bit for bit but for the positional kernel, "
                "which is split into gain and direction",
            ),
            *(("left out", f"{part}; a HubertModel has no place for it") for part in self.left_out),
            *(("note", note) for note in self.notes),
            ("written", self.destination),
            ("next", f"transformers.HubertModel.from_pretrained({self.destination!r})"),
        ]
        return as_table(rows)


def export(source: str | os.PathLike, destination: str | os.PathLike) -> ExportReport:
    """Writes the trunk of a model folder as a transformers folder.

    Args:
      source: a folder that `daisy_jax.load` reads.
      destination: the folder to write; must not hold a model yet.

    Returns:
      An `ExportReport`, whose text says what was written and what was left out.

    Raises:
      InputError: the source is not a model folder, or the destination holds a model.
      OSError: a file cannot be read or written.
    """
    target = pathlib.Path(destination)
    checkpoints.refuse_to_overwrite(target, (CONFIG, TENSORS, PREPROCESSORS[0][0]))
    model = checkpoints.load(source)
    config = model.config
    rules = trunk_rules(config, TRANSFORMERS, (MASK_EMBEDDING,), MASK_EMBEDDING)
    parameters = {name: np.asarray(p) for name, p in checkpoints.parameters(model).items()}
    tensors = make_tensors(rules, parameters)
    fields = {
        "model_type": "hubert",
        "architectures": ["HubertModel"],
        "dtype": "float32",
        **{theirs: getattr(config, ours) for theirs, ours in (SIZES | SWITCHES).items()},
        **{theirs: only for theirs, only in ONLY.items() if only is not None},
        "conv_dim": [config.conv_dim] * len(CONV_KERNELS),
        "feat_extract_norm": config.conv_norm,
        "num_feat_extract_layers": len(CONV_STRIDES),
    }
    preprocessor = {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "do_normalize": config.normalize_input,
        "sampling_rate": SAMPLE_RATE,
        "feature_size": 1,
        "padding_value": 0.0,
        "return_attention_mask": config.conv_norm == "layer",
    }
    contents = {CONFIG: fields, PREPROCESSORS[0][0]: preprocessor}
    paths = [target / name for name in (TENSORS, *contents)]
    with whole_files(*paths) as (weights, *partials):
        save_file(contiguous(tensors), weights, {"format": "pt"})
        for partial, content in zip(partials, contents.values(), strict=True):
            partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    left_out = [name for name in ("head", "branches", "calibration") if getattr(model, name)]
    notes = []
    if config.normalize_input and config.normalize_epsilon != EPSILON:
        notes.append(
            f"transformers normalises input with epsilon {EPSILON:g}, this model with "
            f"{config.normalize_epsilon:g}: features of very quiet recordings differ"
        )
    return ExportReport(str(source), str(target), len(tensors), tuple(left_out), tuple(notes))
