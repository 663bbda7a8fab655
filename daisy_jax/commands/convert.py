"""`daisy-jax convert`: PyTorch weights to a model folder."""

import dataclasses

import tyro


@dataclasses.dataclass(frozen=True)
class Convert:
    """Converts a HuBERT checkpoint to a model folder that is read without torch.

    SRC is a transformers folder (config.json with model.safetensors or pytorch_model.bin). Every
    tensor is used or named as ignored, every parameter is filled, or nothing is written.
    """

    source: tyro.conf.Positional[str]
    """The checkpoint."""
    destination: tyro.conf.Positional[str]
    """The model folder to write."""

    def run(self) -> None:
        """Converts and prints a report."""
        from daisy_jax.conversions.convert import convert

        print(convert(self.source, self.destination))
