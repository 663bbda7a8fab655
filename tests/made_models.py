"""Small models whose numbers are all drawn, made without compiling their initialisation."""

import jax
import jax.numpy as jnp
import numpy as np

from daisy_jax.checkpoints import abstract_model, named_leaves
from daisy_jax.exits import Calibration
from daisy_jax.model.config import HubertConfig
from daisy_jax.model.hubert import Hubert

SMALL = HubertConfig(
    num_layers=3,
    dim=16,
    ffn_dim=24,
    num_heads=2,
    conv_dim=8,
    pos_conv_kernel=8,
    pos_conv_groups=4,
    num_clusters=6,
    head_dim=5,
    num_classes=6,
)


def made_model(
    config: HubertConfig = SMALL, calibration: Calibration | None = None, seed: int = 0
) -> Hubert:
    """Kernels of unit gain, norms around one, biases around zero."""
    shapes = abstract_model(config)
    rng = np.random.default_rng(seed)
    leaves = []
    for name, leaf in named_leaves(shapes).items():
        values = rng.standard_normal(leaf.shape)
        if name.endswith("scale"):
            values = 1 + 0.2 * values
        elif leaf.ndim > 1 and not name.endswith("bias"):
            stacked = name.startswith(("layers.", "branches."))
            fan_in = np.prod(leaf.shape[1 if stacked else 0 : -1]) or 1
            values = values / np.sqrt(fan_in)
        else:
            values = 0.2 * values
        if name == "branches.kernel":
            values = 4 * values  # sure enough, so that entropies differ
        leaves.append(jnp.asarray(values, jnp.float32))
    model = jax.tree.unflatten(jax.tree.structure(shapes), leaves)
    return model.replace(calibration=calibration)
