"""HuBERT's forward pass in plain PyTorch on a checkpoint's own tensors, to verify conversions.

Written from the architecture alone (fairseq's HubertModel), for one unpadded utterance. It shares
neither code nor tables of names with the conversion.
"""

import re
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional

STRIDES = (5, 2, 2, 2, 2, 2, 2)
EPSILON = 1e-5
TO_FAIRSEQ = {
    r"^w2v_encoder\.w2v_model\.": "",
    r"^(model\.)?(wav2vec2\.|logit_generator\.|mask_generator\.)?": "",
    r"^hubert\.": "",
    r"^(encoder\.)?feature_projection\.layer_norm": "layer_norm",
    r"^(encoder\.)?feature_projection\.projection": "post_extract_proj",
    r"^encoder\.transformer\.": "encoder.",
    r"pos_conv_embed\.conv": "pos_conv.0",
    r"parametrizations\.weight\.original0": "weight_g",
    r"parametrizations\.weight\.original1": "weight_v",
    r"(\.layers\.\d+)\.attention\.": r"\1.self_attn.",
    r"(\.layers\.\d+)\.layer_norm\.": r"\1.self_attn_layer_norm.",
    r"feed_forward\.intermediate_dense": "fc1",
    r"feed_forward\.output_dense": "fc2",
    r"(conv_layers\.\d)\.conv\.": r"\1.0.",
    r"(conv_layers\.\d)\.(layer_norm|2\.1|2)\.": r"\1.norm.",
    r"^label_embs$": "label_embs_concat",
}


class States(NamedTuple):
    """What the layers make of one utterance, float64."""

    hidden: list[torch.Tensor]
    """[frames, dim] each: the first layer's input, then every block's output."""
    ffn: list[torch.Tensor]
    """[frames, dim] each: the feed-forward networks' outputs, before the residual sum."""
    final: torch.Tensor
    """[frames, dim]: the last block's output, behind the final LayerNorm of pre-LN models."""


class TorchHubert:
    """A checkpoint's tensors, by whatever names they have, and how to run them."""

    def __init__(self, tensors: dict[str, np.ndarray], num_heads: int, norm_first: bool):
        self.num_heads, self.norm_first = num_heads, norm_first
        self.tensors = {
            _fairseq_name(name): torch.from_numpy(np.asarray(array, np.float64))
            for name, array in tensors.items()
        }

    def has(self, name: str) -> bool:
        """Whether the checkpoint has a tensor, by fairseq's name."""
        return name in self.tensors

    def _affine(self, module: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self.tensors[module + ".weight"], self.tensors.get(module + ".bias")

    def _linear(self, x: torch.Tensor, module: str) -> torch.Tensor:
        return functional.linear(x, *self._affine(module))

    def _norm(self, x: torch.Tensor, module: str) -> torch.Tensor:
        return functional.layer_norm(x, x.shape[-1:], *self._affine(module), EPSILON)

    def run(self, waveform: np.ndarray, normalize: bool) -> States:
        """All layers on a waveform [samples], 16 kHz; `normalize`: zero mean, unit variance."""
        x = torch.from_numpy(np.asarray(waveform, np.float64))
        if normalize:
            x = functional.layer_norm(x, x.shape, eps=EPSILON)
        x = x[None, None]
        for i, stride in enumerate(STRIDES):
            module = f"feature_extractor.conv_layers.{i}"
            x = functional.conv1d(x, *self._affine(f"{module}.0"), stride=stride)
            if self.has("feature_extractor.conv_layers.1.norm.weight"):
                x = self._norm(x.mT, f"{module}.norm").mT
            elif i == 0:
                x = functional.group_norm(x, x.shape[1], *self._affine(f"{module}.norm"), EPSILON)
            x = functional.gelu(x)
        x = self._linear(self._norm(x.mT, "layer_norm"), "post_extract_proj")
        x = x + self._positions(x)
        if not self.norm_first:
            x = self._norm(x, "encoder.layer_norm")
        hidden, ffn = [x[0]], []
        while self.has(f"encoder.layers.{len(ffn)}.fc1.weight"):
            x, fed_forward = self._layer(x, f"encoder.layers.{len(ffn)}")
            hidden.append(x[0])
            ffn.append(fed_forward[0])
        final = self._norm(x, "encoder.layer_norm") if self.norm_first else x
        return States(hidden, ffn, final[0])

    def _positions(self, x: torch.Tensor) -> torch.Tensor:
        direction = self.tensors["encoder.pos_conv.0.weight_v"]
        norm = direction.square().sum(dim=(0, 1), keepdim=True).sqrt()
        weight = self.tensors["encoder.pos_conv.0.weight_g"] * direction / norm
        taps, groups = weight.shape[2], weight.shape[0] // weight.shape[1]
        bias = self.tensors["encoder.pos_conv.0.bias"]
        y = functional.conv1d(x.mT, weight, bias, padding=taps // 2, groups=groups)
        return functional.gelu(y[..., : x.shape[1]]).mT

    def _layer(self, x: torch.Tensor, module: str) -> tuple[torch.Tensor, torch.Tensor]:
        if self.norm_first:
            x = x + self._attention(self._norm(x, f"{module}.self_attn_layer_norm"), module)
            ffn = self._ffn(self._norm(x, f"{module}.final_layer_norm"), module)
            return x + ffn, ffn
        x = self._norm(x + self._attention(x, module), f"{module}.self_attn_layer_norm")
        ffn = self._ffn(x, module)
        return self._norm(x + ffn, f"{module}.final_layer_norm"), ffn

    def _attention(self, x: torch.Tensor, module: str) -> torch.Tensor:
        query, key, value = (
            self._linear(x, f"{module}.self_attn.{part}_proj")
            .unflatten(-1, (self.num_heads, -1))
            .transpose(1, 2)
            for part in "qkv"
        )
        attended = functional.scaled_dot_product_attention(query, key, value)
        return self._linear(attended.transpose(1, 2).flatten(2), f"{module}.self_attn.out_proj")

    def _ffn(self, x: torch.Tensor, module: str) -> torch.Tensor:
        return self._linear(functional.gelu(self._linear(x, f"{module}.fc1")), f"{module}.fc2")

    def label_scores(self, final: torch.Tensor, clusters: int, specials: int) -> torch.Tensor:
        """Cosine of each frame with the first dictionary's label embeddings, [frames, clusters]."""
        name = "label_embs_concat" if self.has("label_embs_concat") else "label_embeddings"
        table = self.tensors[name]
        if self.has("target_glu.0.weight"):
            table = functional.glu(self._linear(table, "target_glu.0"))
        projected = self._linear(final, "final_proj")[:, : table.shape[1]]
        wanted = table[specials : specials + clusters]
        return functional.cosine_similarity(projected[:, None], wanted[None], dim=-1)

    def entropies(self, tapped: list[torch.Tensor]) -> list[float]:
        """Mean entropy of each of the authors' branches on its layer's frames, nats."""
        values = []
        for k, frames in enumerate(tapped):
            log_probs = self._linear(frames, f"final_proj.{k}").log_softmax(dim=-1)
            values.append(float(-(log_probs.exp() * log_probs).sum(dim=-1).mean()))
        return values


def _fairseq_name(name: str) -> str:
    for pattern, replacement in TO_FAIRSEQ.items():
        name = re.sub(pattern, replacement, name)
    return name
