"""Bidirectional LSTMs against torch's, forward and backward, on ragged batches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental import rnn
from jax.interpreters import mlir
from jaxlib import gpu_rnn
from lowered import cudnn_as_documented

from daisy_jax import parallel
from daisy_jax.model.forms import one_form
from daisy_jax.tasks import lstm as lstm_module
from daisy_jax.tasks.lstm import BidirectionalLstm, Units, recurrences

LENGTHS = (17, 9, 1, 13)


run = jax.jit(lambda lstm, *arguments: lstm(*arguments))


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 17, 6)).astype(np.float32)
    mask = np.arange(17) < np.array(LENGTHS)[:, None]
    weights = rng.standard_normal((4, 17, 10)).astype(np.float32)
    return x, mask, weights


@pytest.fixture(scope="module")
def lstm():
    return BidirectionalLstm(6, 5, 2, rngs=nnx.Rngs(0))


def torch_lstm(lstm, torch):
    theirs = torch.nn.LSTM(6, 5, 2, batch_first=True, bidirectional=True, dtype=torch.float64)
    with torch.no_grad():
        for number in range(2):
            for suffix, directions in (("", lstm.forward), ("_reverse", lstm.backward)):
                ours, name = directions[number], f"l{number}{suffix}"
                for kind, values in (
                    (f"weight_ih_{name}", np.asarray(ours.kernel[...]).T),
                    (f"weight_hh_{name}", np.asarray(ours.recurrent_kernel[...]).T),
                    (f"bias_ih_{name}", np.asarray(ours.bias[...])),
                    (f"bias_hh_{name}", np.zeros(20)),
                ):
                    getattr(theirs, kind).copy_(torch.tensor(values))
    return theirs


@pytest.mark.parametrize("devices", [1, 4])
def test_outputs_and_gradients_are_those_of_torch(lstm, batch, monkeypatch, devices):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    x, mask, weights = batch
    theirs = torch_lstm(lstm, torch)
    inputs = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        inputs, LENGTHS, batch_first=True, enforce_sorted=False
    )
    out, _ = torch.nn.utils.rnn.pad_packed_sequence(theirs(packed)[0], batch_first=True)
    (out * torch.tensor(weights)).sum().backward()

    def loss(lstm, x):
        out = lstm(x, jnp.asarray(mask))
        return jnp.sum(out * weights), out

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
    (to_lstm, to_x), ours = gradient(lstm, x)
    np.testing.assert_allclose(ours, out.detach().numpy(), atol=1e-6)
    np.testing.assert_allclose(to_x, inputs.grad.numpy(), atol=1e-5)
    for number in range(2):
        for suffix, directions in (("", to_lstm.forward), ("_reverse", to_lstm.backward)):
            found, name = directions[number], f"l{number}{suffix}"
            for values, kind in (
                (found.kernel, "weight_ih"),
                (found.recurrent_kernel, "weight_hh"),
                (found.bias, "bias_ih"),
            ):
                values = np.asarray(values[...]).T
                wanted = getattr(theirs, f"{kind}_{name}").grad.numpy()
                np.testing.assert_allclose(values, wanted, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("padding", ["behind", "in front"])
def test_the_written_gradient_is_the_automatic_one(padding):
    rng = np.random.default_rng(1)
    projected, kernel, weights = (
        rng.standard_normal(shape).astype(np.float32) for shape in ((8, 3, 20), (5, 20), (8, 3, 5))
    )
    mask = np.arange(8)[:, None] < np.array([8, 5, 2])
    mask = jnp.asarray(mask if padding == "behind" else mask[::-1])

    def by_hand(projected, kernel):
        both = (projected, -projected), (kernel, 2 * kernel), (mask, mask)
        outputs: tuple[Units, ...] = recurrences(*both)
        first, second = outputs
        return jnp.sum((first - 3 * second) * weights)

    def plain(projected, kernel):
        return one(projected, kernel) - 3 * one(-projected, 2 * kernel)

    def one(projected, kernel):
        hidden = cell = jnp.zeros((3, 5))
        total = jnp.zeros(())
        for frame in range(8):
            into, forget, new, out = jnp.split(projected[frame] + hidden @ kernel, 4, axis=-1)
            valid = mask[frame][:, None]
            updated = jax.nn.sigmoid(forget) * cell + jax.nn.sigmoid(into) * jnp.tanh(new)
            cell = jnp.where(valid, updated, cell)
            hidden = jnp.where(valid, jax.nn.sigmoid(out) * jnp.tanh(cell), hidden)
            total += jnp.sum(jnp.where(valid, hidden, 0) * weights[frame])
        return total

    both = jax.jit(lambda *inputs: [jax.grad(f, (0, 1))(*inputs) for f in (by_hand, plain)])
    ours, wanted = both(projected, kernel)
    for found, other in zip(ours, wanted, strict=True):
        np.testing.assert_allclose(found, other, atol=1e-5)


def test_a_sequence_does_not_see_its_padding_or_its_neighbours(lstm, batch):
    x, mask, _ = batch
    together = np.asarray(run(lstm, np.where(mask[..., None], x, np.float32(7)), mask))
    for row, length in enumerate(LENGTHS):
        alone = np.asarray(run(lstm, x[row : row + 1, :length], np.ones((1, length), bool)))
        np.testing.assert_allclose(together[row, :length], alone[0], atol=1e-6)
        assert not np.any(together[row, length:])


def test_dropout_lies_between_the_layers_and_keeps_the_mean(batch):
    x, mask, _ = batch
    lstm, single = (
        BidirectionalLstm(6, 5, layers, dropout=0.5, rngs=nnx.Rngs(0)) for layers in (2, 1)
    )
    keys = jax.random.key(0), jax.random.key(1)

    def all_ways(lstm):
        return [lstm(jnp.asarray(x), jnp.asarray(mask), key) for key in (None, *keys)]

    plain, first, second = map(np.asarray, jax.jit(all_ways)(lstm))
    assert np.abs(first - second).max() > 0.01
    assert np.abs(first - plain).max() > 0.01
    plain, dropped, _ = jax.jit(all_ways)(single)
    np.testing.assert_array_equal(dropped, plain)


@pytest.mark.parametrize("form", ["side_by_side", "together"])
def test_devices_that_share_a_batch_exchange_gradients_only(lstm, batch, form):
    x, mask, weights = (parallel.place(array) for array in batch)

    def loss(lstm, x):
        return jnp.sum(lstm(x, mask) * weights)

    gradient = jax.jit(jax.grad(loss), out_shardings=parallel.replicated())
    with one_form("lstm", form):
        program = gradient.lower(parallel.replicate(lstm), x).compile().as_text()
    assert "all-reduce" in program
    for other in ("all-gather", "all-to-all", "collective-permute"):
        assert other not in program


# ---- NVIDIA's kernels, played ----


def in_form(form, lstm, x, mask, weights):
    def loss(lstm, x):
        out = lstm(x, mask)
        return jnp.sum(out * weights), out

    with one_form("lstm", form):
        return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(lstm, x)


@pytest.mark.parametrize("devices", [1, 4])
def test_nvidias_kernels_get_the_weights_where_they_expect_them(lstm, batch, monkeypatch, devices):
    monkeypatch.setattr(lstm_module, "_cudnn_runs", lambda: True)
    monkeypatch.setattr(rnn, "lstm", cudnn_as_documented)
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    x, mask, weights = map(jnp.asarray, batch)
    mask = mask.at[1].set(False)  # a row without frames
    if devices > 1:
        lstm = parallel.replicate(lstm)
        x, mask, weights = (parallel.place(np.asarray(array)) for array in (x, mask, weights))
    with jax.default_matmul_precision("highest"):
        ours, theirs = (in_form(form, lstm, x, mask, weights) for form in ("cudnn", "side_by_side"))
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6)


@pytest.fixture
def played_plugin(monkeypatch):
    """The part of JAX's CUDA plugin that is asked while a program is lowered."""

    class Plugin:
        @staticmethod
        def build_rnn_descriptor(*fields):
            return repr(fields).encode()

    sizes = "compute_rnn_workspace_reserve_space_sizes"
    monkeypatch.setattr(gpu_rnn, sizes, lambda *fields: (16, 32), raising=False)
    monkeypatch.setattr(lstm_module, "_cudnn_runs", lambda: True)
    for primitive, lowering in (
        (rnn.rnn_fwd_p, gpu_rnn._rnn_fwd_lowering),
        (rnn.rnn_bwd_p, gpu_rnn._rnn_bwd_lowering),
    ):
        played = functools.partial(lowering, Plugin, "cu")
        mlir.register_lowering(primitive, played, platform="cuda")
    yield
    mlir.register_lowering(rnn.rnn_fwd_p, gpu_rnn.cudnn_rnn_lowering, platform="cuda")
    mlir.register_lowering(rnn.rnn_bwd_p, gpu_rnn.cudnn_rnn_bwd_lowering, platform="cuda")


def test_a_step_on_a_gpu_is_nvidias_kernels_and_no_loop(lstm, batch, played_plugin):
    x, mask, weights = map(jnp.asarray, batch)

    def loss(lstm, x):
        return jnp.sum(lstm(x, mask) * weights)

    traced = jax.jit(jax.grad(loss)).trace(lstm, x)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    layers = len(lstm.forward)
    assert text.count("@cudnn_rnn_ffi") == text.count("@cudnn_rnn_bwd_ffi") == layers
    assert "stablehlo.while" not in text
    assert "stablehlo.while" in traced.lower(lowering_platforms=("cpu",)).as_text()


def has_gpu() -> bool:
    return any(device.platform == "gpu" for device in jax.devices())


@pytest.mark.skipif(not has_gpu(), reason="needs an NVIDIA GPU")
def test_nvidias_kernels_give_what_the_loop_gives():
    rng = np.random.default_rng(0)
    lstm = BidirectionalLstm(48, 64, 2, rngs=nnx.Rngs(0))
    x = jnp.asarray(rng.standard_normal((8, 200, 48)), jnp.float32)
    mask = jnp.arange(200) < jnp.array([200, 3, 0, 120, 1, 7, 64, 199])[:, None]
    weights = jnp.asarray(rng.standard_normal((8, 200, 128)), jnp.float32)
    with jax.default_matmul_precision("highest"):
        ours, theirs = (in_form(form, lstm, x, mask, weights) for form in ("cudnn", "side_by_side"))
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 * np.max(np.abs(other)))
