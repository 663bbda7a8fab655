"""Short-time spectra and their inverse against torch's."""

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

from daisy_jax.tasks.spectra import Stft

SETTINGS = [Stft(512, 512, 320), Stft(512, 400, 160), Stft(1024, 1024, 320)]
LENGTHS = (8_000, 3_217, 5_120, 700)
# One program for each setting and number of rows.
forward = jax.jit(Stft.forward, static_argnums=0)
inverse = jax.jit(Stft.inverse, static_argnums=(0, 3))


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    waveform = rng.standard_normal((4, 8_000)).astype(np.float32)
    waveform *= np.arange(8_000) < np.array(LENGTHS)[:, None]
    return waveform, np.array(LENGTHS, np.int32)


@pytest.mark.parametrize("stft", SETTINGS)
def test_each_row_has_the_spectrum_torch_gives_it_alone(stft, batch):
    torch = pytest.importorskip("torch")
    waveform, lengths = batch
    spectra = np.asarray(forward(stft, waveform, lengths))
    for row, length in enumerate(LENGTHS):
        theirs = torch.stft(
            torch.tensor(waveform[row, :length], dtype=torch.float64),
            stft.size,
            stft.hop,
            stft.window,
            torch.hann_window(stft.window, dtype=torch.float64),
            return_complex=True,
        ).T.numpy()
        assert len(theirs) == stft.frames(length)
        np.testing.assert_allclose(spectra[row, : len(theirs)], theirs, atol=2e-4)
        assert not np.any(spectra[row, len(theirs) :])


@pytest.mark.parametrize("stft", SETTINGS)
def test_the_inverse_is_that_of_torch(stft, batch):
    torch = pytest.importorskip("torch")
    waveform, lengths = batch
    rng = np.random.default_rng(1)
    spectra = np.array(forward(stft, waveform, lengths))
    spectra *= rng.uniform(0, 1, spectra.shape)  # no longer the spectra of anything
    found = np.asarray(inverse(stft, spectra, lengths, 8_000))
    for row, length in enumerate(LENGTHS):
        theirs = torch.istft(
            torch.tensor(spectra[row, : stft.frames(length)].T),
            stft.size,
            stft.hop,
            stft.window,
            torch.hann_window(stft.window),
            length=length,
        ).numpy()
        # Behind the middle of the last frame torch divides by next to nothing.
        reach = (length // stft.hop) * stft.hop
        np.testing.assert_allclose(found[row, :reach], theirs[:reach], atol=1e-4)
        assert not np.any(found[row, length:])


@pytest.mark.parametrize("stft", SETTINGS)
@pytest.mark.parametrize("left", [0, 1, 100, 159, 255, 300, 319])
def test_there_is_no_impulse_at_the_end(stft, left):
    rng = np.random.default_rng(left)
    length = 4_800 + left
    waveform = rng.standard_normal((1, 8_000)).astype(np.float32)
    waveform[:, length:] = 0
    lengths = np.full(1, length, np.int32)
    spectra = np.array(forward(stft, waveform, lengths))
    spectra *= rng.uniform(0, 1, spectra.shape)
    found = np.abs(np.asarray(inverse(stft, spectra, lengths, 8_000)))[0, :length]
    assert found[4_800:].max(initial=0) <= 4 * found[:4_800].max()


@hypothesis.given(st.integers(600, 4_000), st.sampled_from(SETTINGS))
def test_a_waveform_comes_back(length, stft):
    waveform = np.random.default_rng(length).standard_normal((1, 8_000)).astype(np.float32)
    waveform[:, length:] = 0
    lengths = np.full(1, length, np.int32)
    back = np.asarray(inverse(stft, forward(stft, waveform, lengths), lengths, 8_000))
    reach = (length // stft.hop) * stft.hop
    np.testing.assert_allclose(back[:, :reach], waveform[:, :reach], atol=1e-4)
