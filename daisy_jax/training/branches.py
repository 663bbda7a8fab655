"""Stage 1: all branches learn HuBERT's own frame labels, in one step, from a frozen trunk.

How well they do is measured on held-out speech: loss, accuracy and entropy of every layer.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from daisy_jax import audio, parallel
from daisy_jax.data.batches import FrameLabels, WholeBatches, read_batch
from daisy_jax.data.corpus import Corpus
from daisy_jax.data.side_work import batches
from daisy_jax.errors import InputError, delayed_signals
from daisy_jax.model.branches import Branches
from daisy_jax.model.branches_loss import BranchScores, Metrics, branch_scores, branches_loss
from daisy_jax.model.hubert import Hubert

State: TypeAlias = tuple[Branches, optax.OptState]


class Validation:
    """A corpus that branches are scored on: whole utterances, of long ones the first minute."""

    def __init__(self, trunk: Hubert, corpus: Corpus, labels: FrameLabels | None, samples: int):
        """Of a trunk on every device (`parallel.replicate`), in batches of up to `samples`."""
        # Attention over a recording of an hour would not fit anywhere.
        lengths = np.minimum(corpus.lengths, audio.WIDTHS[-1])
        draw = WholeBatches(lengths, samples, jax.device_count())

        def read(number: int) -> dict[str, np.ndarray]:
            crops = draw(number)
            width = audio.padded_width(crops[0].samples)
            mine = parallel.local_rows(len(crops))
            return read_batch(corpus, labels, crops, width, rows=mine)

        self._trunk, self._read, self._count = trunk, read, len(draw)
        self._scores = jax.jit(branch_scores, out_shardings=parallel.replicated())

    def scores(self, branches: Branches) -> BranchScores:
        """Scores of all utterances that could be read, as numpy arrays; the longest come first.

        Raises:
          InputError: there is none.
        """
        started = (
            self._scores(branches, self._trunk, **parallel.place(batch))
            for batch in batches(self._read, 0, self._count, workers=0)
        )
        # One of several processes must not leave the others waiting for it.
        alone = jax.process_count() == 1
        with contextlib.nullcontext() if alone else delayed_signals():
            fields = list(zip(*parallel.fetched_behind(started), strict=True))
        scores = BranchScores(*map(np.concatenate, fields))
        valid = scores.frames > 0
        if not np.any(valid):
            raise InputError(
                "--data: no utterance of the validation set could be read; repair its files"
            )
        return BranchScores(*(part[valid] for part in scores))

    def summary(self, branches: Branches) -> dict[str, float | list[float]]:
        """Means over the corpus, for metrics.jsonl: of utterances, of accuracy over frames."""
        scores = self.scores(branches)
        by_layer = {
            "loss": scores.loss.mean(axis=0),
            "accuracy": scores.hits.sum(axis=0) / scores.frames.sum(),
            "entropy": scores.entropy.mean(axis=0),
        }
        means = {f"validation_{name}": float(value.mean()) for name, value in by_layer.items()}
        layers = {f"validation_layer_{name}": value.tolist() for name, value in by_layer.items()}
        return means | layers


def clip_each_branch(max_norm: float) -> optax.GradientTransformation:
    """Scales each layer's gradient to a norm of at most `max_norm`, apart from the other layers'.

    A norm over all branches would couple them: one branch's outlier would slow all others down.
    """

    def update(
        gradients: PyTree[Float[Array, "layers ..."]], params: PyTree | None = None
    ) -> PyTree[Float[Array, "layers ..."]]:
        del params
        norms = jax.vmap(optax.tree.norm)(gradients)  # [L]
        scale = jnp.minimum(1, max_norm / jnp.maximum(norms, 1e-12))
        return jax.tree.map(
            lambda leaf: leaf * scale.reshape((-1,) + (1,) * (leaf.ndim - 1)), gradients
        )

    return optax.stateless(update)


def branch_optimizer(
    learning_rate: optax.ScalarOrSchedule, weight_decay: float, clip: float
) -> optax.GradientTransformation:
    """Adam as HuBERT's (betas 0.9 and 0.98, decoupled weight decay), each branch clipped apart."""
    return optax.chain(
        clip_each_branch(clip),
        optax.adamw(learning_rate, b1=0.9, b2=0.98, eps=1e-6, weight_decay=weight_decay),
    )


def branch_step(
    optimizer: optax.GradientTransformation,
) -> Callable[[State, Hubert, dict[str, Array]], tuple[State, Metrics]]:
    """One step of stage 1, jitted: from (branches, optimizer's state), trunk and batch.

    The batch is a dictionary of `branches_loss`'s arguments, its rows split over the devices. The
    step returns the new state, for which the old one is given up, and metrics.
    """

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=parallel.replicated())
    def step(state, trunk, batch):
        branches, optimizer_state = state
        gradient = jax.grad(branches_loss, has_aux=True)
        gradients, metrics = gradient(branches, trunk, **batch)
        updates, optimizer_state = optimizer.update(gradients, optimizer_state, branches)
        return (optax.apply_updates(branches, updates), optimizer_state), metrics

    return step
