"""Reads a folder that transformers' `save_pretrained` wrote: `config.json`, weights, preprocessor.

Source: the format of transformers' HubertModel, HubertForCTC and HubertForSequenceClassification.
"""

import dataclasses
import pathlib

import numpy as np

from daisy_jax.audio import CONV_KERNELS, CONV_STRIDES, SAMPLE_RATE
from daisy_jax.conversions.rules import Source
from daisy_jax.conversions.trunk import (
    INSIDE_TRANSFORMERS,
    TRANSFORMERS,
    mask_embedding_note,
    refuse_other_models,
    trunk_rules,
)
from daisy_jax.conversions.weight_files import read_weights
from daisy_jax.errors import InputError
from daisy_jax.model.config import HubertConfig
from daisy_jax.whole_files import read_json

CONFIG = "config.json"
EXTRAS = ("lm_head.", "classifier.", "projector.", "layer_weights", "final_proj.")
"""Task heads of CTC, classification and ContentVec models."""
MASK_EMBEDDING = "masked_spec_embed"
PREPROCESSORS = (
    ("preprocessor_config.json", None),
    ("processor_config.json", "feature_extractor"),
)
"""Files that tell about input normalisation, and the part that does; the second is newer."""
EPSILON = 1e-7
"""Added to a waveform's variance by the feature extractor."""
SIZES = {
    "num_hidden_layers": "num_layers",
    "hidden_size": "dim",
    "intermediate_size": "ffn_dim",
    "num_attention_heads": "num_heads",
    "num_conv_pos_embeddings": "pos_conv_kernel",
    "num_conv_pos_embedding_groups": "pos_conv_groups",
}
SWITCHES = {"conv_bias": "conv_bias", "do_stable_layer_norm": "norm_first"}
ONLY = {
    "conv_kernel": list(CONV_KERNELS),
    "conv_stride": list(CONV_STRIDES),
    "hidden_act": "gelu",
    "feat_extract_activation": "gelu",
    "layer_norm_eps": 1e-5,
    "feat_proj_layer_norm": True,
    "conv_pos_batch_norm": False,
    "add_adapter": False,
    "adapter_attn_dim": None,
    "quantization_config": None,
}
"""The one value of each that a HuBERT of ours can have; it is transformers' default, too."""


def describes(folder: pathlib.Path) -> bool:
    """Whether a folder holds the config of a transformers model."""
    return (folder / CONFIG).is_file() and "model_type" in _fields(folder / CONFIG)


def _fields(path: pathlib.Path) -> dict[str, object]:
    return read_json(path, dict[str, object], "copy it again")


def read(folder: pathlib.Path) -> Source:
    """Reads a folder of a HuBERT model, with any or no downstream head.

    Raises:
      InputError: another kind of model, a config value that we cannot represent, no weights or
        unreadable ones.
      OSError: a file cannot be read.
    """
    config, notes = read_config(folder)
    tensors, files = read_weights(folder)
    return make_source("transformers folder", config, notes, tensors, files)


def make_source(
    format: str,
    config: HubertConfig,
    notes: tuple[str, ...],
    tensors: dict[str, np.ndarray],
    files: tuple[pathlib.Path, ...],
) -> Source:
    """A source out of transformers' tensors, wherever they and the config come from."""
    refuse_other_models(tensors)
    inside = any(name.startswith(INSIDE_TRANSFORMERS) for name in tensors)
    prefix = INSIDE_TRANSFORMERS if inside else ""
    mask_embedding = prefix + MASK_EMBEDDING
    return Source(
        format=format,
        config=config,
        tensors=tensors,
        rules=[*trunk_rules(config, TRANSFORMERS, tensors, mask_embedding, prefix)],
        extras=EXTRAS,
        files=files,
        notes=(*notes, *mask_embedding_note(mask_embedding, tensors)),
    )


def read_config(folder: pathlib.Path) -> tuple[HubertConfig, tuple[str, ...]]:
    """The config that a folder's JSON files describe, and notes on it; raises as `read`."""
    fields = _fields(folder / CONFIG)
    normalize, notes = _input_normalization(folder, fields.get("feat_extract_norm") == "layer")
    try:
        return _config(fields, normalize), tuple(notes)
    except InputError as error:
        raise InputError(f"{folder / CONFIG}: {error}") from None


def _config(fields: dict[str, object], normalize_input: bool) -> HubertConfig:
    if str(fields.get("format")).startswith("daisy_jax/"):
        raise InputError("this is a model folder of daisy_jax already; daisy_jax.load reads it")
    kind = fields.get("model_type")
    if kind != "hubert":
        raise InputError(
            f"model_type is {kind!r}; only 'hubert' models can be converted, as others compute "
            "something else"
        )
    problems = [
        f"{name} is {fields[name]!r}, where only {only!r} can be represented"
        for name, only in ONLY.items()
        if name in fields and fields[name] != only
    ]
    channels = fields.get("conv_dim", [512] * len(CONV_KERNELS))
    channels = channels if isinstance(channels, list) else [channels]
    if len(channels) != len(CONV_KERNELS) or len(set(map(str, channels))) != 1:
        problems.append(f"conv_dim is {channels!r}, where seven equal numbers are needed")
    norm = fields.get("feat_extract_norm", "group")
    if norm not in ("group", "layer"):
        problems.append(f"feat_extract_norm is {norm!r}, where 'group' or 'layer' is needed")
    for name in SWITCHES:
        if not isinstance(fields.get(name, False), bool):
            problems.append(f"{name} is {fields[name]!r}, where true or false is needed")
    if problems:
        raise InputError(f"not a HuBERT that daisy_jax can hold: {'; '.join(problems)}")
    return dataclasses.replace(
        HubertConfig.base(),  # whose fields are transformers' defaults, too
        conv_dim=channels[0],
        conv_norm=norm,
        normalize_input=normalize_input,
        normalize_epsilon=EPSILON,
        **{ours: fields[name] for name, ours in (SIZES | SWITCHES).items() if name in fields},
    )


def _input_normalization(folder: pathlib.Path, layer_norm: bool) -> tuple[bool, list[str]]:
    """Whether waveforms are to be normalised, and what to say about that."""
    for name, part in PREPROCESSORS:
        if (folder / name).is_file():
            fields = _fields(folder / name)
            fields = fields.get(part) if part else fields
            if not isinstance(fields, dict):
                continue
            rate = fields.get("sampling_rate", SAMPLE_RATE)
            if rate != SAMPLE_RATE:
                raise InputError(
                    f"{folder / name}: sampling_rate is {rate!r}; HuBERT needs {SAMPLE_RATE}"
                )
            normalize = fields.get("do_normalize", True)
            if not isinstance(normalize, bool):
                raise InputError(
                    f"{folder / name}: do_normalize is {normalize!r}, where true or false is needed"
                )
            return normalize, [f"input normalisation: {_on(normalize)}, as {name} says"]
    norm = "layer" if layer_norm else "group"
    return layer_norm, [
        f"input normalisation: {_on(layer_norm)}, assumed from the {norm} norm of the front end, "
        "as there is no preprocessor_config.json; add that file (do_normalize) and convert again "
        "if the model was trained otherwise"
    ]


def _on(switch: bool) -> str:
    return "on" if switch else "off"
