"""The evaluation scripts, on made audio and a small random model."""

import json
import pathlib
import runpy
import sys

import jax
import numpy as np
import pytest
import soundfile
from flax import nnx

import daisy_jax
from daisy_jax.data.targets import mfcc

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = daisy_jax.HubertConfig(
    num_layers=3,
    dim=16,
    ffn_dim=32,
    num_heads=2,
    conv_dim=8,
    pos_conv_kernel=8,
    pos_conv_groups=2,
    num_clusters=5,
    head_dim=8,
    num_classes=5,
)


@pytest.fixture(scope="module")
def model():
    return jax.jit(lambda: daisy_jax.Hubert(CONFIG, rngs=nnx.Rngs(0)))()


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speech")
    rng = np.random.default_rng(0)
    for number in range(3):
        samples = 0.1 * rng.standard_normal(8_000 + 1_000 * number)
        soundfile.write(folder / f"{number}.wav", samples, 16_000)
    return folder


def run(script, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [script, *map(str, arguments), "--accelerator=cpu"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    return end.value.code


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_exits_agree_with_encode(model, speech, tmp_path, monkeypatch, capsys):
    waveforms = [daisy_jax.audio.load(path) for path in sorted(speech.iterdir())]
    batch = daisy_jax.audio.pad_batch(waveforms)
    calibrated = model.replace(calibration=daisy_jax.calibrate(model, [batch]))
    daisy_jax.save(calibrated, tmp_path / "model")
    calibrated = daisy_jax.load(tmp_path / "model")
    arguments = ("--model", tmp_path / "model", "--data", speech, "--noise", speech)
    assert run("eval/exits.py", monkeypatch, *arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    clean = next(cells(line) for line in lines if line.startswith("| clean"))
    full = daisy_jax.encode(model, *batch, threshold=-np.inf)
    expected = np.mean(np.asarray(full.entropy), axis=0)
    np.testing.assert_allclose([float(cell) for cell in clean[1:4]], expected, atol=6e-4)
    for ratio in (0.7, 0.76, 1.0):
        row = next(cells(line) for line in lines if line.startswith(f"| {ratio:g} |"))
        threshold = daisy_jax.exit_threshold(calibrated.calibration.mean_entropy, ratio)
        exits = daisy_jax.encode(model, *batch, threshold=threshold).exit_layer
        assert float(row[2].split(" ")[0]) == pytest.approx(float(np.mean(exits)), abs=6e-3)
        assert len(row) == 6


def test_exits_without_calibration_is_one_line(model, speech, tmp_path, monkeypatch, capsys):
    daisy_jax.save(model, tmp_path / "model")
    arguments = ("--model", tmp_path / "model", "--data", speech)
    assert run("eval/exits.py", monkeypatch, *arguments) == 1
    assert capsys.readouterr().err.startswith("error: this model has no calibration")


def test_pretraining_accuracy_is_one_where_the_model_is_always_right(
    model, speech, tmp_path, monkeypatch, capsys
):
    # One centroid: every frame has label 0, and a head with one cluster predicts nothing else.
    single = daisy_jax.HubertConfig(**{**vars(CONFIG), "num_clusters": 1, "num_classes": 0})
    one = jax.jit(lambda: daisy_jax.Hubert(single, rngs=nnx.Rngs(0)))()
    daisy_jax.save(one, tmp_path / "model")
    centroid = mfcc(daisy_jax.audio.load(speech / "0.wav")).mean(axis=0, keepdims=True)
    np.savez(tmp_path / "targets.npz", centroids=centroid, labels=np.zeros(1, np.int16))
    (tmp_path / "config.json").write_text(json.dumps({"targets_from": "", "targets_layer": 1}))
    assert run("eval/pretraining.py", monkeypatch, "--run", tmp_path, "--data", speech) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[1].split(" ")[0] for line in lines[1:]] == ["1.000"] * 3


def test_utterances_leave_where_they_are_forced_to(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "eval")
    from forced_exits import Forced

    forced = Forced("tiny", "float32")
    assert forced.spread(1) == [6]
    assert np.mean(forced.spread(16)) == 6
    wanted = [*range(1, 13), 6]
    waveform = 0.1 * np.random.default_rng(0).standard_normal((13, 2000), np.float32)
    out = daisy_jax.encode(forced.model, waveform, threshold=forced.thresholds(wanted))
    assert out.exit_layer.tolist() == wanted
    assert not out.forced.any()


def test_speed_prints_and_stores_every_measurement(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(ROOT / "eval")
    arguments = ("--size", "tiny", "--batches", 1, 2, "--seconds", 0.5, "--runs", 1)
    arguments += ("--layer-runs", 1)
    assert run("eval/speed.py", monkeypatch, *arguments, "--output", tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [cells(line) for line in lines if line.startswith("| ")]
    assert [row[0] for row in rows if row[0].endswith("0.5 s")] == ["1 x 0.5 s", "2 x 0.5 s"]
    result = json.loads((tmp_path / "speed.json").read_text())
    assert [row["layer"] for row in result["layers"]] == list(range(1, 13))
    fewer = [row["fewer"] for row in result["layers"]]
    assert fewer == sorted(fewer, reverse=True)
    for row in result["batches"]:
        assert set(row["times"]) == {"front end", "full depth", "all branches", "exits"}
        assert min(row["times"].values()) > 0
    assert result["versions"]["jax"] == jax.__version__
