"""Peak memory of a conversion, relative to the model's float32 size.

    python benchmarks/conversion.py --size xlarge --format safetensors

Writes a checkpoint with drawn weights into a temporary folder (4 GB for XLarge in float32, 12 with
optimizer state), converts it in a process of its own, and prints that process' largest resident
memory.
"""

import dataclasses
import multiprocessing
import pathlib
import subprocess
import sys
import tempfile
from typing import Literal

import tyro

from daisy_jax.console.terminal import say

CONVERT = """
import resource, sys
from daisy_jax.conversions.convert import convert
report = convert(sys.argv[1], sys.argv[2])
say(report.parameters, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@dataclasses.dataclass(frozen=True)
class Config:
    """What to convert."""

    size: Literal["base", "large", "xlarge"] = "xlarge"
    """Of the model."""
    format: Literal["safetensors", "zip", "zip-with-optimizer"] = "safetensors"
    """A transformers file, or fairseq's, without or with the optimizer's two moments."""
    dtype: Literal["float32", "float16"] = "float32"
    """Of the checkpoint."""
    folder: str | None = None
    """Where to put the temporary folder; None: the system's."""


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    with tempfile.TemporaryDirectory(dir=config.folder) as name:
        folder = pathlib.Path(name)
        source = folder / ("model.safetensors" if config.format == "safetensors" else "model.pt")
        # In a process of its own: a child's largest memory counts its parent's at the fork.
        writer = multiprocessing.get_context("spawn").Process(target=write, args=(config, source))
        writer.start()
        writer.join()
        command = [sys.executable, "-c", CONVERT, str(source), str(folder / "model")]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    parameters, peak = map(int, done.stdout.split())
    say(
        f"{config.size}, {config.format}, {config.dtype}: {parameters / 1e6:.0f} M parameters, "
        f"peak {peak / 1e9:.2f} GB, {peak / (4 * parameters):.2f} of the float32 size"
    )


def write(config: Config, path: pathlib.Path) -> None:
    """Writes the checkpoint."""
    import numpy as np

    from daisy_jax import HubertConfig
    from daisy_jax.conversions.rules import make_tensors, parameter_shapes
    from daisy_jax.conversions.trunk import FAIRSEQ, TRANSFORMERS, trunk_rules

    sizes = {"base": HubertConfig.base, "large": HubertConfig.large, "xlarge": HubertConfig.xlarge}
    model = sizes[config.size]()
    rng = np.random.default_rng(0)
    parameters = {
        name: rng.standard_normal(shape, np.float32)
        for name, shape in parameter_shapes(model).items()
    }
    transformers = config.format == "safetensors"
    names = TRANSFORMERS if transformers else FAIRSEQ
    mask_embedding = "masked_spec_embed" if transformers else "mask_emb"
    rules = trunk_rules(model, names, (mask_embedding,), mask_embedding)
    tensors = make_tensors(rules, parameters)
    tensors = {name: tensor.astype(config.dtype) for name, tensor in tensors.items()}
    if transformers:
        from safetensors.numpy import save_file

        save_file(tensors, path)
        return
    import torch

    held = {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}
    fields = {
        "_name": "hubert",
        "extractor_mode": "layer_norm" if model.conv_norm == "layer" else "default",
        "encoder_layers": model.num_layers,
        "encoder_embed_dim": model.dim,
        "encoder_ffn_embed_dim": model.ffn_dim,
        "encoder_attention_heads": model.num_heads,
        "layer_norm_first": model.norm_first,
    }
    content = {"cfg": {"model": fields, "task": {"normalize": True}}, "model": held}
    if config.format == "zip-with-optimizer":
        content["last_optimizer_state"] = [
            {name: tensor.float() for name, tensor in held.items()} for _ in range(2)
        ]
    torch.save(content, path)


if __name__ == "__main__":
    main()
