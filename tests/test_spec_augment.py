"""SpecAugment: what it masks, what it leaves alone."""

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np

from daisy_jax.tasks.spec_augment import SpecAugment, spans

MASKS = SpecAugment(warp=0, channel_masks=2, channel_width=5, time_masks=2, time_width=9)


def ones(frames=60, dim=24, rows=3):
    return np.ones((rows, frames, dim), np.float32), np.array([60, 31, 12], np.int32)


augment = jax.jit(MASKS.__call__)
draw_spans = jax.jit(spans, static_argnums=(1, 2, 4))


def test_masks_are_whole_channels_and_whole_frames_of_the_utterance():
    features, num_frames = ones()
    sizes = set()
    for seed in range(30):
        masked = np.asarray(augment(features, num_frames, jax.random.key(seed)))
        for row, count in enumerate(num_frames.tolist()):
            channels = ~masked[row].any(axis=0)
            times = ~masked[row].any(axis=1)
            assert channels.sum() <= 2 * 5
            assert times.sum() <= min(2 * 9, count)
            assert not times[count:].any()
            expected = ~(channels[None] | times[:, None])
            np.testing.assert_array_equal(masked[row], expected)
            sizes.add((channels.sum(), times.sum()))
    assert len(sizes) > 20  # widths and places are drawn


def test_rows_are_drawn_apart_and_a_key_repeats():
    features, _ = ones()
    num_frames = np.full(3, 60, np.int32)
    first, again = (np.asarray(augment(features, num_frames, jax.random.key(7))) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert np.any(first[0] != first[1])


def test_a_warp_keeps_the_ends_the_order_and_the_padding():
    warp = SpecAugment(warp=5, channel_masks=0, time_masks=0)
    ramp = np.broadcast_to(np.arange(80, dtype=np.float32)[:, None], (80, 2))[None]
    run = jax.jit(warp.__call__)
    moved = []
    for seed in range(30):
        warped = np.asarray(run(ramp, np.array([60], np.int32), jax.random.key(seed)))[0, :, 0]
        assert warped[0] == 0
        np.testing.assert_allclose(warped[59], 59, atol=1e-4)
        assert np.all(np.diff(warped[:60]) > 0)
        np.testing.assert_array_equal(warped[60:], np.arange(60, 80))
        moved.append(np.abs(warped[:60] - np.arange(60)).max())
    assert max(moved) <= 5 + 1e-4
    assert max(moved) > 2
    short = run(ramp, np.array([12], np.int32), jax.random.key(0))  # too short to be warped
    np.testing.assert_array_equal(short, ramp)


@hypothesis.given(st.integers(0, 40), st.integers(0, 10_000))
def test_spans_lie_inside(length, seed):
    inside = np.asarray(draw_spans(jax.random.key(seed), 3, 10, np.int32(length), 40))
    assert not inside[length:].any()
    assert inside.sum() <= 30
