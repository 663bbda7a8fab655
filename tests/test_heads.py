"""Downstream heads and their losses against torch, hand-computed numbers and properties."""

import dataclasses
import functools
import itertools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from daisy_jax.tasks.asr import CHARACTERS, AsrHead, AsrSettings, asr_loss, greedy_text, spell
from daisy_jax.tasks.masks import MaskHead, MaskSettings, mask_loss, separate
from daisy_jax.tasks.sid import SidHead, SidSettings, sid_loss
from daisy_jax.tasks.spectra import Stft

FRAMES = np.array([24, 15, 0, 9], np.int32)


@pytest.fixture(scope="module")
def features():
    rng = np.random.default_rng(0)
    return rng.standard_normal((4, 24, 12)).astype(np.float32)


@functools.partial(jax.jit, static_argnames="steps")
def run_mask_head(head, features, num_frames, lengths, key=None, *, steps):
    """The masks, from one program; their number is part of it."""
    return head(features, num_frames, lengths, steps, key)


# Of functions that the library compiles as parts of whole steps; several tests share programs.
run_head = jax.jit(lambda head, *arguments: head(*arguments))
run_asr_loss = jax.jit(asr_loss)
run_mask_loss = jax.jit(jax.value_and_grad(mask_loss))
run_separate = jax.jit(separate)


# ---- recognition ----


@pytest.fixture(scope="module")
def asr():
    return AsrHead(12, AsrSettings(10, 8, 2, 0.2), rngs=nnx.Rngs(0))


def test_characters_are_fairseqs_letters_behind_four_special_entries():
    assert len(CHARACTERS) == len(set(CHARACTERS)) == 32
    assert CHARACTERS[:6] == ("<s>", "<pad>", "</s>", "<unk>", "|", "E")


def test_spelling_by_hand():
    spelt = [CHARACTERS[place] for place in spell("it's 5")]
    assert spelt == ["I", "T", "'", "S", "|", "<unk>", "|", "</s>"]
    assert spell("").tolist() == [CHARACTERS.index("</s>")]


def test_greedy_decoding_by_hand():
    path = ["<s>", "H", "H", "<s>", "I", "I", "|", "|", "<s>", "|", "L", "<s>", "L", "</s>", "</s>"]
    best = np.array([CHARACTERS.index(character) for character in path])
    assert greedy_text(best) == "HI LL"
    assert greedy_text(np.zeros(0, np.int32)) == ""


@hypothesis.given(st.lists(st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ'", min_size=1), max_size=6))
def test_what_is_spelt_can_be_read_again(words):
    letters = spell(" ".join(words))
    frames = [frame for letter in letters for frame in (letter, letter, 0)]
    assert greedy_text(np.array(frames)) == " ".join(words)


def test_recognition_of_an_utterance_does_not_depend_on_its_batch(asr, features):
    together = np.asarray(run_head(asr, features, FRAMES))
    assert together.shape == (4, 24, 32)
    for row, count in enumerate(FRAMES):
        if count:
            one = slice(row, row + 1)
            alone = np.asarray(run_head(asr, features[one, :count], FRAMES[one]))
            np.testing.assert_allclose(together[row, :count], alone[0], atol=1e-5)


def test_augmentation_and_dropout_are_for_training_alone(asr, features):
    plain, again = (np.asarray(run_head(asr, features, FRAMES)) for _ in range(2))
    np.testing.assert_array_equal(plain, again)
    drawn = [np.asarray(run_head(asr, features, FRAMES, jax.random.key(n))) for n in range(2)]
    assert np.abs(drawn[0] - drawn[1]).max() > 1e-3
    assert np.abs(drawn[0] - plain).max() > 1e-3


def test_a_linear_recogniser_hears_each_frame_by_itself(features):
    head = AsrHead(12, AsrSettings(10, 0, 0, 0.0), rngs=nnx.Rngs(0))
    first, last = (np.asarray(layer.kernel[...]) for layer in (head.projection, head.output))
    matrix = first.astype(np.float64) @ last
    assert np.linalg.matrix_rank(matrix) == 10
    wanted = np.asarray(features, np.float64) @ matrix  # biases are zero at first
    np.testing.assert_allclose(run_head(head, features, FRAMES), wanted, atol=1e-5)


def test_empty_rows_do_not_change_the_recognition_loss(asr, features):
    texts = np.zeros((4, 6), np.int32)
    texts[0, :3], texts[1, :2], texts[3, :1] = [5, 6, 2], [7, 2], [2]
    kept = np.array([0, 1, 3])
    whole = run_asr_loss(asr, features, FRAMES, texts, None)
    part = run_asr_loss(asr, features[kept], FRAMES[kept], texts[kept], None)
    assert float(whole) == pytest.approx(float(part), rel=1e-5)


# ---- speakers ----


def test_speaker_scores_and_loss_by_hand(features):
    head = SidHead(12, 5, SidSettings(7), rngs=nnx.Rngs(0))
    head.projection.bias = nnx.Param(jnp.asarray(np.linspace(-1, 1, 7, dtype=np.float32)))
    logits = np.asarray(run_head(head, features, FRAMES))
    speakers = np.array([4, 0, 2, 1], np.int32)
    x = np.asarray(features, np.float64)
    total = []
    for row, count in enumerate(FRAMES):
        if not count:
            continue
        projection = head.projection
        weights, bias = (np.asarray(p[...]) for p in (projection.kernel, projection.bias))
        mean = (x[row, :count] @ weights + bias).mean(axis=0)
        wanted = mean @ np.asarray(head.output.kernel[...], np.float64)
        np.testing.assert_allclose(logits[row], wanted, atol=1e-5)
        total.append(np.log(np.exp(wanted).sum()) - wanted[speakers[row]])
    loss = jax.jit(sid_loss)(head, features, FRAMES, speakers)
    assert float(loss) == pytest.approx(np.mean(total), rel=1e-5)


# ---- masks ----

LENGTHS = np.array([8_000, 5_200, 0, 3_300], np.int32)
MASKS = {
    "superb": MaskSettings(6, 2, 0.0, Stft(512, 512, 320), "relu", "phase", "linear", "squared"),
    "minisuperb": MaskSettings(
        6, 2, 0.0, Stft(512, 400, 160), "sigmoid", "magnitude", "log1p", "absolute"
    ),
}


@pytest.fixture(scope="module", params=MASKS)
def mask_head(request):
    return MaskHead(12, 2, MASKS[request.param], rngs=nnx.Rngs(1))


@pytest.fixture(scope="module")
def mixtures():
    rng = np.random.default_rng(2)
    sources = rng.standard_normal((4, 2, 8_000)).astype(np.float32)
    sources[:, 1] = np.roll(sources[:, 0], 3, axis=-1) * 0.4 + sources[:, 1] * 0.3
    sources *= np.arange(8_000) < LENGTHS[:, None, None]
    return sources.sum(axis=1), sources


def test_the_mask_loss_is_that_of_torch_spectra_and_every_permutation(
    mask_head, mixtures, features
):
    torch = pytest.importorskip("torch")
    mixture, sources = mixtures
    settings = mask_head.settings
    loss, _ = run_mask_loss(mask_head, features, FRAMES, mixture, sources, LENGTHS, None)
    steps = settings.stft.frames(8_000)
    masks = np.asarray(run_mask_head(mask_head, features, FRAMES, LENGTHS, steps=steps), np.float64)

    def spectrum(waveform):
        stft = settings.stft
        window = torch.hann_window(stft.window, dtype=torch.float64)
        waveform = torch.tensor(waveform, dtype=torch.float64)
        found = torch.stft(waveform, stft.size, stft.hop, stft.window, window, return_complex=True)
        return found.T.numpy()

    means = []
    for row, length in enumerate(LENGTHS):
        if not length:
            continue
        mixed = spectrum(mixture[row, :length])
        scores = []
        for order in itertools.permutations(range(2)):
            total = 0.0
            for source, estimate in enumerate(order):
                true = spectrum(sources[row, source, :length])
                target = np.abs(true)
                if settings.target == "phase":
                    cosine = np.cos(np.angle(true) - np.angle(mixed))
                    target = np.maximum(target * cosine, 0)
                magnitude = np.abs(mixed)
                if settings.scale == "log1p":
                    magnitude, target = np.log1p(magnitude), np.log1p(target)
                difference = np.abs(masks[row, estimate, : len(mixed)] * magnitude - target)
                power = 2 if settings.distance == "squared" else 1
                total += np.sum(difference**power) / len(mixed) / 2
            scores.append(total)
        means.append(min(scores))
    assert float(loss) == pytest.approx(np.mean(means), rel=1e-4)


def test_masks_of_one_give_the_mixture_back(features, mixtures):
    head = MaskHead(12, 2, MASKS["minisuperb"], rngs=nnx.Rngs(1))
    bias = np.full(head.output.bias.shape, 100, np.float32)
    head.output.bias = nnx.Param(jnp.asarray(bias))
    mixture, _ = mixtures
    found = np.asarray(run_separate(head, features, FRAMES, mixture, LENGTHS))
    for row, length in enumerate(LENGTHS):
        reach = length // 160 * 160
        for source in range(2):
            np.testing.assert_allclose(found[row, source, :reach], mixture[row, :reach], atol=1e-4)
            assert not np.any(found[row, source, length:])


@pytest.mark.parametrize("value", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("name", MASKS)
def test_constant_masks_act_on_the_magnitudes_that_were_learned(features, mixtures, name, value):
    torch = pytest.importorskip("torch")
    head = MaskHead(12, 2, MASKS[name], rngs=nnx.Rngs(1))
    bias = value if name == "superb" else np.log(value / (1 - value))  # behind ReLU or sigmoid
    head.output.kernel = nnx.Param(jnp.zeros_like(head.output.kernel))
    head.output.bias = nnx.Param(jnp.full_like(head.output.bias, bias))
    stft, (mixture, _) = head.settings.stft, mixtures
    window = torch.hann_window(stft.window, dtype=torch.float64)
    fields = stft.size, stft.hop, stft.window, window
    found = np.asarray(run_separate(head, features, FRAMES, mixture, LENGTHS))
    for row, length in enumerate(LENGTHS):
        if not length:
            continue
        waveform = torch.tensor(mixture[row, :length], dtype=torch.float64)
        spectrum = torch.stft(waveform, *fields, return_complex=True)
        magnitude = value * spectrum.abs()
        if name == "minisuperb":
            magnitude = (1 + spectrum.abs()) ** value - 1
        estimate = torch.polar(magnitude, spectrum.angle())
        wanted = torch.istft(estimate, *fields, length=int(length)).numpy()
        reach = length // stft.hop * stft.hop  # behind it torch divides by next to nothing
        for source in range(2):
            np.testing.assert_allclose(found[row, source, :reach], wanted[:reach], atol=2e-5)


def test_masks_of_an_utterance_do_not_depend_on_its_batch(mask_head, features, mixtures):
    mixture, _ = mixtures
    together = np.asarray(run_separate(mask_head, features, FRAMES, mixture, LENGTHS))
    for row, length in enumerate(LENGTHS):
        if length:
            one = slice(row, row + 1)
            cut = features[one, : FRAMES[row]], FRAMES[one], mixture[one, :length], LENGTHS[one]
            alone = np.asarray(run_separate(mask_head, *cut))
            np.testing.assert_allclose(together[row, :, :length], alone[0], atol=1e-4)


def test_dropout_is_for_training_and_lies_behind_the_last_layer_too(features, mixtures):
    settings = dataclasses.replace(MASKS["superb"], layers=1, dropout=0.5)
    head = MaskHead(12, 1, settings, rngs=nnx.Rngs(1))
    plain, *drawn = (
        np.asarray(run_mask_head(head, features, FRAMES, LENGTHS, key, steps=26))
        for key in (None, jax.random.key(0), jax.random.key(1))
    )
    assert np.abs(drawn[0] - plain).max() > 1e-3
    assert np.abs(drawn[0] - drawn[1]).max() > 1e-3


def test_gradients_of_mask_losses_are_finite_for_silence(mask_head, features):
    silence = np.zeros((4, 8_000), np.float32), np.zeros((4, 2, 8_000), np.float32)
    loss, gradient = run_mask_loss(mask_head, features, FRAMES, *silence, LENGTHS, None)
    assert np.isfinite(loss)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))
