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
"""4 * units: input, forget, new content of the cell, and output."""
Units: TypeAlias = Float[Array, "frames batch units"]
Kernel: TypeAlias = Float[Array, "units gates"]
Mask: TypeAlias = Bool[Array, "frames batch"]
"""True on the valid frames, which lie together."""


@functools.partial(jax.custom_vjp, nondiff_argnames=("unroll",))
def recurrences(
    projected: tuple[Gates, ...],
    kernels: tuple[Kernel, ...],
    masks: tuple[Mask, ...],
    unroll: int = 1,
) -> tuple[Units, ...]:
    """The recurrences of LSTMs that know nothing of each other, one step of each in turn.

    In one loop their small products run side by side on the cores of a CPU.

    Args:
      projected: of each, input products and biases.
      kernels: recurrent.
      masks: where they are false, outputs are zero; every sequence begins with a state of zeros.
      unroll: steps in one turn of the loop.

    Source: Hochreiter and Schmidhuber 1997 with forget gates, in the form that torch.nn.LSTM has.
    """
    return tuple(_scan(projected, kernels, masks, unroll, keep=False))


def _scan(projected, kernels, masks, unroll: int, keep: bool) -> list[Any]:
    """Outputs of each, and for the gradient (`keep`) cells and gates too, which cost a copy."""
    units = kernels[0].shape[0]
    is_new = jnp.arange(4 * units) // units == 2

    def step(state, inputs, kernel):
        hidden, cell = state
        added, valid = inputs
        gates = added + hidden @ kernel
        gates = jnp.where(is_new, jnp.tanh(gates), jax.nn.sigmoid(gates))
        into, forget, new, out = jnp.split(gates, 4, axis=-1)
        cell = jnp.where(valid[:, None], forget * cell + into * new, 0)
        hidden = jnp.where(valid[:, None], out * jnp.tanh(cell), 0)
        return (hidden, cell), (hidden, cell, gates) if keep else hidden

    zeros = jnp.zeros_like(projected[0], shape=(projected[0].shape[1], units))
    inputs = list(zip(projected, masks, strict=True))
    return _loop(step, zeros, inputs, kernels, unroll, reverse=False)


def _loop(step, zeros, inputs, kernels, unroll: int, reverse: bool) -> list[Any]:
    """What `step` puts out for all frames of each; a state is two arrays, `zeros` at first."""

    def all_steps(states, frame):
        each = [step(*one) for one in zip(states, frame, kernels, strict=True)]
        return [state for state, _ in each], [out for _, out in each]

    states = [(zeros, zeros)] * len(kernels)
    return jax.lax.scan(all_steps, states, inputs, reverse=reverse, unroll=unroll)[1]


def _forward(projected, kernels, masks, unroll=1):
    kept = _scan(projected, kernels, masks, unroll, keep=True)
    return tuple(hidden for hidden, _, _ in kept), (kernels, masks, kept)


def _backward(unroll, saved, gradients):
    kernels, masks, kept = saved

    def step(state, inputs, turned):
        from_hidden, from_cell = state
        gradient, hidden_to_cell, forget, to_gates = inputs
        to_hidden = gradient + from_hidden
        to_cell = from_cell + to_hidden * hidden_to_cell
        to_gates = to_gates * jnp.where(is_out, jnp.tile(to_hidden, 4), jnp.tile(to_cell, 4))
        return (to_gates @ turned, to_cell * forget), to_gates

    units = kernels[0].shape[0]
    is_out = jnp.arange(4 * units) // units == 3
    inputs = [_slopes(*one) for one in zip(masks, kept, gradients, strict=True)]
    # Turned once: a CPU takes twice as long for a product with a transposed kernel.
    turned = [kernel.T for kernel in kernels]
    zeros = jnp.zeros_like(gradients[0][0])
    to_gates = _loop(step, zeros, inputs, turned, unroll, reverse=True)
    to_kernels = tuple(
        _products_summed(_rows(_before(hidden)), _rows(to))
        for (hidden, _, _), to in zip(kept, to_gates, strict=True)
    )
    return tuple(to_gates), to_kernels, None


def _slopes(mask, kept, gradient):
    """All that a step backward multiplies with, for every frame at once.

    On padded frames it is zero, so that nothing goes beyond a sequence's ends.
    """
    _, cells, gates = kept
    into, forget, new, out = jnp.split(gates, 4, axis=-1)
    squashed = jnp.tanh(cells)
    slopes = [
        gradient,
        out * (1 - squashed**2),
        forget,
        new * into * (1 - into),
        _before(cells) * forget * (1 - forget),
        into * (1 - new**2),
        squashed * out * (1 - out),
    ]
    slopes = [jnp.where(mask[..., None], slope, 0) for slope in slopes]
    return *slopes[:3], jnp.concatenate(slopes[3:], axis=-1)


def _before(states: Units) -> Units:
    """The state before each frame: zero before the first valid one, as it is on padded frames."""
    return jnp.concatenate([jnp.zeros_like(states[:1]), states[:-1]])


def _rows(array: Float[Array, "frames batch width"]) -> Float[Array, "*rows width"]:
    """All frames in one axis, since a CPU sums over two of them more slowly.

    Left as they are where devices share the batch, which would have to be gathered.
    """
    return array if jax.device_count() > 1 else array.reshape(-1, array.shape[-1])


def _products_summed(
    left: Float[Array, "*rows units"], right: Float[Array, "*rows gates"]
) -> Float[Array, "units gates"]:
    """Outer products, summed over all frames."""
    axes = tuple(range(left.ndim - 1))
    return jnp.tensordot(left, right, (axes, axes))


recurrences.defvjp(_forward, _backward)


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
        projected = (_rows(x) @ self.kernel[...]).reshape(*x.shape[:2], -1)
        return projected + self.bias[...][None, None]


UNROLLED = 4
"""Steps in one turn of the loop where both directions go together (estimated;
benchmarks/first_gpu.py decides): between two turns, an accelerator's host starts new kernels."""


def both_directions(
    forward: Direction, backward: Direction, x: Float[Array, "frames batch inputs"], mask: Mask
) -> Float[Array, "frames batch outputs"]:
    """One bidirectional layer: the backward direction begins at each sequence's last frame."""

    def arguments(x, mask):
        projected = forward.project(x), backward.project(x)[::-1]
        kernels = forward.recurrent_kernel[...], backward.recurrent_kernel[...]
        return projected, kernels, (mask, mask[::-1])

    def side_by_side(x, mask):
        return joined(recurrences(*arguments(x, mask)))

    def together(x, mask):
        def run(projected, kernel, mask):
            return recurrences((projected,), (kernel,), (mask,), UNROLLED)

        (stacked,) = jax.vmap(run)(*[jnp.stack(pair) for pair in arguments(x, mask)])
        return joined(stacked)

    def joined(outputs):
        there, back = outputs
        return jnp.concatenate([there, back[::-1]], axis=-1)

    def cudnn(x, mask):
        run = _cudnn if devices == 1 else parallel.over_rows(_cudnn, 2, checked=False)
        out = run((forward, backward), jnp.swapaxes(x, 0, 1), mask.T)
        return jnp.swapaxes(out, 0, 1)

    devices = jax.device_count()
    fast = cudnn if _cudnn_runs() and x.shape[1] % devices == 0 else together
    forms = {"side_by_side": side_by_side, "together": together, "cudnn": fast}
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
