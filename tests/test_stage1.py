"""Stage 1 as a program: devices, processes and kills do not change what comes out."""

import json
import pathlib
import signal
import socket
import subprocess
import time

import numpy as np
import pytest
import sounds
from conftest import environment
from made_models import SMALL, made_model
from programs import run_here, words_of
from safetensors.numpy import load_file

import daisy_jax

SCRIPT = "train/branches.py"
OPTIONS = (
    *["--splits", "train-clean-100", "--steps", "6", "--batch-size", "8", "--save-every", "3"],
    *["--crop-seconds", "1.5", "--log-every", "1", "--learning-rate", "0.01"],
    "--accelerator=cpu",
)


def given(data: pathlib.Path, output: pathlib.Path, *extra) -> list:
    usual = ["--model", data / "model", "--data", data / "LibriSpeech", "--output", output]
    return [SCRIPT, *usual, *OPTIONS, *extra]


def start(data: pathlib.Path, output: pathlib.Path, *extra, devices: int = 1) -> subprocess.Popen:
    return subprocess.Popen(
        words_of(*given(data, output, *extra)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(devices),
    )


def finish(*processes: subprocess.Popen, status: int = 0) -> str:
    """The first one's output, when all have ended as they should."""
    outputs = []
    try:
        for process in processes:
            outputs.append(process.communicate(timeout=120))
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == status, errors
    return outputs[0][0]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def pair(data: pathlib.Path, output: pathlib.Path, *extra) -> list[subprocess.Popen]:
    """Two processes of two devices each."""
    address = f"127.0.0.1:{free_port()}"
    return [
        start(data, output, "--processes", f"{address},2,{index}", *extra, devices=2)
        for index in (0, 1)
    ]


def metrics_of(folder: pathlib.Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timed = ("steps_per_second", "audio_per_second")
    return [{name: line[name] for name in line if name not in timed} for line in lines]


def assert_same_losses(folder: pathlib.Path, whole: pathlib.Path) -> None:
    found, wanted = metrics_of(folder), metrics_of(whole)
    assert [line["step"] for line in found] == [line["step"] for line in wanted]
    for line, other in zip(found, wanted, strict=True):
        assert line.keys() == other.keys()
        for name in line:
            if "accuracy" in name:  # frames that are nearly a draw may change sides
                np.testing.assert_allclose(line[name], other[name], atol=2e-3)
            else:
                np.testing.assert_allclose(line[name], other[name], rtol=1e-5)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A model with a head, LibriSpeech's folders."""
    folder = tmp_path_factory.mktemp("data")
    sounds.speech_folder(folder / "LibriSpeech" / "train-clean-100", 12, (0.4, 0.9))
    sounds.speech_folder(folder / "LibriSpeech" / "dev-clean", 3, (0.4, 0.9))
    config = type(SMALL)(**{**vars(SMALL), "dim": 64, "num_clusters": 300, "num_classes": 0})
    daisy_jax.save(made_model(config), folder / "model")
    return folder


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """An uninterrupted run on one device."""
    folder = tmp_path_factory.mktemp("whole")
    output = finish(start(data, folder))
    assert "LibriSpeech train-clean-100: 12 utterances" in output
    assert "LibriSpeech dev-clean: 3 utterances" in output
    return folder


@pytest.mark.slow("trains branches from end to end, in a process")
def test_it_ends_with_a_calibrated_model(data, whole):
    model = daisy_jax.load(whole / "model")
    assert model.calibration.dataset == "LibriSpeech/dev-clean"
    files = sorted((data / "LibriSpeech" / "dev-clean").rglob("*.flac"))
    entropies = [
        result.entropy for result in daisy_jax.encode_files(model, files, threshold=-np.inf)
    ]
    by_last = np.argsort([entropy[-1] for entropy in entropies])
    stored = np.argsort(model.calibration.entropy[:, -1])
    np.testing.assert_allclose(
        model.calibration.entropy[stored].astype(np.float32),
        np.stack(entropies)[by_last],
        rtol=1e-3,  # stored as float16
    )
    validated = [line for line in metrics_of(whole) if "validation_loss" in line]
    assert [line["step"] for line in validated] == [3, 6]
    means = np.mean(entropies, axis=0)
    np.testing.assert_allclose(validated[-1]["validation_layer_entropy"], means, rtol=1e-5)


@pytest.mark.slow("trains branches from end to end, in a process")
def test_the_loss_falls(whole):
    losses = [line["validation_loss"] for line in metrics_of(whole) if "validation_loss" in line]
    assert losses[1] < 0.95 * losses[0]


def wait_for(condition, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 60
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.0005)


@pytest.mark.slow("stops two processes, and goes on")
def test_a_signal_to_one_of_two_processes_stops_both_and_they_go_on(data, whole, tmp_path):
    first, second = pair(data, tmp_path)
    log = tmp_path / "metrics.jsonl"
    wait_for(lambda: log.exists() and log.read_text().count("\n") >= 1, first)
    second.send_signal(signal.SIGTERM)
    finish(first, second, status=143)
    assert not (tmp_path / "model").exists()
    finish(*pair(data, tmp_path, "--resume"))
    # Two processes of two devices each give the losses and the model of one device.
    assert_same_losses(tmp_path, whole)
    ours, theirs = (load_file(run / "model" / "model.safetensors") for run in (tmp_path, whole))
    for name, tensor in theirs.items():
        np.testing.assert_allclose(ours[name], tensor, rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.mark.slow("kills a process, and goes on")
def test_four_devices_then_two_after_a_kill_in_a_save_give_the_same_losses(data, whole, tmp_path):
    process = start(data, tmp_path, devices=4)
    checkpoints = tmp_path / "checkpoints"
    names = ["3.orbax-checkpoint-tmp", "3"]  # the second if it was too fast
    wait_for(lambda: any((checkpoints / name).exists() for name in names), process)
    process.kill()
    finish(process, status=-signal.SIGKILL)
    finish(start(data, tmp_path, "--resume", devices=2))
    assert_same_losses(tmp_path, whole)


@pytest.mark.slow("trains branches from end to end, in a process")
def test_stored_labels_are_the_models_own(data, whole, tmp_path):
    arguments = ["--model", data / "model", "--data", data / "LibriSpeech", "--output"]
    arguments += [tmp_path / "labels", "--splits", "train-clean-100,dev-clean"]
    done = run_here("train/labels.py", *arguments, "--accelerator=cpu")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'labels'}: labels of 15 utterances, 0 missing\n"
    # No crop is shorter than its utterance: the model's own labels are those of the folder.
    finish(start(data, tmp_path / "run", "--labels", tmp_path / "labels"))
    assert_same_losses(tmp_path / "run", whole)


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("here", "it must be auto, or HOST:PORT,COUNT,INDEX"),
        ("127.0.0.1:9911,2,2", "with an index below the count"),
    ],
)
def test_processes_that_cannot_be_are_refused(data, tmp_path, place, said):
    done = run_here(*given(data, tmp_path / "run", "--processes", place))
    assert done.returncode == 1
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_presets_fill_in_what_is_not_given(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    done = run_here(SCRIPT, "--preset", "daisy-tiny", "--help")
    assert "(default: 0.01)" in done.stdout
    assert "(default: 2500)" in done.stdout
    wrong = run_here(SCRIPT, "--preset", "huge")
    assert wrong.returncode == 2
    assert "huge" in wrong.stderr


def test_a_part_that_is_trained_on_is_no_validation(data, tmp_path):
    arguments = ("--splits", "dev-clean", "--validation", "dev-clean")
    done = run_here(*given(data, tmp_path / "run", *arguments))
    assert done.returncode == 1
    assert done.stderr == (
        "error: dev-clean is trained on, too; name the parts to train on with --splits, without "
        "it\n"
    )


@pytest.mark.slow("trains branches from end to end")
def test_another_folder_may_be_the_validation_set(data, tmp_path):
    sounds.speech_folder(tmp_path / "held", 2, (0.4, 0.6))
    arguments = ("--validation", tmp_path / "held", "--steps", "1")
    done = run_here(*given(data, tmp_path / "run", *arguments))
    assert done.returncode == 0, done.stderr
    model = daisy_jax.load(tmp_path / "run" / "model")
    assert model.calibration.dataset == "held"
    assert len(model.calibration.entropy) == 2


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--save-every", "0", "save_every is 0; it must be at least 1"),
        ("--crop-seconds", "0.01", "crop_seconds is 0.01; it must be at least 0.025"),
    ],
)
def test_numbers_out_of_range_are_refused_as_wrong_options_are(data, tmp_path, option, value, said):
    done = run_here(*given(data, tmp_path / "run", option, value))
    assert done.returncode == 2
    assert said in done.stderr
    assert not (tmp_path / "run").exists()
