"""Bidirectional LSTMs for task heads, on batches of sequences of different length.

XLA's automatic gradient of a recurrence accumulates the recurrent kernel's gradient step by
step. It is one matrix product once all steps are known, so the backward pass is written out here.
"""

import functools
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Key

from daisy_jax import parallel
from daisy_jax.model.forms import run_form

Gates: TypeAlias = Float[Array, "frames batch gates"]
"""4 * units: input, forget, cell and output gates."""
Units: TypeAlias = Float[Array, "frames batch units"]
Mask: TypeAlias = Bool[Array, "frames batch"]
"""True on the valid frames, which lie together."""


@functools.partial(jax.custom_vjp, nondiff_argnames=("unroll",))
def recurrence(
    projected: Gates, kernel: Float[Array, "units gates"], mask: Mask, unroll: int = 1
) -> Units:
    """One direction of an LSTM, from inputs that are already projected.

    Args:
      projected: input products and biases.
      kernel: recurrent.
      mask: where it is false the state stays as it is, and outputs are zero.
      unroll: steps in one turn of the loop.

    Source: Hochreiter and Schmidhuber 1997 with forget gates, in the form that torch.nn.LSTM has.
    """
    return _scan(projected, kernel, mask, unroll, keep=False)[0]


def _scan(
    projected: Gates, kernel: Float[Array, "units gates"], mask: Mask, unroll: int, keep: bool
) -> tuple[Units, tuple[Units, Gates] | None]:
    """Outputs, and for the gradient (`keep`) cells and gates too, which take time to write."""
    batch, units = projected.shape[1], kernel.shape[0]
    zeros = jnp.zeros_like(projected, shape=(batch, units))

    def step(state, inputs):
        hidden, cell = state
        added, valid = inputs
        gates = added + hidden @ kernel
        into, forget, _, out = jnp.split(jax.nn.sigmoid(gates), 4, axis=-1)
        new = jnp.tanh(gates[:, 2 * units : 3 * units])
        valid = valid[:, None]
        cell = jnp.where(valid, forget * cell + into * new, cell)
        hidden = jnp.where(valid, out * jnp.tanh(cell), hidden)
        kept = (cell, jnp.concatenate([into, forget, new, out], axis=-1)) if keep else None
        return (hidden, cell), (hidden, kept)

    _, (hidden, kept) = jax.lax.scan(step, (zeros, zeros), (projected, mask), unroll=unroll)
    return jnp.where(mask[..., None], hidden, 0), kept


def _forward(projected, kernel, mask, unroll=1):
    hidden, kept = _scan(projected, kernel, mask, unroll, keep=True)
    return hidden, (kernel, mask, hidden, kept)


def _backward(unroll, saved, gradient):
    kernel, mask, hidden, (cells, gates) = saved
    first = jnp.zeros_like(cells[:1])
    # Before the first valid frame the state is zero, as the outputs of the frames there are.
    hidden_before = jnp.concatenate([first, hidden[:-1]])
    cells_before = jnp.concatenate([first, cells[:-1]])

    def step(state, inputs):
        from_hidden, from_cell = state
        gradient, valid, gates, cell, cell_before = inputs
        into, forget, new, out = jnp.split(gates, 4, axis=-1)
        valid = valid[:, None]
        to_hidden = jnp.where(valid, gradient + from_hidden, 0)
        squashed = jnp.tanh(cell)
        to_cell = jnp.where(valid, from_cell + to_hidden * out * (1 - squashed**2), 0)
        to_gates = jnp.concatenate(
            [
                to_cell * new * into * (1 - into),
                to_cell * cell_before * forget * (1 - forget),
                to_cell * into * (1 - new**2),
                to_hidden * squashed * out * (1 - out),
            ],
            axis=-1,
        )
        before = (
            jnp.where(valid, to_gates @ kernel.T, from_hidden),
            jnp.where(valid, to_cell * forget, from_cell),
        )
        return before, to_gates

    zeros = jnp.zeros_like(hidden[0])
    inputs = (gradient, mask, gates, cells, cells_before)
    _, to_gates = jax.lax.scan(step, (zeros, zeros), inputs, reverse=True, unroll=unroll)
    to_kernel = jnp.einsum("tbu,tbg->ug", hidden_before, to_gates)
    return to_gates, to_kernel, None


recurrence.defvjp(_forward, _backward)


class Direction(nnx.Module):
    """The parameters of one direction of one layer, gates in the order of torch."""

    def __init__(self, inputs: int, units: int, *, rngs: nnx.Rngs):
        bound = 1 / jnp.sqrt(units)

        def uniform(*shape: int) -> nnx.Param:
            return nnx.Param(jax.random.uniform(rngs.params(), shape, minval=-bound, maxval=bound))

        self.kernel = uniform(inputs, 4 * units)
        self.recurrent_kernel = uniform(units, 4 * units)
        self.bias = uniform(4 * units)

    def project(self, x: Float[Array, "frames batch inputs"]) -> Gates:
        """The gates' inputs."""
        return x @ self.kernel[...] + self.bias[...][None, None]


UNROLLED = 4
"""Steps in one turn of the loop where both directions go together (estimated;
benchmarks/first_gpu.py decides): between two turns, an accelerator's host starts new kernels."""


def both_directions(
    forward: Direction, backward: Direction, x: Float[Array, "frames batch inputs"], mask: Mask
) -> Float[Array, "frames batch outputs"]:
    """One bidirectional layer: the backward direction begins at each sequence's last frame."""

    def in_turn(x, mask):
        there: Units = recurrence(forward.project(x), forward.recurrent_kernel[...], mask)
        projected = backward.project(x)[::-1]
        back: Units = recurrence(projected, backward.recurrent_kernel[...], mask[::-1])
        return jnp.concatenate([there, back[::-1]], axis=-1)

    def together(x, mask):
        kernels = jnp.stack([forward.recurrent_kernel[...], backward.recurrent_kernel[...]])
        projected = jnp.stack([forward.project(x), backward.project(x)[::-1]])
        run = jax.vmap(functools.partial(recurrence, unroll=UNROLLED))
        there, back = run(projected, kernels, jnp.stack([mask, mask[::-1]]))
        return jnp.concatenate([there, back[::-1]], axis=-1)

    def cudnn(x, mask):
        run = _cudnn if devices == 1 else parallel.over_rows(_cudnn, 2, checked=False)
        out = run((forward, backward), jnp.swapaxes(x, 0, 1), mask.T)
        return jnp.swapaxes(out, 0, 1)

    devices = jax.device_count()
    fast = cudnn if _cudnn_runs() and x.shape[1] % devices == 0 else together
    forms = {"in_turn": in_turn, "together": together, "cudnn": fast}
    return run_form("lstm", forms, x, mask)


def _cudnn(
    directions: tuple[Direction, Direction],
    x: Float[Array, "batch frames inputs"],
    mask: Bool[Array, "batch frames"],
) -> Float[Array, "batch frames outputs"]:
    """NVIDIA's own kernels for all steps of both directions."""
    from jax.experimental import rnn

    batch, units = len(x), directions[0].recurrent_kernel.shape[0]
    kernels = [p[...].T for one in directions for p in (one.kernel, one.recurrent_kernel)]
    # It has two biases, of which the second is zero.
    biases = [b for one in directions for b in (one.bias[...], jnp.zeros_like(one.bias[...]))]
    weights = jnp.concatenate([jnp.ravel(array) for array in (*kernels, *biases)])
    none = jnp.zeros_like(x, shape=(2, batch, units))
    # A row without frames has one here, which is not kept.
    lengths = jnp.maximum(jnp.sum(mask, axis=1, dtype=jnp.int32), 1)
    settings: Any = jax.config
    exact = settings.jax_default_matmul_precision in ("highest", "float32")
    precision = jax.lax.Precision.HIGHEST if exact else jax.lax.Precision.HIGH
    lstm: Any = rnn.lstm
    out, _, _ = lstm(x, none, none, weights, lengths, x.shape[-1], units, 1, 0.0, True, precision)
    return jnp.where(mask[..., None], out, 0)


def _cudnn_runs() -> bool:
    """Whether this process has NVIDIA GPUs, which JAX asks for sizes while it traces the call."""
    try:
        devices = jax.local_devices(backend="cuda")
    except RuntimeError:  # none at all
        return False
    # A device that plays a GPU has no compute capability.
    return all(hasattr(device, "compute_capability") for device in devices)


class BidirectionalLstm(nnx.Module):
    """A stack of bidirectional LSTM layers with dropout between them, as torch.nn.LSTM.

    Every sequence ends where its mask does: the backward direction begins there.
    """

    def __init__(
        self, inputs: int, units: int, layers: int, dropout: float = 0.0, *, rngs: nnx.Rngs
    ):
        widths = [inputs, *[2 * units] * layers][:layers]
        self.forward = nnx.List([Direction(width, units, rngs=rngs) for width in widths])
        self.backward = nnx.List([Direction(width, units, rngs=rngs) for width in widths])
        self.dropout = dropout

    def __call__(
        self,
        x: Float[Array, "batch frames inputs"],
        mask: Bool[Array, "batch frames"],
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch frames outputs"]:
        """Runs all layers.

        Args:
          x: the sequences.
          mask: true on the first frames of each sequence.
          key: of dropout; None: no dropout.

        Returns:
          The last layer's outputs, 2 * units of them, zero on padded frames.
        """
        x, mask = jnp.swapaxes(x, 0, 1), mask.T
        for number, (forward, backward) in enumerate(zip(self.forward, self.backward, strict=True)):
            if number and key is not None:
                x = self.drop(x, jax.random.fold_in(key, number))
            x = both_directions(forward, backward, x, mask)
        return jnp.swapaxes(x, 0, 1)

    def drop(
        self, x: Float[Array, "*rows units"], key: Key[Array, ""]
    ) -> Float[Array, "*rows units"]:
        """Dropout as it is between the layers."""
        if not self.dropout:
            return x
        keep = 1 - self.dropout
        return jnp.where(jax.random.bernoulli(key, keep, x.shape), x / keep, 0)
