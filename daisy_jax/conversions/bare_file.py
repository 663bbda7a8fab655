"""Reads state dicts that come without a configuration: torchaudio's, and other formats' lone files.

Sources: torchaudio's `pipelines.HUBERT_*` files, and `HuBERTPretrainModel` as its own recipe saves
it, which is HuBERT with a prediction head.
"""

import dataclasses
import pathlib

import numpy as np

from daisy_jax.conversions import transformers_folder
from daisy_jax.conversions.rules import UNCHANGED, Rule, Source
from daisy_jax.conversions.trunk import (
    FAIRSEQ,
    INSIDE_TORCHAUDIO,
    INSIDE_TRANSFORMERS,
    TORCHAUDIO,
    TRANSFORMERS,
    find_prefix,
    infer_config,
    mask_embedding_note,
    refuse_other_models,
    trunk_rules,
)
from daisy_jax.conversions.unwrapping import unwrap
from daisy_jax.conversions.weight_files import check_tensors
from daisy_jax.errors import InputError

LABELS = "logit_generator.label_embeddings"
MASK_EMBEDDING = "mask_generator.mask_embedding"


def read(path: pathlib.Path, content: object, num_heads: int) -> Source:
    """Makes a source out of tensors by name; their names tell the format.

    Args:
      path: of the file, beside which transformers' config.json may lie.
      content: of the file.
      num_heads: attention heads; 0: as HuBERT models of that width have.

    Raises:
      InputError: no HuBERT, or one that we cannot represent.
    """
    content, notes = unwrap(content)
    tensors = check_tensors(path, content)
    refuse_other_models(tensors)
    torchaudio, transformers, fairseq = (
        f"{paths['feature_projection']}.weight" for paths in (TORCHAUDIO, TRANSFORMERS, FAIRSEQ)
    )
    for ending, inside, reads in (
        (torchaudio, INSIDE_TORCHAUDIO, _torchaudio),
        (transformers, INSIDE_TRANSFORMERS, _transformers),
    ):
        prefix = find_prefix(tensors, ending, ("", inside))
        if prefix is not None:
            source = reads(path, tensors, prefix, num_heads)
            return source._replace(notes=(*notes, *source.notes))
    if fairseq in tensors:
        raise InputError(
            "a fairseq state dict without its configuration; give the whole checkpoint, which has "
            "'cfg' or 'args' beside 'model'"
        )
    some = ", ".join(sorted(tensors)[:3])
    raise InputError(
        f"no HuBERT: its tensors ({some}, ...) are not named as fairseq, s3prl, transformers or "
        "torchaudio name them"
    )


def _torchaudio(
    path: pathlib.Path, tensors: dict[str, np.ndarray], prefix: str, num_heads: int
) -> Source:
    config, notes = infer_config(tensors, TORCHAUDIO, prefix, num_heads)
    outer = prefix.removesuffix(INSIDE_TORCHAUDIO)
    mask_embedding = outer + MASK_EMBEDDING
    rules = [*trunk_rules(config, TORCHAUDIO, tensors, mask_embedding, prefix)]
    labels = tensors.get(outer + LABELS)
    if labels is not None:
        if labels.ndim != 2 or not labels.size:
            raise InputError(
                f"{outer + LABELS} has the shape {labels.shape}; wanted [clusters, head_dim]"
            )
        config = dataclasses.replace(config, num_clusters=len(labels), head_dim=labels.shape[1])
        projection = outer + "logit_generator.final_proj"
        rules += [
            Rule("head.projection.kernel", (f"{projection}.weight",)),
            Rule("head.projection.bias", (f"{projection}.bias",)),
            Rule("head.label_embeddings", (outer + LABELS,), UNCHANGED),
        ]
    return Source(
        format="torchaudio state dict" if labels is None else "torchaudio pretraining checkpoint",
        config=config,
        tensors=tensors,
        rules=rules,
        extras=(f"{prefix}aux.",),
        files=(path,),
        notes=(*notes, *mask_embedding_note(mask_embedding, tensors)),
    )


def _transformers(
    path: pathlib.Path, tensors: dict[str, np.ndarray], prefix: str, num_heads: int
) -> Source:
    if transformers_folder.describes(path.parent):
        config, notes = transformers_folder.read_config(path.parent)
    else:
        config, notes = infer_config(tensors, TRANSFORMERS, prefix, num_heads)
    return transformers_folder.make_source("transformers file", config, notes, tensors, (path,))
