"""Reads checkpoints of fairseq, of s3prl and of the DAISY authors.

They name tensors alike and carry their configuration. fairseq's have HuBERT's own prediction head,
as have s3prl's, which are made from them; the authors' have branches in its place.

Sources: the checkpoints of fairseq's `HubertModel` and `HubertCtc`, s3prl's `upstream/hubert`, and
`upstream/ee_hubert` of the authors' fork.
"""

import dataclasses
import pathlib
import re
from typing import Any, Literal, NamedTuple

import numpy as np

from daisy_jax.audio import CONV_KERNELS, CONV_STRIDES, SAMPLE_RATE
from daisy_jax.config import HubertConfig
from daisy_jax.conversions.rules import Rule, Source, Transform, one_way
from daisy_jax.conversions.trunk import (
    FAIRSEQ,
    find_prefix,
    mask_embedding_note,
    refuse_other_models,
    trunk_rules,
)
from daisy_jax.conversions.weight_files import check_tensors
from daisy_jax.errors import InputError

PREFIXES = ("", "w2v_encoder.w2v_model.")  # the second in models fine-tuned with CTC
SIZES = {
    "encoder_layers": ("num_layers", 12),
    "encoder_embed_dim": ("dim", 768),
    "encoder_ffn_embed_dim": ("ffn_dim", 3072),
    "encoder_attention_heads": ("num_heads", 12),
    "layer_norm_first": ("norm_first", False),
    "conv_bias": ("conv_bias", False),
    "conv_pos": ("pos_conv_kernel", 128),
    "conv_pos_groups": ("pos_conv_groups", 16),
}
"""Fields of fairseq's HubertConfig, what we call them, and what they are if left out."""
CONV_LAYERS = "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2"
CONV_TERM = re.compile(r"\[((?:\(\d+,\d+,\d+\),?)+)\](?:\*(\d{1,2}))?")
NORMS: dict[str, Literal["group", "layer"]] = {"default": "group", "layer_norm": "layer"}
ONLY = {
    "activation_fn": "gelu",
    "layer_type": "transformer",
    "conv_pos_batch_norm": False,
    "pos_conv_depth": 1,
}
"""The one value of each that a HuBERT of ours can have; it is fairseq's default, too."""
SPECIALS = ["<s>", "<pad>", "</s>", "<unk>"]
"""What a fairseq dictionary holds in front of the clusters; never a target, so never a label."""
LABEL_EMBEDDINGS = ("label_embs_concat", "label_embs")  # the second in older files
TAPS = {"before-norm": "ffn", "after-norm": "block"}


class Classifiers(NamedTuple):
    """What a checkpoint has beside its trunk."""

    fields: dict[str, Any]
    """Of our config."""
    rules: list[Rule]
    extras: tuple[str, ...]
    notes: tuple[str, ...]


def recognizes(content: Any) -> bool:
    """Whether a file's content is a checkpoint of one of these."""
    if not isinstance(content, dict):
        return False
    has_config = bool(content.get("cfg") or content.get("args"))
    return {"model_cfg", "model_weight"} <= content.keys() or ("model" in content and has_config)


def read(path: pathlib.Path, content: dict[str, Any]) -> Source:
    """Makes a source out of a file's content.

    Raises:
      InputError: no HuBERT, or one that we cannot represent.
    """
    s3prl = "model_weight" in content
    tensors = check_tensors(path, content["model_weight" if s3prl else "model"])
    refuse_other_models(tensors)
    prefix = find_prefix(tensors, FAIRSEQ.feature_projection + ".weight", PREFIXES) or ""
    model, task = _settings(content)
    _refuse_other_settings(model, task)
    if prefix + "final_proj.0.weight" in tensors:
        format = "the DAISY authors' checkpoint"
        classifiers = _branches(model, tensors, prefix)
    else:
        format = "s3prl checkpoint" if s3prl else "fairseq checkpoint"
        classifiers = _head(model, tensors, prefix, _dictionaries(content))
    config = dataclasses.replace(_config(model, task), **classifiers.fields)
    mask_embedding = prefix + "mask_emb"
    return Source(
        format=f"{format}, fine-tuned" if prefix else format,
        config=config,
        tensors=tensors,
        rules=[
            *trunk_rules(config, FAIRSEQ, tensors, mask_embedding, prefix),
            *classifiers.rules,
        ],
        extras=("w2v_encoder.proj.", *classifiers.extras),
        files=(path,),
        notes=(
            *classifiers.notes,
            f"input normalisation: {'on' if config.normalize_input else 'off'}, as task.normalize "
            "says",
            *mask_embedding_note(mask_embedding, tensors),
        ),
    )


def _settings(content: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fields of model and task, which older files keep in one namespace."""
    if "model_cfg" in content:
        model, task = content["model_cfg"], content.get("task_cfg") or {}
    elif content.get("cfg"):
        model, task = _model_and_task(content["cfg"])
    else:
        model, task = _model_and_task(content["args"])
    if isinstance(model, dict) and model.get("w2v_args"):
        model, task = _model_and_task(model["w2v_args"])  # pretraining's, beside fine-tuning's
    if not isinstance(model, dict) or not isinstance(task, dict):
        raise InputError("its configuration is no table of fields, so the model is unknown")
    return model, task


def _model_and_task(fields: Any) -> tuple[Any, Any]:
    if isinstance(fields, dict) and isinstance(fields.get("model"), dict):
        return fields["model"], fields.get("task") or {}
    return fields, fields


def _refuse_other_settings(model: dict[str, Any], task: dict[str, Any]) -> None:
    kind = model.get("_name") or model.get("arch") or "hubert"
    if not str(kind).startswith("hubert"):
        raise InputError(
            f"the model is {kind!r}; only 'hubert' models can be converted, as others compute "
            "something else"
        )
    problems = [
        f"{name} is {model[name]!r}, where only {only!r} can be represented"
        for name, only in ONLY.items()
        if model.get(name) not in (None, only)
    ]
    if task.get("sample_rate") not in (None, SAMPLE_RATE):
        problems.append(f"sample_rate is {task['sample_rate']!r}; HuBERT needs {SAMPLE_RATE}")
    if problems:
        raise InputError(f"not a HuBERT that daisy_jax can hold: {'; '.join(problems)}")


def _config(model: dict[str, Any], task: dict[str, Any]) -> HubertConfig:
    mode = model.get("extractor_mode") or "default"
    if mode not in NORMS:
        raise InputError(f"extractor_mode is {mode!r}; wanted 'default' or 'layer_norm'")
    layers = _conv_layers(model.get("conv_feature_layers") or CONV_LAYERS)
    channels = {channels for channels, _, _ in layers}
    windows = [(kernel, stride) for _, kernel, stride in layers]
    if len(channels) != 1 or windows != list(zip(CONV_KERNELS, CONV_STRIDES, strict=True)):
        raise InputError(
            f"conv_feature_layers is {model['conv_feature_layers']!r}; only HuBERT's kernels and "
            "strides with one number of channels can be represented"
        )
    fields = {
        ours: default if model.get(theirs) is None else model[theirs]
        for theirs, (ours, default) in SIZES.items()
    }
    return HubertConfig(
        conv_dim=channels.pop(),
        conv_norm=NORMS[mode],
        normalize_input=bool(task.get("normalize")),
        **fields,
    )


def _conv_layers(text: Any) -> list[tuple[int, ...]]:
    """Channels, kernel and stride of each convolution, from a sum of lists as fairseq writes it."""
    layers: list[tuple[int, ...]] = []
    for term in re.sub(r"\s", "", str(text)).split("+"):
        match = CONV_TERM.fullmatch(term)
        if not match:
            raise InputError(
                f"conv_feature_layers is {text!r}; wanted a sum of lists like '[(512,3,2)] * 4'"
            )
        triples = re.findall(r"\((\d+),(\d+),(\d+)\)", match[1])
        layers += [tuple(map(int, triple)) for triple in triples] * int(match[2] or 1)
    return layers


def _dictionaries(content: dict[str, Any]) -> list[list[str]]:
    """The symbols of each label dictionary; empty if the file does not tell."""
    symbols = content.get("dictionaries_symbols")
    if not symbols:
        state = content.get("task_state")
        dictionaries = state.get("dictionaries") if isinstance(state, dict) else None
        symbols = [d.get("symbols") for d in dictionaries or [] if isinstance(d, dict)]
    return [list(map(str, names)) for names in symbols if isinstance(names, list)]


def _head(
    model: dict[str, Any],
    tensors: dict[str, np.ndarray],
    prefix: str,
    dictionaries: list[list[str]],
) -> Classifiers:
    """HuBERT's own prediction head; with several label dictionaries, the first one's."""
    embeddings = [prefix + name for name in LABEL_EMBEDDINGS if prefix + name in tensors]
    projection = tensors.get(prefix + "final_proj.weight")
    if not embeddings or projection is None:
        # Fine-tuning drops the projection, not always the embeddings, which are useless alone.
        beginnings = (*LABEL_EMBEDDINGS, "final_proj.", "target_glu.")
        return Classifiers({}, [], tuple(prefix + name for name in beginnings), ())
    table = tensors[embeddings[0]]
    for name, tensor in ((embeddings[0], table), (prefix + "final_proj.weight", projection)):
        if tensor.ndim != 2:
            raise InputError(f"{name} has the shape {tensor.shape}; wanted two axes")
    rows, head_dim = table.shape
    sizes = [len(symbols) for symbols in dictionaries] or [rows]
    if sum(sizes) != rows or any(names[:4] != SPECIALS for names in dictionaries) or sizes[0] < 5:
        raise InputError(
            f"{embeddings[0]} has {rows} rows, which are not those of the label dictionaries "
            f"(sizes {sizes}, each with {', '.join(SPECIALS)} in front)"
        )
    if len(projection) not in (head_dim, head_dim * len(sizes)):
        raise InputError(
            f"{prefix}final_proj.weight has {len(projection)} rows, which do not match the "
            f"{head_dim} columns of {embeddings[0]}"
        )
    notes = []
    if len(sizes) > 1:
        notes.append(f"head: the first of {len(sizes)} label dictionaries")
    temperature = model.get("logit_temp")
    if temperature not in (None, 0.1):
        notes.append(f"head: logit_temp was {temperature}; scores are over 0.1, labels the same")
    glu = prefix + "target_glu.0"
    table_sources = (embeddings[0], f"{glu}.weight", f"{glu}.bias")
    clusters = sizes[0] - len(SPECIALS)
    first = _first_rows(len(projection), head_dim)
    rules = [
        Rule("head.projection.kernel", (prefix + "final_proj.weight",), first),
        Rule("head.projection.bias", (prefix + "final_proj.bias",), first),
        Rule(
            "head.label_embeddings",
            table_sources if f"{glu}.weight" in tensors else table_sources[:1],
            _label_rows(rows, clusters),
        ),
    ]
    return Classifiers({"num_clusters": clusters, "head_dim": head_dim}, rules, (), tuple(notes))


def _first_rows(rows: int, keep: int) -> Transform:
    """The first rows of a linear layer with `rows` outputs: those of the first dictionary."""
    return Transform(
        lambda shape, count: [(rows, *shape[:-1])], lambda source: source[:keep].T, one_way
    )


def _label_rows(rows: int, keep: int) -> Transform:
    """Label embeddings without those of the special symbols; through the GLU where there is one."""

    def shapes(shape: tuple[int, ...], count: int) -> list[tuple[int, ...]]:
        dim = shape[1]
        return [(rows, dim), (2 * dim, dim), (2 * dim,)][:count]

    def embeddings(table: np.ndarray, *glu: np.ndarray) -> np.ndarray:
        table = table[len(SPECIALS) : len(SPECIALS) + keep]
        if not glu:
            return table
        weight, bias = glu
        values, gates = np.split(table @ weight.T + bias, 2, axis=1)
        return values / (1 + np.exp(-gates))

    return Transform(shapes, embeddings, one_way)


def _branches(model: dict[str, Any], tensors: dict[str, np.ndarray], prefix: str) -> Classifiers:
    """The authors' branches, which look where `cls_pred_position` says."""
    position = model.get("cls_pred_position") or "before-norm"
    if position not in TAPS:
        raise InputError(f"cls_pred_position is {position!r}; wanted one of {', '.join(TAPS)}")
    classes = len(tensors[prefix + "final_proj.0.weight"])
    rules = [
        Rule("branches.kernel", (prefix + "final_proj.{}.weight",)),
        Rule("branches.bias", (prefix + "final_proj.{}.bias",)),
    ]
    fields = {"num_classes": classes, "tap": TAPS[position], "item0": "projection"}
    note = (
        f"branches look at {'feed-forward' if fields['tap'] == 'ffn' else 'block'} outputs, and "
        "item 0 of the weighted sum is the projected front-end features, as in the authors' code "
        f"(cls_pred_position {position})"
    )
    return Classifiers(fields, rules, (), (note,))
