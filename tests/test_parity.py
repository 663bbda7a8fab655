"""Every hidden state against transformers' whole pipeline, its feature extractor and HubertModel.

Ours comes from what save_pretrained wrote, through the converter.

The reference computes in float64 from the same float32 weights and waveform, so that the bound is
on our rounding alone; transformers' own float32 result lies as far from it as ours does.
"""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from helpers import assert_close_to_scale
from torch_models import LARGE, SMALL, drawn_model

import daisy_jax
from daisy_jax.conversions.convert import convert

SHORTEST = (400, 401, 719, 720)  # one frame up to 719 samples, then two
EVEN, ODD = 8000, 24080  # 24 and 75 frames
SHAPES = {
    "base": (SMALL, (*SHORTEST, EVEN, ODD)),
    "base, odd positional kernel": (SMALL | {"num_conv_pos_embeddings": 15}, (720, ODD)),
    "large": (SMALL | LARGE, (400, EVEN)),
    "large, conv_bias": (SMALL | LARGE | {"conv_bias": True}, (*SHORTEST, EVEN, ODD)),
    "full-size base": ({}, (16000,)),
}
FULL = pytest.param("full-size base", marks=pytest.mark.slow("a model of full size"))


def _waveform(samples):
    """Noise with an offset; one of the lengths is quiet enough, -57 dBFS, to show an epsilon."""
    level = 0.0013 if samples == EVEN else 0.05
    noise = np.random.default_rng(samples).standard_normal(samples)
    return (level * (noise + 0.4)).astype(np.float32)


@pytest.mark.parametrize("shape", [*list(SHAPES)[:-1], FULL])
def test_hidden_states_are_those_of_transformers(shape, tmp_path):
    fields, lengths = SHAPES[shape]
    reference = drawn_model(**fields)
    reference.save_pretrained(tmp_path / "theirs")
    normalize = fields.get("feat_extract_norm") == "layer"
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=normalize)
    extractor.save_pretrained(tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "ours")
    model = daisy_jax.load(tmp_path / "ours")
    reference = reference.double()
    # One batch, in which all but the longest are padded; transformers gets each as it is.
    waveforms = [_waveform(samples) for samples in lengths]
    batch = daisy_jax.audio.pad_batch(waveforms)
    actual = daisy_jax.encode(model, *batch, return_hidden_states=True)
    for row, waveform in enumerate(waveforms):
        given = extractor(waveform, sampling_rate=16_000, return_tensors="pt")["input_values"]
        with torch.no_grad():
            desired = reference(given.double(), output_hidden_states=True)
        frames = desired.last_hidden_state.shape[1]
        assert len(desired.hidden_states) == model.config.num_layers + 1
        assert actual.num_frames[row] == frames
        ours = np.asarray(actual.hidden_states[row])[:, :frames]
        for layer, hidden in enumerate(desired.hidden_states):
            assert_close_to_scale(ours[layer], hidden[0])
        last = daisy_jax.final_norm(model, actual.last_hidden)
        assert_close_to_scale(last[row, :frames], desired.last_hidden_state[0])
