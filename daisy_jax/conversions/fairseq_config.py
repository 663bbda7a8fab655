"""What the configuration inside a fairseq or s3prl checkpoint says about the model.

Source: fairseq's `HubertConfig` and `HubertPretrainingConfig`.
"""

import re
from typing import Any, Literal

import numpy as np

from daisy_jax.audio import CONV_KERNELS, CONV_STRIDES, SAMPLE_RATE
from daisy_jax.conversions.torch_files import StandIn
from daisy_jax.errors import InputError
from daisy_jax.model.config import HubertConfig

SIZES = {
    "encoder_layers": ("num_layers", 12),
    "encoder_embed_dim": ("dim", 768),
    "encoder_ffn_embed_dim": ("ffn_dim", 3072),
    "encoder_attention_heads": ("num_heads", 12),
    "conv_pos": ("pos_conv_kernel", 128),
    "conv_pos_groups": ("pos_conv_groups", 16),
}
SWITCHES = {"layer_norm_first": "norm_first", "conv_bias": "conv_bias"}
"""Fields of fairseq's HubertConfig, what we call them, and sizes that are left out; switches are
off then."""
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


def find_settings(content: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fields of model and task, which older files keep in one namespace."""
    if "model_cfg" in content:
        model, task = content["model_cfg"], _present(content.get("task_cfg"))
    elif content.get("cfg") is not None:
        model, task = _model_and_task(content["cfg"])
    else:
        model, task = _model_and_task(content["args"])
    if isinstance(model, dict) and isinstance(model.get("w2v_args"), dict):
        model, task = _model_and_task(model["w2v_args"])  # pretraining's, beside fine-tuning's
    if not isinstance(model, dict) or not isinstance(task, dict):
        raise InputError("its configuration is no table of fields, so the model is unknown")
    return model, task


def _present(fields: Any) -> Any:
    return {} if fields is None else fields


def _model_and_task(fields: Any) -> tuple[Any, Any]:
    if isinstance(fields, dict) and isinstance(fields.get("model"), dict):
        return fields["model"], _present(fields.get("task"))
    return fields, fields


def setting(fields: dict[str, Any], name: str, kind: type, default: Any) -> Any:
    """A field of the configuration, or the default where it is absent or null.

    Raises:
      InputError: it is of another type, such as a reference that was never resolved.
    """
    value = fields.get(name)
    if value is None:
        return default
    # True is no number of layers, but 8.0 is as good as 8.
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if type(value) is not kind:
        shown = "an object" if isinstance(value, (StandIn, np.ndarray)) else repr(value)
        raise InputError(f"the configuration's {name} is {shown}; wanted {kind.__name__}")
    return value


def refuse_other_settings(model: dict[str, Any], task: dict[str, Any]) -> None:
    """Raises an InputError if the settings are those of a model that we cannot hold."""
    kind = setting(model, "_name", str, "") or setting(model, "arch", str, "hubert")
    if not kind.startswith("hubert"):
        raise InputError(
            f"the model is {kind!r}; only 'hubert' models can be converted, as others compute "
            "something else"
        )
    problems = [
        f"{name} is {setting(model, name, type(only), only)!r}, where only {only!r} can be "
        "represented"
        for name, only in ONLY.items()
        if setting(model, name, type(only), only) != only
    ]
    rate = setting(task, "sample_rate", int, SAMPLE_RATE)
    if rate != SAMPLE_RATE:
        problems.append(f"sample_rate is {rate}; HuBERT needs {SAMPLE_RATE}")
    if problems:
        raise InputError(f"not a HuBERT that daisy_jax can hold: {'; '.join(problems)}")


def make_config(model: dict[str, Any], task: dict[str, Any]) -> tuple[HubertConfig, str]:
    """The architecture, and a note on the input normalisation."""
    mode = setting(model, "extractor_mode", str, "default")
    if mode not in NORMS:
        raise InputError(f"extractor_mode is {mode!r}; wanted 'default' or 'layer_norm'")
    text = setting(model, "conv_feature_layers", str, CONV_LAYERS)
    layers = _conv_layers(text)
    channels = {channels for channels, _, _ in layers}
    windows = [(kernel, stride) for _, kernel, stride in layers]
    if len(channels) != 1 or windows != list(zip(CONV_KERNELS, CONV_STRIDES, strict=True)):
        raise InputError(
            f"conv_feature_layers is {text!r}; only HuBERT's kernels and strides with one number "
            "of channels can be represented"
        )
    norm = NORMS[mode]
    normalize = setting(task, "normalize", bool, norm == "layer")
    reason = (
        f"assumed from the {norm} norm of the front end, as the configuration has no task.normalize"
        if task.get("normalize") is None
        else "as task.normalize says"
    )
    config = HubertConfig(
        conv_dim=channels.pop(),
        conv_norm=norm,
        normalize_input=normalize,
        **{ours: setting(model, name, int, size) for name, (ours, size) in SIZES.items()},
        **{ours: setting(model, name, bool, False) for name, ours in SWITCHES.items()},
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
