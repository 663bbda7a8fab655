"""Writes tests/data: small HuBERT models, and what PyTorch (transformers, float64) makes of them.

    python tests/make_references.py

Needs torch and transformers; the tests that read the files do not.
"""

import numpy as np
import torch
from formats import CLUSTERS, DATA, HEAD_DIM, KINDS, SIZES
from torch_models import LARGE, drawn_model

SAMPLES = 3333
FIELDS = {
    "hidden_size": SIZES["dim"],
    "num_hidden_layers": SIZES["layers"],
    "num_attention_heads": SIZES["heads"],
    "intermediate_size": SIZES["ffn"],
    "conv_dim": [SIZES["conv"]] * 7,
    "num_conv_pos_embeddings": SIZES["taps"],
    "num_conv_pos_embedding_groups": SIZES["groups"],
}
KIND_FIELDS = {"base": {}, "large": LARGE, "large-bias": LARGE | {"conv_bias": True}}


def make_reference(kind: str) -> dict[str, np.ndarray]:
    """Everything of a case (formats.py) by its name in the file."""
    rng = np.random.default_rng(KINDS.index(kind))

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    model = drawn_model(seed=7, **FIELDS, **KIND_FIELDS[kind])
    tensors = {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}
    extra = {
        "final_proj.weight": draw(HEAD_DIM, SIZES["dim"]),
        "final_proj.bias": draw(HEAD_DIM),
        "label_embs": draw(CLUSTERS, HEAD_DIM),
    }
    for layer in range(SIZES["layers"]):
        extra[f"branch.{layer}.weight"] = draw(CLUSTERS, SIZES["dim"])
        extra[f"branch.{layer}.bias"] = draw(CLUSTERS)
    waveform = 0.1 * draw(SAMPLES)
    wide = {name: torch.from_numpy(array).double() for name, array in extra.items()}

    fed_forward: list[torch.Tensor] = []
    for layer in model.encoder.layers:
        layer.feed_forward.register_forward_hook(lambda _m, _i, out: fed_forward.append(out[0]))
    x = torch.from_numpy(waveform).double()
    if kind != "base":
        x = torch.nn.functional.layer_norm(x, x.shape)
    with torch.no_grad():
        out = model.double()(x[None], output_hidden_states=True)
        projected = out.last_hidden_state[0] @ wide["final_proj.weight"].T + wide["final_proj.bias"]
        scores = torch.cosine_similarity(projected[:, None], wide["label_embs"][None], dim=-1)
        entropy = []
        for tapped in ([hidden[0] for hidden in out.hidden_states[1:]], fed_forward):
            logits = [
                frames @ wide[f"branch.{k}.weight"].T + wide[f"branch.{k}.bias"]
                for k, frames in enumerate(tapped)
            ]
            entropy.append(
                [torch.distributions.Categorical(logits=row).entropy().mean() for row in logits]
            )
    return {
        **{f"tensors/{name}": array for name, array in tensors.items()},
        **{f"extra/{name}": array for name, array in extra.items()},
        "waveform": waveform,
        "hidden_states": torch.cat(out.hidden_states).float().numpy(),
        "labels": scores.argmax(dim=-1).numpy(),
        "entropy": np.array(entropy, np.float32),
    }


if __name__ == "__main__":
    DATA.mkdir(exist_ok=True)
    for kind in KINDS:
        np.savez_compressed(DATA / f"{kind}.npz", **make_reference(kind))
        print(DATA / f"{kind}.npz")
