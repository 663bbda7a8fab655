"""Times of full-size HuBERT Base with random weights, side by side in one run.

    python benchmarks/base.py [--accelerator=gpu]

1. One utterance of 10 s at full depth, ours beside transformers' eager HubertModel (CPU only).
2. A batch of 16 x 5 s that leaves at layers 2 to 12, 6 on average, beside full depth with and
   without branches. Time does not depend on what the weights say, so exits can be forced.

Prints medians and ratios; the measurements of a comparison take turns.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable

import tyro

from daisy_jax.terminal import Accelerator, run_command, use_accelerator

EXITS = (2, 3, 3, 4, 4, 5, 5, 6, 6, 6, 7, 7, 8, 8, 10, 12)  # 6 on average


@dataclasses.dataclass(frozen=True)
class Config:
    """How to measure."""

    runs: int = 5
    """Measurements of each task, after one warm-up."""
    accelerator: Accelerator = "auto"
    """Where to compute."""


def medians(tasks: dict[str, Callable[[], object]], runs: int) -> dict[str, float]:
    """Median seconds of each task, all tasks in turn."""
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for task in tasks.values():
        task()
    for _ in range(runs):
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    device = use_accelerator(config.accelerator)

    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx

    import daisy_jax

    model = jax.jit(
        lambda: daisy_jax.Hubert(daisy_jax.HubertConfig.base(num_classes=504), rngs=nnx.Rngs(0))
    )()

    # Branches whose entropy depends on the layer alone and falls with depth: an utterance's own
    # threshold then decides where it leaves.
    branches = jax.tree.map(jnp.zeros_like, model.branches)
    branches.bias = nnx.Param(branches.bias[...].at[:, 0].set(jnp.linspace(1, 12, 12)))
    model = model.replace(branches=branches)
    rng = np.random.default_rng(0)
    entropy = daisy_jax.encode(model, rng.standard_normal((1, 400), np.float32), threshold=-np.inf)
    entropy = np.concatenate([[np.inf], np.asarray(entropy.entropy)[0]])
    thresholds = np.asarray([(entropy[k] + entropy[max(k - 1, 1)]) / 2 for k in EXITS], np.float32)

    ten_seconds = jnp.asarray(rng.standard_normal((1, 160_000), np.float32))
    batch = jnp.asarray(rng.standard_normal((16, 80_000), np.float32))

    def ours(waveform, threshold=None):
        return lambda: jax.block_until_ready(
            daisy_jax.encode(model, waveform, threshold=threshold).last_hidden
        )

    layers = np.asarray(daisy_jax.encode(model, batch, threshold=thresholds).exit_layer)
    if tuple(layers) != EXITS:
        raise RuntimeError(f"exits are {layers}, not as forced")

    print(f"jax {jax.__version__} on {device}")
    tasks = {"ours": ours(ten_seconds)}
    if jax.default_backend() == "cpu":
        import torch
        import transformers

        reference = transformers.HubertModel(transformers.HubertConfig()).eval()
        tensor = torch.from_numpy(np.array(ten_seconds))

        def theirs():
            with torch.no_grad():
                return reference(tensor).last_hidden_state

        tasks["transformers"] = theirs
        print(f"transformers {transformers.__version__}, torch {torch.__version__}")
    single = medians(tasks, config.runs)
    for name, seconds in single.items():
        print(f"1 x 10 s, full depth, {name}: {seconds:.3f} s")
    if "transformers" in single:
        print(f"  ours / transformers: {single['ours'] / single['transformers']:.2f}")

    many = medians(
        {
            "full depth, no branches": ours(batch),
            "full depth, all branches": ours(batch, -np.inf),
            "mean exit 6": ours(batch, thresholds),
        },
        config.runs,
    )
    full = many["full depth, no branches"]
    for name, seconds in many.items():
        print(f"16 x 5 s, {name}: {seconds:.2f} s, {seconds / full:.2f} of full depth")


if __name__ == "__main__":
    run_command(main)
