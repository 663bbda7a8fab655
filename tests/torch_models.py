"""HuBERT models of transformers with weights under which every part matters, and their folders."""

import json
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

WEIGHTS = "model.safetensors"

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


def small_folder(path):
    """The folder of a small Base-like model."""
    drawn_model(**SMALL).save_pretrained(path)
    return path


def _drawn(name: str, parameter: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    noise = torch.randn(parameter.shape, generator=generator)
    if name.endswith("original0"):  # gains that give the positional convolution unit variance
        channels, taps = parameter.shape[1], parameter.shape[2]
        return (1 + 0.3 * noise) * (48 / taps) ** 0.5 * channels
    if "norm" in name and name.endswith("weight"):
        return 1 + 0.3 * noise
    if parameter.ndim < 2:
        return 0.2 * noise
    gain = 1.5 if parameter.ndim == 3 else 1.0  # GELU after a convolution takes about a third away
    return noise * (gain / parameter[0].numel() ** 0.5)


def change_tensors(folder, change):
    """Rewrites the tensors; `change` returns others or changes those it gets."""
    tensors = load_file(folder / WEIGHTS)
    tensors = change(tensors) or tensors
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)


def change_json(path, **fields):
    """Sets fields of a JSON file, which is made if absent."""
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | fields))


def to_torch_file(folder):
    """Puts `pytorch_model.bin` in the place of `model.safetensors`."""
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def to_shards(folder, suffix, write):
    """Puts two shards and an index in the place of `model.safetensors`."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    places = {name: f"{stem}-0000{i % 2 + 1}-of-00002.{suffix}" for i, name in enumerate(tensors)}
    for file in sorted(set(places.values())):
        write({n: t for n, t in tensors.items() if places[n] == file}, folder / file)
    change_json(folder / f"{stem}.{suffix}.index.json", weight_map=places)
