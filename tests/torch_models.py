"""HuBERT models of transformers with weights under which every part matters."""

from typing import Any

import torch
import transformers

SMALL = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "conv_dim": [32] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "vocab_size": 10,
    "classifier_proj_size": 8,
}
LARGE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}


def drawn_model(kind: type = transformers.HubertModel, seed: int = 0, **fields: Any) -> Any:
    """A model in eval mode whose weights, biases, norm scales and gains are all drawn.

    The library's own initialisation leaves layers near the identity and biases at zero.
    """
    model = kind(transformers.HubertConfig(**fields)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(_drawn(name, parameter, generator))
    return model


def _drawn(name: str, parameter: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    noise = torch.randn(parameter.shape, generator=generator)
    if name.endswith("original0"):  # gains that give the positional convolution unit variance
        channels, taps = parameter.shape[1], parameter.shape[2]
        return (1 + 0.3 * noise) * (48 / taps) ** 0.5 * channels
    if "norm" in name and name.endswith("weight"):
        return 1 + 0.3 * noise
    if parameter.ndim < 2:
        return 0.2 * noise
    fan_in = parameter[0].numel()
    return noise * (1.5 / fan_in**0.5)
