"""What others may add without touching the package, each in a few lines: an exit criterion."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import SMALL, random_model, speech_like

from daisy_jax import audio, encode
from daisy_jax.model.hubert import embed
from daisy_jax.model.layer_loops import tapped_layers

# ---- an exit criterion ----

FEW = dataclasses.replace(SMALL, num_classes=3)  # so that labels are often the same


@dataclasses.dataclass(frozen=True)
class SameLabel:
    """0 where an utterance's most frequent label is that of the layer before, else 1."""

    classes: int

    def start(self, batch: int) -> Any:
        return jnp.full(batch, -1, jnp.int32)

    def __call__(self, logits, frame_mask, remembered):
        votes = jax.nn.one_hot(jnp.argmax(logits, axis=-1), self.classes, dtype=jnp.float32)
        votes = jnp.sum(votes * frame_mask[..., None].astype(jnp.float32), axis=1)
        label = jnp.argmax(votes, axis=-1).astype(jnp.int32)
        return (label != remembered).astype(jnp.float32), label


@pytest.fixture(scope="module")
def batch():
    return audio.pad_batch(speech_like([9_000, 6_000, 8_100, 3_000, 399, 7_000]))


@pytest.fixture(scope="module")
def model():
    return random_model(FEW, seed=1)


def labels_by_hand(model, waveform, lengths):
    """Each utterance's most frequent label at each layer: int [layers, batch]."""
    embedded = embed(model, jnp.asarray(waveform), jnp.asarray(lengths))
    _, tapped = tapped_layers(model, embedded)
    found = []
    for layer in range(SMALL.num_layers):
        branch = jax.tree.map(lambda leaf, layer=layer: leaf[layer], model.branches)
        chosen = np.asarray(jnp.argmax(branch(tapped[layer]), axis=-1))
        counted = [
            np.bincount(row[: audio.frame_count(int(n))], minlength=FEW.num_classes).argmax()
            for row, n in zip(chosen, lengths, strict=True)
        ]
        found.append(counted)
    return np.asarray(found)


@pytest.mark.parametrize("jitted", [False, True])
def test_a_criterion_of_ones_own_decides_where_utterances_leave(model, batch, jitted):
    waveform, lengths = batch
    criterion = SameLabel(FEW.num_classes)

    def run(model, waveform, lengths):
        return encode(model, waveform, lengths, threshold=0.5, criterion=criterion)

    out = (jax.jit(run) if jitted else run)(model, waveform, lengths)
    labels = labels_by_hand(model, waveform, lengths)
    same = np.concatenate([np.zeros((1, len(lengths)), bool), labels[1:] == labels[:-1]])
    wanted = np.where(same.any(axis=0), same.argmax(axis=0) + 1, SMALL.num_layers)
    heard = lengths >= 400
    np.testing.assert_array_equal(out.exit_layer, np.where(heard, wanted, 0))
    np.testing.assert_array_equal(out.forced, heard & ~same.any(axis=0))
    assert len(set(wanted[heard].tolist())) > 1
    for row in np.flatnonzero(heard):
        reached = wanted[row]
        np.testing.assert_array_equal(out.entropy[row, :reached], ~same[:reached, row])


def test_what_is_remembered_follows_its_utterance(model, batch):
    waveform, lengths = batch
    criterion = SameLabel(FEW.num_classes)
    whole = encode(model, waveform, lengths, threshold=0.5, criterion=criterion)
    for row in range(len(lengths)):
        alone = encode(
            model,
            waveform[row : row + 1],
            lengths[row : row + 1],
            threshold=0.5,
            criterion=criterion,
        )
        assert alone.exit_layer[0] == whole.exit_layer[row]
    layers = np.array([True, False, True, True])
    some = encode(model, waveform, lengths, threshold=0.5, allowed=layers, criterion=criterion)
    assert set(np.asarray(some.exit_layer)[lengths >= 400].tolist()) <= {1, 3, 4}
    batches = jax.vmap(
        lambda waveform, lengths: (
            encode(model, waveform, lengths, threshold=0.5, criterion=criterion).exit_layer
        )
    )(np.stack([waveform, waveform[::-1]]), np.stack([lengths, lengths[::-1]]))
    np.testing.assert_array_equal(batches[0], whole.exit_layer)
    np.testing.assert_array_equal(batches[1], whole.exit_layer[::-1])
