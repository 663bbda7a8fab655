"""The training scripts as programs, on made speech and with tiny models."""

import json
import pathlib
import signal
import subprocess

import jax
import numpy as np
import pytest
import sounds
from conftest import environment
from made_models import SMALL, made_model
from programs import run_here, words_of
from safetensors.numpy import load_file

import daisy_jax
from daisy_jax.checkpoints import named_leaves

TINY = "--num-layers 2 --dim 16 --ffn-dim 16 --num-heads 2 --conv-dim 4 --pos-conv-kernel 4"
PRETRAIN = (
    *f"{TINY} --head-dim 4 --clusters 4 --unmasked-steps 2 --steps 4 --batch-size 4".split(),
    *["--crop-seconds", "0.5", "--warmup-steps", "2", "--save-every", "2", "--log-every", "1"],
    "--accelerator=cpu",
)


def run_until(step: int, number: int, script: str, *arguments) -> int:
    """Starts a script, sends a signal once it has logged a step; its exit status."""
    words, devices = words_of(script, *arguments), environment(jax.device_count())
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=devices)
    try:
        for line in process.stderr:
            if line.startswith(f"step {step}/"):
                break
        process.send_signal(number)
        process.communicate(timeout=120)
    finally:
        process.kill()
    return process.returncode


def metrics_of(folder: pathlib.Path) -> list[dict]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{**json.loads(line), "steps_per_second": None} for line in lines]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speech")
    sounds.speech_folder(folder / "speech", 6, (0.4, 0.9))
    (folder / "speech" / "broken.wav").write_bytes(b"no sound")
    done = run_here("train/prepare.py", folder / "speech", "--output", folder / "prepared")
    assert done.returncode == 0
    assert done.stdout == f"{folder / 'prepared'}: 6 utterances, 1 files left out\n"
    assert done.stderr.startswith(f"left out (1 so far): {folder / 'speech' / 'broken.wav'}: ")
    return folder / "prepared"


END_TO_END = pytest.mark.slow("trains from end to end")


@pytest.fixture(scope="module")
def pretrained(prepared, tmp_path_factory):
    """An uninterrupted run of four steps."""
    folder = tmp_path_factory.mktemp("pretrained")
    done = run_here("train/pretrain.py", "--data", prepared, "--output", folder, *PRETRAIN)
    assert done.returncode == 0, done.stderr
    return folder


@END_TO_END
def test_pretraining_writes_a_model_with_a_head(pretrained):
    model = daisy_jax.load(pretrained / "model")
    assert model.config.num_clusters == 4
    assert model.branches is None
    assert [line["step"] for line in metrics_of(pretrained)] == [1, 2, 3, 4]


@pytest.mark.slow("stops a process, and goes on")
def test_pretraining_that_was_stopped_goes_on_to_the_same_model(prepared, pretrained, tmp_path):
    arguments = ("--data", prepared, "--output", tmp_path, *PRETRAIN)
    assert run_until(2, signal.SIGTERM, "train/pretrain.py", *arguments) == 143
    resumed = run_here("train/pretrain.py", *arguments, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert metrics_of(tmp_path) == metrics_of(pretrained)
    ours, theirs = (folder / "model" / "model.safetensors" for folder in (tmp_path, pretrained))
    assert ours.read_bytes() == theirs.read_bytes()


@END_TO_END
def test_branches_are_trained_on_a_trunk_that_stays_as_it_is(prepared, pretrained, tmp_path):
    speech = prepared.parent / "speech"
    (speech / "broken.wav").unlink(missing_ok=True)
    arguments = ("--model", pretrained / "model", "--data", speech, "--noise", prepared)
    options = [
        "--steps",
        "2",
        "--batch-size",
        "4",
        "--crop-seconds",
        "0.5",
        "--log-every",
        "1",
        "--accelerator=cpu",
    ]
    done = run_here("train/branches.py", *arguments, "--output", tmp_path / "run", *options)
    assert done.returncode == 0, done.stderr
    assert "calibrated on speech, 6 training utterances" in done.stdout
    before = load_file(pretrained / "model" / "model.safetensors")
    after = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert after.keys() - before.keys() == {
        "branches.kernel",
        "branches.bias",
        "calibration.entropy",
        "calibration.agreement",
    }
    for name, tensor in before.items():
        np.testing.assert_array_equal(after[name], tensor, err_msg=name)
    model = daisy_jax.load(tmp_path / "run" / "model")
    assert model.config.num_classes == 4
    assert np.any(named_leaves(model.branches)["bias"])
    assert len(metrics_of(tmp_path / "run")[0]["layer_loss"]) == 2
    assert model.calibration.dataset == "speech, 6 training utterances"
    assert model.calibration.entropy.shape == (6, 2)


def test_a_model_without_a_head_is_refused_in_one_line(prepared, tmp_path):
    config = type(SMALL)(**{**vars(SMALL), "num_clusters": 0})
    daisy_jax.save(made_model(config), tmp_path / "headless")
    arguments = ("--model", tmp_path / "headless", "--data", prepared, "--output", tmp_path / "run")
    done = run_here("train/branches.py", *arguments, "--accelerator=cpu")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: this model has no HuBERT prediction head")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


@END_TO_END
def test_branches_leave_bad_files_out_or_end_at_the_first(pretrained, tmp_path):
    corpus = tmp_path / "LibriSpeech"
    sounds.speech_folder(corpus / "train-clean-100", 6, (0.4, 0.9))
    sounds.speech_folder(corpus / "dev-clean", 2, (0.4, 0.9))
    (corpus / "train-clean-100" / "bad.flac").write_bytes(b"no audio")
    arguments = ["--model", pretrained / "model", "--data", corpus, "--steps", "2"]
    arguments += ["--batch-size", "4", "--crop-seconds", "0.5", "--accelerator=cpu"]
    arguments += ["--output", tmp_path / "run"]
    incomplete = run_here("train/branches.py", *arguments)
    assert (incomplete.returncode, incomplete.stderr.count("\n")) == (1, 1)
    assert "no split train-clean-360, train-other-500 there; found dev-clean" in incomplete.stderr
    arguments += ["--splits", "train-clean-100"]
    strict = run_here("train/branches.py", *arguments, "--strict")
    assert strict.returncode == 1
    assert strict.stderr.startswith(
        f"error: {corpus / 'train-clean-100' / 'bad.flac'}: not readable"
    )
    done = run_here("train/branches.py", *arguments, "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert "left out (1 so far): " in done.stderr
    assert f"{corpus} train-clean-100: 6 utterances" in done.stdout
