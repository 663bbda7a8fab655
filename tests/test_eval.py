"""The evaluation scripts, on made audio and a small random model."""

import dataclasses
import json
import sys

import jax
import numpy as np
import pytest
import soundfile
from flax import nnx
from programs import ROOT, run, run_here

import daisy_jax
from daisy_jax import InputError
from daisy_jax.study.forced_exits import Forced
from daisy_jax.training.cluster_targets import mfcc

CPU = "--accelerator=cpu"
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


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.slow("runs a script of eval/ from end to end")
def test_pretraining_accuracy_is_one_where_the_model_is_always_right(model, speech, tmp_path):
    # One centroid: every frame has label 0, and a head with one cluster predicts nothing else.
    single = daisy_jax.HubertConfig(**{**vars(CONFIG), "num_clusters": 1, "num_classes": 0})
    one = jax.jit(lambda: daisy_jax.Hubert(single, rngs=nnx.Rngs(0)))()
    daisy_jax.save(one, tmp_path / "model")
    centroid = mfcc(daisy_jax.audio.load(speech / "0.wav")).mean(axis=0, keepdims=True)
    np.savez(tmp_path / "targets.npz", centroids=centroid, labels=np.zeros(1, np.int16))
    (tmp_path / "config.json").write_text(json.dumps({"targets_from": "", "targets_layer": 1}))
    done = run_here("eval/pretraining.py", "--run", tmp_path, "--data", speech, CPU)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(": ")[1].split(" ")[0] for line in lines[1:]] == ["1.000"] * 3


@pytest.mark.slow("starts a script of eval/")
def test_pretraining_accuracy_is_of_clusters_alone(speech, tmp_path):
    settings = {"targets_from": "", "targets_layer": 1, "targets": "runs/aligned"}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    done = run_here("eval/pretraining.py", "--run", tmp_path, "--data", speech, CPU)
    assert done.returncode == 1
    assert "eval/probe.py" in done.stderr


@pytest.mark.slow("compiles twelve layers for two batches")
def test_utterances_leave_where_they_are_forced_to():
    forced = Forced("tiny", "float32")
    assert forced.spread(1) == [6]
    assert np.mean(forced.spread(16)) == 6
    wanted = [*range(1, 13), 6]
    waveform = 0.1 * np.random.default_rng(0).standard_normal((13, 2000), np.float32)
    out = daisy_jax.encode(forced.model, waveform, threshold=forced.thresholds(wanted))
    assert out.exit_layer.tolist() == wanted
    assert not out.forced.any()


@pytest.mark.slow("runs every measurement from end to end")
def test_speed_prints_and_stores_every_measurement(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "eval")
    import speed

    small = dataclasses.replace(daisy_jax.load().config, num_layers=3)
    monkeypatch.setattr(speed, "Forced", lambda size, dtype: Forced(small, dtype))
    monkeypatch.setattr(speed, "RAGGED", (0.3, 0.5))
    monkeypatch.setattr(speed, "LAYER_SECONDS", 0.5)
    monkeypatch.setattr(speed, "CALLS", 2)
    arguments = ("--size", "tiny", "--batches", 1, 2, "--seconds", 0.25, "--runs", 1)
    arguments += ("--layer-runs", 1)
    words = ["speed.py", *map(str, arguments), f"--output={tmp_path}", CPU]
    monkeypatch.setattr(sys, "argv", words)
    speed.main()
    lines = capsys.readouterr().out.splitlines()
    rows = [cells(line) for line in lines if line.startswith("| ")]
    assert [row[0] for row in rows if row[0].endswith("0.25 s")] == ["1 x 0.25 s", "2 x 0.25 s"]
    result = json.loads((tmp_path / "speed.json").read_text())
    assert [row["layer"] for row in result["layers"]] == [1, 2, 3]
    fewer = [row["fewer"] for row in result["layers"]]
    assert fewer == sorted(fewer, reverse=True)
    for row in result["batches"]:
        assert set(row["times"]) == {"front end", "full depth", "all branches", "exits"}
        assert min(row["times"].values()) > 0
    assert result["versions"]["jax"] == jax.__version__


TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "conv_dim": [16] * 7,
}
"""A HuBERT of transformers."""
PRECISIONS = {
    ("transformers", "float32"),
    ("torch.compile", "float32"),
    ("ONNX Runtime", "float32"),
    ("OpenVINO", "float32"),
    ("transformers", "bfloat16"),
    ("ONNX Runtime", "int8"),
    ("OpenVINO", "bfloat16"),
}


@pytest.mark.slow("compiles a model with torch, and exports it")
def test_all_peers_encode_the_same_model(monkeypatch):
    """Except for torch.compile, which has weights of its own; precision as they say they have."""
    monkeypatch.syspath_prepend(ROOT / "eval")
    import peers
    import torch

    made = []

    def one_model(size, precision, place):
        torch.manual_seed(0)
        made.append(original(size, precision, place))
        return made[-1]

    original = peers.torch_model
    monkeypatch.setattr(peers, "torch_model", one_model)
    monkeypatch.setitem(peers.FIELDS, "tiny", TINY)
    waveform = np.random.default_rng(0).standard_normal((2, 4000)).astype(np.float32)
    with torch.no_grad():
        wanted = one_model("tiny", "float32", "cpu")(torch.from_numpy(waveform))
    wanted = wanted.last_hidden_state.numpy()
    tolerance = {"float32": 1e-4, "bfloat16": 0.1, "int8": 0.3}
    with peers.on_cpu("tiny", low_precision=True) as found:
        there = {(peer.name, peer.precision) for peer in found}
        # Where the processor has no bfloat16, OpenVINO computes in float32, and is not asked.
        assert there | {("OpenVINO", "bfloat16")} == PRECISIONS
        assert [peer.precision for peer in found[:4]] == ["float32"] * 4
        for peer in found:
            out = peer.prepare(waveform)()
            if peer.name == "ONNX Runtime":
                (out,) = out
            elif peer.name == "OpenVINO":
                (out,) = out.values()
            else:
                out = out.float().numpy()
            error = np.linalg.norm(out - wanted) / np.linalg.norm(wanted)
            assert error < tolerance[peer.precision], peer
            if peer.precision != "float32":
                assert error > 1e-4, peer  # it is what it says
    with peers.on_cpu("tiny", low_precision=False) as found:
        assert [peer.precision for peer in found] == ["float32"] * 4


@pytest.mark.slow("compiles a model with torch, and exports it")
def test_peers_take_turns_with_ours(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "eval")
    import peers
    import speed

    small = dataclasses.replace(daisy_jax.load().config, num_layers=2)
    monkeypatch.setitem(peers.FIELDS, "tiny", TINY)
    exporters = {"onnxscript", "onnxruntime", "openvino"}
    monkeypatch.setattr(peers, "missing", lambda *modules: [n for n in modules if n in exporters])
    monkeypatch.setattr(speed, "Forced", lambda size, dtype: Forced(small, dtype))
    monkeypatch.setattr(speed, "REST", 0.0)
    arguments = ("--size=tiny", "--peers", "--batches", "1", "2", "--seconds", "0.25", "--runs=1")
    monkeypatch.setattr(sys, "argv", ["speed.py", *arguments, f"--output={tmp_path}", CPU])
    speed.main()
    table = [cells(line) for line in capsys.readouterr().out.splitlines() if line[:2] == "| "]
    header, _, *rows = table
    theirs = ["transformers, float32", "torch.compile, float32"]
    assert header == ["batch", *theirs, "ours, float32", "ours / fastest float32"]
    kept = json.loads((tmp_path / "speed.json").read_text())["peers"]
    assert [row[0] for row in rows] == ["1 x 0.25 s", "2 x 0.25 s"]
    for row, stored in zip(rows, kept, strict=True):
        times = [stored["times"][name] for name in theirs]
        assert stored["ratio"] == pytest.approx(stored["times"]["ours, float32"] / min(times))
        assert row[-1] == f"{stored['ratio']:.2f}"
    assert not (tmp_path / "speed.png").exists()


def test_what_others_cannot_run_is_one_line(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "eval")
    import peers

    done = run_here("eval/speed.py", "--peers", "--size=tiny", CPU)
    assert done.returncode == 1
    assert done.stderr == (
        "error: --peers: others have no model of size tiny; give --size base or large\n"
    )
    with pytest.raises(InputError, match="compares on a CPU; give --accelerator=cpu"):
        peers.require("base", "gpu")
    monkeypatch.setattr(peers, "missing", lambda *modules: list(modules))
    with pytest.raises(InputError, match=r"--peers needs torch and transformers; pip install"):
        peers.require("base", "cpu")


@pytest.mark.slow("runs a script of eval/ from end to end")
def test_entropy_is_that_of_encode_with_its_line(model, speech, tmp_path):
    daisy_jax.save(model, tmp_path / "model")
    loud = tmp_path / "loud"
    loud.mkdir()
    soundfile.write(loud / "one.wav", 0.9 * np.ones(7_000), 16_000)
    (loud / "bad.wav").write_text("no sound")
    arguments = (f"some={speech}", f"loud={loud}", "--model", tmp_path / "model")
    done = run_here("eval/entropy.py", *arguments, "--output", tmp_path / "out", CPU)
    assert done.returncode == 0, done.stderr
    assert "left out (1 so far): " in done.stderr
    rows = [cells(line) for line in done.stdout.splitlines()]
    stored = json.loads((tmp_path / "out" / "entropy.json").read_text())
    for name, folder, count in (("some", speech, 3), ("loud", loud, 1)):
        waveforms = [
            daisy_jax.audio.load(path) for path in sorted(folder.iterdir()) if path.stem != "bad"
        ]
        batch = daisy_jax.audio.pad_batch(waveforms)
        entropy = np.asarray(daisy_jax.encode(model, *batch, threshold=-np.inf).entropy)
        mean = entropy.mean(axis=0)
        (found,) = [item for item in stored["sets"] if item["name"] == name]
        assert found["utterances"] == count
        np.testing.assert_allclose(found["mean_entropy"], mean, rtol=1e-5)
        np.testing.assert_allclose(found["standard_deviation"], entropy.std(axis=0), atol=1e-5)
        # Least squares by hand: layers 1, 2, 3.
        slope = (mean[2] - mean[0]) / 2
        fitted = mean.mean() + slope * np.array([-1, 0, 1])
        r_squared = 1 - np.sum((mean - fitted) ** 2) / np.sum((mean - mean.mean()) ** 2)
        assert found["slope"] == pytest.approx(slope, rel=1e-4)
        assert found["intercept"] == pytest.approx(mean.mean() - 2 * slope, rel=1e-4)
        assert found["r_squared"] == pytest.approx(r_squared, abs=1e-4)
        (row,) = [row for row in rows if row[0] == name]
        np.testing.assert_allclose([float(cell) for cell in row[3:6]], mean, atol=6e-4)


def test_a_data_set_without_a_name_is_one_line(speech):
    done = run_here("eval/entropy.py", speech, CPU)
    assert done.returncode == 1
    assert "is no NAME=FOLDER" in done.stderr


@pytest.mark.parametrize("validated", [True, False])
def test_curves_shows_what_the_run_logged(tmp_path, validated):
    lines = []
    for step in range(1, 7):
        by_layer = {"layer_loss": [step + 0.5, 0.25], "layer_accuracy": [0.125, step / 8]}
        lines.append({"step": step, **by_layer})
        if validated and step % 2 == 0:
            names = by_layer.items()
            lines.append({"step": step, **{f"validation_{name}": value for name, value in names}})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text)
    done = run_here("eval/curves.py", tmp_path, "--rows", 3)
    assert done.returncode == 0, done.stderr
    out = done.stdout
    assert out.startswith("validation loss" if validated else "training loss")
    rows = [cells(line) for line in out.splitlines() if line.startswith("| ")]
    assert [row for row in rows if row[0] == "4"] == [
        ["4", "4.500", "0.250"],
        ["4", "0.125", "0.500"],
    ]
    assert [row[0] for row in rows if row[0].isdigit()] == ["2", "4", "6"] * 2


def test_curves_of_another_folder_are_refused(tmp_path):
    done = run_here("eval/curves.py", tmp_path)
    assert done.returncode == 1
    assert "give the run folder of train/branches.py" in done.stderr
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2}\n')
    done = run_here("eval/curves.py", tmp_path)
    assert done.returncode == 1
    assert "no losses by layer" in done.stderr


@pytest.mark.slow("runs a benchmark from end to end")
def test_the_cost_of_a_step_is_printed_and_stored(tmp_path):
    arguments = ["--size", "tiny", "--batches", "4", "--seconds", "0.5", "--runs", "1"]
    arguments += ["--memory-batches", "4", "8", "--output", tmp_path / "stage1.json"]
    done = run("benchmarks/stage1.py", *arguments, CPU)
    assert done.returncode == 0, done.stderr
    assert "the largest batch of 15 s in 24 GiB: " in done.stdout
    result = json.loads((tmp_path / "stage1.json").read_text())
    (row,) = result["batches"]
    assert set(row["times"]) == {"forward", "step", "with reading"}
    speed = 4 * 0.5 / row["times"]["with reading"]
    assert row["hours"] == pytest.approx(88_000 * 32 * 12.3 / speed / 3600)
    small, large = (entry["bytes"] for entry in result["memory"])
    assert small < large < 2 * small
