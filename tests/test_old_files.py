"""Run folders and model folders of an earlier version: numbers are those that it stored.

The files and how they were made: data/old_run/README.md.
"""

import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import environment
from helpers import assert_close_to_scale
from safetensors.numpy import load_file

import daisy_jax

OLD = pathlib.Path(__file__).parent / "data" / "old_run"
SCRIPT = pathlib.Path(__file__).parent.parent / "train" / "branches.py"
OPTIONS = (
    *["--model", "model", "--data", "speech", "--output", "run", "--splits", "train"],
    *["--validation", "dev", "--steps", "4", "--save-every", "2", "--batch-size", "2"],
    *["--crop-seconds", "0.25", "--log-every", "1", "--learning-rate", "0.01"],
    *["--accelerator=cpu", "--resume"],
)


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    return dict(np.load(OLD / "expected.npz"))


@pytest.mark.slow("compiles encode for every output and the labels, once more")
def test_an_old_model_folder_is_loaded(expected):
    model = daisy_jax.load(OLD / "model")
    assert model.calibration.dataset == "made entropies"
    np.testing.assert_array_equal(model.calibration.entropy, expected["calibration_entropy"])
    assert_close_to_scale(model.calibration.mean_entropy, expected["mean_entropy"])

    clips = [daisy_jax.audio.load(path) for path in sorted((OLD / "speech").rglob("*.flac"))]
    batch, lengths = daisy_jax.audio.pad_batch(clips)
    weights = np.float32([0.3, -0.2, 0.5, 0.1])
    out = daisy_jax.encode(model, batch, lengths, threshold=0.21, layer_weights=weights)
    assert set(expected["exit_layer"]) == {1, 2, 3}
    for name in ("exit_layer", "forced"):
        np.testing.assert_array_equal(getattr(out, name), expected[name])
    seen = np.isfinite(expected["entropy"])
    np.testing.assert_array_equal(np.isfinite(out.entropy), seen)
    assert_close_to_scale(np.asarray(out.entropy)[seen], expected["entropy"][seen])
    valid = np.arange(out.last_hidden.shape[1]) < np.asarray(out.num_frames)[:, None]
    for name in ("last_hidden", "pooled"):
        assert_close_to_scale(np.asarray(getattr(out, name))[valid], expected[name][valid])
    labels = daisy_jax.frame_labels(model, batch, lengths)
    np.testing.assert_array_equal(labels, expected["labels"])


@pytest.mark.slow("trains from end to end, in a process")
def test_an_old_run_is_resumed(expected, tmp_path):
    for name in ("model", "speech", "run"):
        shutil.copytree(OLD / name, tmp_path / name)
    done = subprocess.run(
        [sys.executable, SCRIPT, *OPTIONS],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    ours, theirs = (
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for path in (tmp_path / "run" / "metrics.jsonl", OLD / "expected-metrics.jsonl")
    )
    assert [line["step"] for line in theirs] == [1, 2, 2, 3, 4, 4]
    for line, other in zip(ours, theirs, strict=True):
        assert line.keys() == other.keys()
        for name in line.keys() - {"steps_per_second", "audio_per_second"}:
            np.testing.assert_allclose(line[name], other[name], rtol=1e-5, err_msg=name)
    assert ours[:3] == theirs[:3]  # what was logged before is not computed again

    trained = load_file(tmp_path / "run" / "model" / "model.safetensors")
    untouched = load_file(OLD / "model" / "model.safetensors")
    assert trained.keys() == untouched.keys() | {"calibration.agreement"}
    agreement = trained.pop("calibration.agreement")  # which it kept none of
    assert agreement.shape == trained["calibration.entropy"].shape
    assert np.all(agreement[:, -1] == 1)
    for name, tensor in trained.items():
        if f"trained.{name}" in expected:
            wanted = expected[f"trained.{name}"]
            tolerance = 1e-3 if name.startswith("calibration") else 1e-5  # the first: float16
            np.testing.assert_allclose(
                tensor.astype(np.float32), wanted, rtol=tolerance, atol=1e-6, err_msg=name
            )
        else:
            np.testing.assert_array_equal(tensor, untouched[name], err_msg=name)
    assert daisy_jax.load(tmp_path / "run" / "model").calibration.dataset == "speech/dev"
