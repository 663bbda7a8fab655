"""One small HuBERT in every format that checkpoints come in, as plain content of numpy arrays.

The weights, and what PyTorch computes with them, lie in tests/data (made by make_references.py), so
that conversions are checked where there is no torch, too.
"""

import dataclasses
import pathlib
import re
from typing import Any

import numpy as np

DATA = pathlib.Path(__file__).parent / "data"
KINDS = ("base", "large", "large-bias")  # the last: Large with biases in the front end
SIZES = {"layers": 2, "dim": 16, "ffn": 24, "heads": 2, "conv": 8, "taps": 8, "groups": 4}
CLUSTERS, HEAD_DIM = 7, 6
SPECIALS = ["<s>", "<pad>", "</s>", "<unk>"]

TO_FAIRSEQ = [
    (r"conv_layers\.(\d)\.conv\.", r"conv_layers.\1.0."),
    (r"feature_projection\.layer_norm", "layer_norm"),
    (r"feature_projection\.projection", "post_extract_proj"),
    (r"masked_spec_embed", "mask_emb"),
    (r"pos_conv_embed\.conv\.parametrizations\.weight\.original0", "pos_conv.0.weight_g"),
    (r"pos_conv_embed\.conv\.parametrizations\.weight\.original1", "pos_conv.0.weight_v"),
    (r"pos_conv_embed\.conv", "pos_conv.0"),
    (r"(layers\.\d+)\.attention\.", r"\1.self_attn."),
    (r"(layers\.\d+)\.layer_norm", r"\1.self_attn_layer_norm"),
    (r"feed_forward\.intermediate_dense", "fc1"),
    (r"feed_forward\.output_dense", "fc2"),
]
TO_TORCHAUDIO = [
    (r"^feature_projection", "encoder.feature_projection"),
    (r"^encoder\.(pos_conv_embed|layers|layer_norm)", r"encoder.transformer.\1"),
]


@dataclasses.dataclass(frozen=True)
class Case:
    """A model and what PyTorch makes of one waveform, unpadded."""

    kind: str
    tensors: dict[str, np.ndarray]
    """The trunk, as transformers names it."""
    extra: dict[str, np.ndarray]
    """head: final_proj.{weight,bias} and label_embs; branches: branch.{k}.{weight,bias}."""
    waveform: np.ndarray
    hidden_states: np.ndarray
    """[L+1, frames, dim], without the final LayerNorm."""
    labels: np.ndarray
    """[frames]."""
    entropy: np.ndarray
    """[2, L]: of branches on block outputs and on feed-forward outputs."""

    @property
    def large(self) -> bool:
        return self.kind != "base"

    def part(self, beginning: str) -> dict[str, np.ndarray]:
        return {name: a for name, a in self.extra.items() if name.startswith(beginning)}


def load_case(kind: str) -> Case:
    with np.load(DATA / f"{kind}.npz") as file:
        arrays = dict(file)
    parts: dict[str, dict[str, np.ndarray]] = {"tensors": {}, "extra": {}}
    for part, content in parts.items():
        for name in [name for name in arrays if name.startswith(part + "/")]:
            content[name.removeprefix(part + "/")] = arrays.pop(name)
    return Case(kind, **parts, **arrays)


def renamed(tensors: dict[str, Any], table: list[tuple[str, str]], prefix: str = "") -> dict:
    names = {}
    for name, tensor in tensors.items():
        new = name
        for pattern, replacement in table:
            new = re.sub(pattern, replacement, new)
        names[prefix + new] = tensor
    return names


def fairseq_tensors(case: Case, prefix: str = "") -> dict[str, np.ndarray]:
    norm = r"\1.2.1" if case.large else r"\1.2"
    return renamed(case.tensors, [(r"(conv_layers\.\d)\.layer_norm", norm), *TO_FAIRSEQ], prefix)


def fairseq_head(case: Case, embeddings: str = "label_embs_concat") -> dict[str, np.ndarray]:
    table = case.extra["label_embs"]
    # Rows of the special symbols that would win every argmax if they were taken for labels.
    specials = np.repeat(table.sum(axis=0, keepdims=True), 4, axis=0)
    return case.part("final_proj.") | {embeddings: np.concatenate([specials, table])}


def fairseq_settings(case: Case) -> tuple[dict[str, Any], dict[str, Any]]:
    conv = SIZES["conv"]
    model = {
        "_name": "hubert",
        "extractor_mode": "layer_norm" if case.large else "default",
        "encoder_layers": SIZES["layers"],
        "encoder_embed_dim": SIZES["dim"],
        "encoder_ffn_embed_dim": SIZES["ffn"],
        "encoder_attention_heads": SIZES["heads"],
        "activation_fn": "gelu",
        "layer_norm_first": case.large,
        "conv_feature_layers": f"[({conv},10,5)] + [({conv},3,2)] * 4 + [({conv},2,2)] * 2",
        "conv_bias": case.kind == "large-bias",
        "conv_pos": SIZES["taps"],
        "conv_pos_groups": SIZES["groups"],
        "final_dim": HEAD_DIM,
        "untie_final_proj": True,
        "logit_temp": 0.1,
    }
    return model, {"_name": "hubert_pretraining", "normalize": case.large, "sample_rate": 16000}


def symbols() -> list[str]:
    return [*SPECIALS, *map(str, range(CLUSTERS))]


def fairseq(case: Case) -> dict[str, Any]:
    model, task = fairseq_settings(case)
    return {
        "args": None,
        "cfg": {"model": model, "task": task, "common": {"fp16": True}},
        "model": fairseq_tensors(case) | fairseq_head(case),
        "optimizer_history": [],
        "task_state": {"dictionaries": [{"symbols": symbols(), "nspecial": 4}]},
        "extra_state": {"epoch": 1},
    }


def fairseq_old(case: Case) -> dict[str, Any]:
    model, task = fairseq_settings(case)
    tensors = fairseq_tensors(case) | fairseq_head(case, "label_embs")
    return {"args": model | task | {"_name": None, "arch": "hubert_base"}, "model": tensors}


def fairseq_finetuned(case: Case) -> dict[str, Any]:
    model, task = fairseq_settings(case)
    prefix = "w2v_encoder.w2v_model."
    tensors = fairseq_tensors(case, prefix) | {
        "w2v_encoder.proj.weight": np.ones((3, SIZES["dim"]), np.float32),
        "w2v_encoder.proj.bias": np.ones(3, np.float32),
        prefix + "label_embs_concat": fairseq_head(case)["label_embs_concat"],
    }
    outer = {"_name": "hubert_ctc", "w2v_args": {"model": model, "task": task}}
    return {"cfg": {"model": outer, "task": {"_name": "hubert_finetuning"}}, "model": tensors}


def s3prl(case: Case) -> dict[str, Any]:
    model, task = fairseq_settings(case)
    return {
        "task_cfg": task,
        "model_cfg": model,
        "model_weight": fairseq_tensors(case) | fairseq_head(case),
        "dictionaries_symbols": [symbols()],
    }


def daisy(case: Case, position: str | None = None) -> dict[str, Any]:
    model, task = fairseq_settings(case)
    branches = {n.replace("branch", "final_proj"): a for n, a in case.part("branch.").items()}
    return {
        "task_cfg": task,
        "model_cfg": model | ({"cls_pred_position": position} if position else {}),
        "model_weight": fairseq_tensors(case) | branches,
        "dictionaries_symbols": [symbols()],
    }


def torchaudio(case: Case, prefix: str = "") -> dict[str, np.ndarray]:
    trunk = {name: a for name, a in case.tensors.items() if name != "masked_spec_embed"}
    return renamed(trunk, TO_TORCHAUDIO, prefix)


def torchaudio_pretraining(case: Case) -> dict[str, np.ndarray]:
    head = {f"logit_generator.{name}": a for name, a in case.part("final_proj.").items()}
    return (
        torchaudio(case, "wav2vec2.")
        | head
        | {
            "logit_generator.label_embeddings": case.extra["label_embs"],
            "mask_generator.mask_embedding": case.tensors["masked_spec_embed"],
        }
    )


WITH_HEAD = {
    "fairseq": fairseq,
    "fairseq, old": fairseq_old,
    "s3prl": s3prl,
    "torchaudio pretraining": torchaudio_pretraining,
}
WITHOUT_HEAD = {
    "fairseq, fine-tuned": fairseq_finetuned,
    "torchaudio": torchaudio,
    "torchaudio, in a trainer's checkpoint": lambda case: {
        "state_dict": torchaudio(case, "model.wav2vec2."),
        "epoch": 1,
    },
    "transformers": lambda case: dict(case.tensors),
}
WITH_BRANCHES = {
    "DAISY": daisy,
    "DAISY, after-norm": lambda case: daisy(case, "after-norm"),
    "DAISY, before-norm": lambda case: daisy(case, "before-norm"),
}
ALL = WITH_HEAD | WITHOUT_HEAD | WITH_BRANCHES
"""What makes each format's content of a case."""


def to_tensors(content: Any) -> Any:
    """The content with torch's tensors in the place of numpy's arrays."""
    import torch

    if isinstance(content, np.ndarray):
        return torch.from_numpy(content.copy())
    if isinstance(content, dict):
        return {name: to_tensors(value) for name, value in content.items()}
    return content
