"""Reads checkpoints of fairseq, of s3prl and of the DAISY authors.

They name tensors alike and carry their configuration. fairseq's have HuBERT's own prediction head,
as have s3prl's, which are made from them; the authors' have branches in its place.

Sources: the checkpoints of fairseq's `HubertModel` and `HubertCtc`, s3prl's `upstream/hubert`, and
`upstream/ee_hubert` of the authors' fork.
"""

import dataclasses
import pathlib
from typing import NamedTuple, TypeGuard

import numpy as np
from jaxtyping import Float32, Int

from daisy_jax.conversions.fairseq_config import (
    Fields,
    find_settings,
    make_config,
    refuse_other_settings,
    setting,
)
from daisy_jax.conversions.rules import Rule, Source, Transform
from daisy_jax.conversions.trunk import (
    FAIRSEQ,
    INSIDE_FAIRSEQ,
    find_prefix,
    mask_embedding_note,
    refuse_other_models,
    trunk_rules,
)
from daisy_jax.conversions.unwrapping import without_prefix
from daisy_jax.conversions.weight_files import check_tensors
from daisy_jax.errors import InputError

PREFIXES = ("", INSIDE_FAIRSEQ)
SPECIALS = ["<s>", "<pad>", "</s>", "<unk>"]
"""What a fairseq dictionary holds in front of the clusters; never a target, so never a label."""
LABEL_EMBEDDINGS = ("label_embs_concat", "label_embs")  # the second in older files
TAPS = {"before-norm": "ffn", "after-norm": "block"}


class Classifiers(NamedTuple):
    """What a checkpoint has beside its trunk."""

    fields: dict[str, str | int]
    """Of our config."""
    rules: list[Rule]
    extras: tuple[str, ...]
    notes: tuple[str, ...]
    symbols: tuple[str, ...] = ()
    """Names of the clusters, in the order of the checkpoint's rows."""


def recognizes(content: object) -> TypeGuard[Fields]:
    """Whether a file's content is a checkpoint of one of these."""
    if not isinstance(content, dict):
        return False
    has_config = any(content.get(name) is not None for name in ("cfg", "args"))
    return {"model_cfg", "model_weight"} <= content.keys() or ("model" in content and has_config)


def read(path: pathlib.Path, content: Fields) -> Source:
    """Makes a source out of a file's content.

    Raises:
      InputError: no HuBERT, or one that we cannot represent.
    """
    s3prl = "model_weight" in content
    weights = content["model_weight" if s3prl else "model"]
    weights, notes = without_prefix(weights) if isinstance(weights, dict) else (weights, ())
    tensors = check_tensors(path, weights)
    refuse_other_models(tensors)
    prefix = find_prefix(tensors, FAIRSEQ["feature_projection"] + ".weight", PREFIXES) or ""
    model, task = find_settings(content)
    refuse_other_settings(model, task)
    config, note = make_config(model, task)
    if prefix + "final_proj.0.weight" in tensors:
        format = "the DAISY authors' checkpoint"
        classifiers = _branches(model, tensors, prefix)
    else:
        format = "s3prl checkpoint" if s3prl else "fairseq checkpoint"
        classifiers = _head(model, task, tensors, prefix, _dictionaries(content))
    config = dataclasses.replace(config, **classifiers.fields)
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
        symbols=classifiers.symbols,
        notes=(
            *notes,
            *classifiers.notes,
            note,
            *mask_embedding_note(mask_embedding, tensors),
        ),
    )


def _dictionaries(content: Fields) -> list[list[str]]:
    """The symbols of each label dictionary; empty if the file does not tell."""
    symbols = content.get("dictionaries_symbols")
    if not isinstance(symbols, list) or not symbols:
        state = content.get("task_state")
        entries = state.get("dictionaries") if isinstance(state, dict) else None
        entries = entries if isinstance(entries, list) else []
        symbols = [entry.get("symbols") for entry in entries if isinstance(entry, dict)]
    readable: list[list[str]] = [
        names
        for names in symbols
        if isinstance(names, list) and all(isinstance(name, str) for name in names)
    ]
    if len(readable) < len(symbols):
        raise InputError(
            "its label dictionaries are unreadable, so that it is unknown which row of the label "
            "embeddings is which cluster; give the original checkpoint"
        )
    return readable


def _head(
    model: Fields,
    task: Fields,
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
    labels = task.get("labels")
    if not dictionaries and isinstance(labels, list) and len(labels) > 1:
        raise InputError(
            f"{embeddings[0]} belongs to {len(labels)} label dictionaries, whose sizes the file "
            "does not tell; give the original checkpoint, which has them in task_state"
        )
    sizes = [len(symbols) for symbols in dictionaries] or [rows]
    specials = len(SPECIALS)
    usual = all(names[:specials] == SPECIALS for names in dictionaries)
    if sum(sizes) != rows or not usual or sizes[0] <= specials:
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
    symbols = dictionaries[0][specials:] if dictionaries else [str(n) for n in range(rows)]
    order, note = _row_order(symbols[: sizes[0] - specials])
    notes += note if dictionaries else ["head: no dictionary is there, so that labels are rows"]
    if len(sizes) > 1:
        notes.append(f"head: the first of {len(sizes)} label dictionaries")
    temperature = model.get("logit_temp")
    if isinstance(temperature, (int, float)) and temperature != 0.1:
        notes.append(f"head: logit_temp was {temperature}; scores are over 0.1, labels the same")
    glu = prefix + "target_glu.0"
    table_sources = (embeddings[0], f"{glu}.weight", f"{glu}.bias")
    clusters = sizes[0] - specials
    first = _first_rows(len(projection), head_dim)
    rules = [
        Rule("head.projection.kernel", (prefix + "final_proj.weight",), first),
        Rule("head.projection.bias", (prefix + "final_proj.bias",), first),
        Rule(
            "head.label_embeddings",
            table_sources if f"{glu}.weight" in tensors else table_sources[:1],
            _label_rows(rows, order),
        ),
    ]
    fields = {"num_clusters": clusters, "head_dim": head_dim}
    return Classifiers(fields, rules, (), tuple(notes), tuple(symbols[:clusters]))


def _first_rows(rows: int, keep: int) -> Transform:
    """The first rows of a linear layer with `rows` outputs: those of the first dictionary."""
    return Transform(lambda shape, _: [(rows, *shape[:-1])], lambda source: source[:keep].T)


def _row_order(symbols: list[str]) -> tuple[Int[np.ndarray, " clusters"], list[str]]:
    """The dictionary's row of each cluster, and a note for the report if that is not plain.

    fairseq's dictionaries are in the order in which labels are most frequent, or in that of their
    text file. A symbol is the number that a .km file has for a cluster.
    """
    numbers = [int(symbol) for symbol in symbols if symbol.isdecimal() and symbol.isascii()]
    if sorted(numbers) != list(range(len(symbols))):
        odd = ", ".join(symbols[:3])
        return np.arange(len(symbols)), [
            f"head: label k is the dictionary's k-th symbol, as its symbols ({odd}, ...) are not "
            f"the numbers 0 to {len(symbols) - 1}"
        ]
    note = (
        "head: the dictionary is in another order than its numbers; label k is the symbol k, as in "
        ".km files"
    )
    return np.argsort(numbers), [] if numbers == sorted(numbers) else [note]


def _label_rows(rows: int, order: Int[np.ndarray, " clusters"]) -> Transform:
    """Label embeddings without those of the special symbols; through the GLU where there is one.

    Args:
      rows: how many there are, those of special symbols and of other dictionaries included.
      order: the row of each cluster, behind those of the special symbols.
    """

    def shapes(shape: tuple[int, ...], count: int) -> list[tuple[int, ...]]:
        dim = shape[1]
        return [(rows, dim), (2 * dim, dim), (2 * dim,)][:count]

    def embeddings(
        table: Float32[np.ndarray, "rows head_dim"], *glu: Float32[np.ndarray, "..."]
    ) -> Float32[np.ndarray, "clusters head_dim"]:
        table = table[len(SPECIALS) + order]
        if not glu:
            return table
        weight, bias = glu
        values, gates = np.split(table @ weight.T + bias, 2, axis=1)
        with np.errstate(over="ignore"):  # of a gate that is shut
            return values / (1 + np.exp(-gates))

    return Transform(shapes, embeddings)


def _branches(model: Fields, tensors: dict[str, np.ndarray], prefix: str) -> Classifiers:
    """The authors' branches, which look where `cls_pred_position` says."""
    position = setting(model, "cls_pred_position", "before-norm")
    if position not in TAPS:
        raise InputError(f"cls_pred_position is {position!r}; wanted one of {', '.join(TAPS)}")
    shape = tensors[prefix + "final_proj.0.weight"].shape
    if len(shape) != 2 or not shape[0]:
        raise InputError(
            f"{prefix}final_proj.0.weight has the shape {shape}; wanted [classes, dim]"
        )
    rules = [
        Rule("branches.kernel", (prefix + "final_proj.{}.weight",)),
        Rule("branches.bias", (prefix + "final_proj.{}.bias",)),
    ]
    fields = {"num_classes": shape[0], "tap": TAPS[position], "item0": "projection"}
    note = (
        f"branches look at {'feed-forward' if fields['tap'] == 'ffn' else 'block'} outputs, and "
        "item 0 of the weighted sum is the projected front-end features, as in the authors' code "
        f"(cls_pred_position {position})"
    )
    return Classifiers(fields, rules, (), (note,))
