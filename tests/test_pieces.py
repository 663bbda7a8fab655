"""The front end in pieces: the same features as at once, in little memory, and not for padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CONFIGS
from flax import nnx
from helpers import assert_close_to_scale
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from daisy_jax import HubertConfig
from daisy_jax.audio import frame_count
from daisy_jax.model import pieces
from daisy_jax.model.feature_encoder import FeatureEncoder
from daisy_jax.model.forms import one_form


def compiled(form, encoder, waveform, lengths):
    with one_form("front_end", form):
        run = jax.jit(lambda encoder, waveform, lengths: encoder(waveform, lengths))
        return run.lower(encoder, waveform, lengths).compile()


@pytest.mark.parametrize("name", ["base", "large"])
@settings(max_examples=15)
@given(
    samples=st.integers(400, 6000),
    shares=st.lists(st.floats(0, 1), min_size=1, max_size=5),
    piece_bytes=st.integers(2_000, 200_000),
    seed=st.integers(0, 9),
)
def test_pieces_give_what_the_whole_gives(name, samples, shares, piece_bytes, seed):
    encoder = FeatureEncoder(CONFIGS[name], rngs=nnx.Rngs(0))
    lengths = np.array([round(share * samples) for share in shares], np.int32)
    waveform = np.random.default_rng(seed).standard_normal((len(shares), samples), np.float32)
    scale = 10 ** np.linspace(-2, 2, len(shares), dtype=np.float32)
    waveform = (waveform + np.linspace(0, 1, samples, dtype=np.float32)) * scale[:, None]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pieces, "PIECE_BYTES", piece_bytes)
        in_pieces = compiled("in_pieces", encoder, waveform, lengths)
    actual = in_pieces(encoder, waveform, lengths)
    desired = compiled("one_dimensional", encoder, waveform, lengths)(encoder, waveform, lengths)
    assert actual.shape == desired.shape
    for row, frames in enumerate(frame_count(lengths)):
        assert_close_to_scale(actual[row, :frames], desired[row, :frames])


@given(
    rows=st.integers(0, 40),
    row_bytes=st.integers(0, 2**31),
    piece_bytes=st.integers(1, 2**25),
)
def test_plans_hold_all_pieces_and_keep_to_the_size(rows, row_bytes, piece_bytes):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pieces, "PIECE_BYTES", piece_bytes)
        planned = pieces.plan(rows, row_bytes)
    assert planned.turns * planned.together >= rows * planned.pieces
    assert (planned.turns - 1) * planned.together < max(1, rows * planned.pieces)
    largest = planned.together * row_bytes / planned.pieces
    assert largest <= piece_bytes or planned.together == 0


def test_windows_are_those_of_the_whole():
    waveform = np.random.default_rng(0).standard_normal((2, 57)).astype(np.float32)
    whole = np.lib.stride_tricks.sliding_window_view(waveform, 9, axis=1)[:, ::4]
    cut = np.asarray(pieces.windows(jnp.asarray(waveform), 3, 5, hop=4, window=9))
    assert cut.shape == (2, 3, 25)
    seen = np.lib.stride_tricks.sliding_window_view(cut, 9, axis=2)[:, :, ::4].reshape(2, 15, 9)
    np.testing.assert_array_equal(seen[:, : whole.shape[1]], whole)
    assert not np.any(seen[:, -1, -3:])  # behind the end


def test_padding_is_left_out(monkeypatch):
    """Pieces behind the last valid frame are zero, where the whole holds what a bias gives."""
    encoder = FeatureEncoder(CONFIGS["base"], rngs=nnx.Rngs(0))
    encoder.group_norm.bias[...] += 1
    waveform = np.ones((3, 8000), np.float32)
    lengths = np.array([8000, 0, 3000], np.int32)
    frames = frame_count(8000)
    monkeypatch.setattr(pieces, "PIECE_BYTES", 5 * 64 * 16 * 4)  # five frames
    out = compiled("in_pieces", encoder, waveform, lengths)(encoder, waveform, lengths)
    computed = np.any(np.asarray(out) != 0, axis=2)
    assert computed[0].all()
    assert not computed[1].any()
    np.testing.assert_array_equal(computed[2], np.arange(frames) < 10)  # 9 frames are valid
    whole = compiled("one_dimensional", encoder, waveform, lengths)(encoder, waveform, lengths)
    assert np.all(np.any(np.asarray(whole) != 0, axis=2))


def test_memory_does_not_grow_with_the_batch():
    """Of HuBERT Base: what the program takes beside its output and a copy of its input."""
    encoder = nnx.eval_shape(lambda: FeatureEncoder(HubertConfig.base(), rngs=nnx.Rngs(0)))

    def temporary_bytes(rows, seconds):
        waveform = jax.ShapeDtypeStruct((rows, seconds * 16_000), np.float32)
        lengths = jax.ShapeDtypeStruct((rows,), np.int32)
        program = compiled("in_pieces", encoder, waveform, lengths)
        copies = waveform.size + rows * frame_count(seconds * 16_000) * 512
        return program.memory_analysis().temp_size_in_bytes - 4 * copies

    assert temporary_bytes(16, 30) < 2 * temporary_bytes(1, 5)


@pytest.mark.parametrize("kind", ["Auto", "Explicit", "Manual"])
def test_rows_spread_over_devices(kind, monkeypatch):
    """Under all of JAX's ways to spread a batch: by itself, by types, and by hand."""
    encoder = FeatureEncoder(CONFIGS["base"], rngs=nnx.Rngs(0))
    waveform = np.random.default_rng(0).standard_normal((4, 5000), np.float32)
    lengths = np.array([5000, 0, 3000, 4999], np.int32)
    monkeypatch.setattr(pieces, "PIECE_BYTES", 20_000)
    mesh_kind = AxisType.Explicit if kind == "Explicit" else AxisType.Auto
    mesh = jax.make_mesh((4,), ("data",), axis_types=(mesh_kind,))
    rows = NamedSharding(mesh, PartitionSpec("data"))

    def run(waveform, lengths):
        with one_form("front_end", "in_pieces"):
            return encoder(waveform, lengths)

    if kind == "Manual":
        specs = {"in_specs": PartitionSpec("data"), "out_specs": PartitionSpec("data")}
        run = jax.shard_map(run, mesh=mesh, **specs)
    with jax.set_mesh(mesh):
        actual = jax.jit(run)(*jax.device_put((waveform, lengths), rows))
    desired = compiled("one_dimensional", encoder, waveform, lengths)(encoder, waveform, lengths)
    for row, frames in enumerate(frame_count(lengths)):
        assert_close_to_scale(np.asarray(actual)[row, :frames], desired[row, :frames])
