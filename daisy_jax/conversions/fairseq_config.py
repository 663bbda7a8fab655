"""What the configuration inside a fairseq or s3prl checkpoint says about the model.

Source: fairseq's `HubertConfig` and `HubertPretrainingConfig`.
"""

import dataclasses
import re
from typing import Literal, TypeVar

import numpy as np

from daisy_jax.audio import CONV_KERNELS, CONV_STRIDES, SAMPLE_RATE
from daisy_jax.conversions.torch_files import StandIn
from daisy_jax.errors import InputError
from daisy_jax.model.config import HubertConfig

FIELDS = {
    "encoder_layers": "num_layers",
    "encoder_embed_dim": "dim",
    "encoder_ffn_embed_dim": "ffn_dim",
    "encoder_attention_heads": "num_heads",
    "conv_pos": "pos_conv_kernel",
    "conv_pos_groups": "pos_conv_groups",
    "layer_norm_first": "norm_first",
    "conv_bias": "conv_bias",
}
"""Fields of fairseq's HubertConfig, and what we call them; those that are left out are Base's."""
CONV_LAYERS = "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2"
CONV_TERM = re.compile(r"\[((?:\(\d{1,5},\d{1,5},\d{1,5}\),?)+)\](?:\*(\d{1,2}))?")
NORMS: dict[str, Literal["group", "layer"]] = {"default": "group", "layer_norm": "layer"}
ONLY = {
    "activation_fn": "gelu",
    "layer_type": "transformer",
    "conv_pos_batch_norm": False,
    "pos_conv_depth": 1,
}
"""The one value of each that a HuBERT of ours can have; it is fairseq's default, too."""
Fields = dict[str, object]
"""A configuration, as it was read."""
Value = TypeVar("Value", bound=bool | int | str)


def find_settings(content: Fields) -> tuple[Fields, Fields]:
    """Fields of model and task, which older files keep in one namespace."""
    if "model_cfg" in content:
        model, task = content["model_cfg"], content.get("task_cfg")
    else:
        model, task = _model_and_task(content["args" if content.get("cfg") is None else "cfg"])
    if isinstance(model, dict) and isinstance(model.get("w2v_args"), dict):
        model, task = _model_and_task(model["w2v_args"])  # pretraining's, beside fine-tuning's
    task = {} if task is None else task
    if not isinstance(model, dict) or not isinstance(task, dict):
        raise InputError("its configuration is no table of fields, so the model is unknown")
    return model, task


def _model_and_task(fields: object) -> tuple[object, object]:
    if isinstance(fields, dict) and isinstance(fields.get("model"), dict):
        return fields["model"], fields.get("task")
    return fields, fields


def setting(fields: Fields, name: str, default: Value) -> Value:
    """A field of the configuration, or the default where it is absent or null.

    Raises:
      InputError: it is of another type than the default, such as a reference that was never
        resolved.
    """
    value, kind = fields.get(name), type(default)
    if value is None:
        return default
    # True is no number of layers, but 8.0 is as good as 8.
    if kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, kind) or type(value) is not kind:
        shown = "an object" if isinstance(value, (StandIn, np.ndarray)) else repr(value)
        raise InputError(f"the configuration's {name} is {shown}; wanted {kind.__name__}")
    return value


def refuse_other_settings(model: Fields, task: Fields) -> None:
    """Raises an InputError if the settings are those of a model that we cannot hold."""
    kind = setting(model, "_name", "") or setting(model, "arch", "hubert")
    if not kind.startswith("hubert"):
        raise InputError(
            f"the model is {kind!r}; only 'hubert' models can be converted, as others compute "
            "something else"
        )
    values = {name: setting(model, name, only) for name, only in ONLY.items()}
    problems = [
        f"{name} is {value!r}, where only {ONLY[name]!r} can be represented"
        for name, value in values.items()
        if value != ONLY[name]
    ]
    rate = setting(task, "sample_rate", SAMPLE_RATE)
    if rate != SAMPLE_RATE:
        problems.append(f"sample_rate is {rate}; HuBERT needs {SAMPLE_RATE}")
    if problems:
        raise InputError(f"not a HuBERT that daisy_jax can hold: {'; '.join(problems)}")


def make_config(model: Fields, task: Fields) -> tuple[HubertConfig, str]:
    """The architecture, and a note on the input normalisation."""
    mode = setting(model, "extractor_mode", "default")
    if mode not in NORMS:
        raise InputError(f"extractor_mode is {mode!r}; wanted 'default' or 'layer_norm'")
    text = setting(model, "conv_feature_layers", CONV_LAYERS)
    layers = _conv_layers(text)
    channels = {channels for channels, _, _ in layers}
    windows = [(kernel, stride) for _, kernel, stride in layers]
    if len(channels) != 1 or windows != list(zip(CONV_KERNELS, CONV_STRIDES, strict=True)):
        raise InputError(
            f"conv_feature_layers is {text!r}; only HuBERT's kernels and strides with one number "
            "of channels can be represented"
        )
    norm = NORMS[mode]
    normalize = setting(task, "normalize", norm == "layer")
    reason = (
        f"assumed from the {norm} norm of the front end, as the configuration has no task.normalize"
        if task.get("normalize") is None
        else "as task.normalize says"
    )
    base = HubertConfig.base()
    config = dataclasses.replace(
        base,
        conv_dim=channels.pop(),
        conv_norm=norm,
        normalize_input=normalize,
        **{ours: setting(model, name, getattr(base, ours)) for name, ours in FIELDS.items()},
    )
    return config, f"input normalisation: {'on' if normalize else 'off'}, {reason}"


def _conv_layers(text: str) -> list[tuple[int, ...]]:
    """Channels, kernel and stride of each convolution, from a sum of lists as fairseq writes it."""
    layers: list[tuple[int, ...]] = []
    for term in re.sub(r"\s", "", text).split("+"):
        match = CONV_TERM.fullmatch(term)
        if not match:
            raise InputError(
                f"conv_feature_layers is {text!r}; wanted a sum of lists like '[(512,3,2)] * 4'"
            )
        triples = re.findall(r"\((\d+),(\d+),(\d+)\)", match[1])
        layers += [tuple(map(int, triple)) for triple in triples] * int(match[2] or 1)
    return layers
