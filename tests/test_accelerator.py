"""Every command finds its device, also a GPU that the CPU plays, or says in one line what lacks."""

import json
import logging
import os
import pathlib
import re
import runpy
import socket
import subprocess
import sys
import types

import jax
import pytest
import sounds
from made_models import SMALL, made_model
from played_gpu import play_gpu

import daisy_jax
from daisy_jax import accelerator
from daisy_jax.accelerator import use_accelerator
from daisy_jax.errors import InputError

ROOT = pathlib.Path(__file__).parents[1]
CLIP = str(ROOT / "daisy_jax" / "samples" / "reading-1.flac")
COMMANDS = {
    "train/branches.py": ["--model=nowhere"],
    "train/downstream.py": ["--task=sid", "--model=nowhere"],
    "train/labels.py": ["--model=nowhere"],
    "train/pretrain.py": ["--data=nowhere", "--output=nowhere"],
    "train/units.py": ["nowhere", "--model=nowhere"],
    "eval/downstream.py": ["nowhere"],
    "eval/entropy.py": ["clean=nowhere", "--model=nowhere"],
    "eval/guarantee.py": ["--data=nowhere", "--model=nowhere"],
    "eval/noise.py": ["--data=nowhere", "--model=nowhere"],
    "eval/probe.py": ["--data=nowhere", "--labels=nowhere", "--model=nowhere"],
    "eval/pretraining.py": ["--run=nowhere", "--data=nowhere"],
    "eval/reproduce.py": ["--checkpoint=nowhere", "--corpora=nowhere", "--only=figure4"],
    "eval/speed.py": ["--size=tiny"],
    "benchmarks/corpora.py": ["--count=0", "--no-ray", "--workers=1"],
    "benchmarks/files.py": ["--model=nowhere"],
    "benchmarks/first_gpu.py": ["--only=nowhere"],
    "benchmarks/forms.py": ["--rows=-1"],
    "benchmarks/lstm.py": ["--batch=-1"],
    "benchmarks/stage1.py": ["--size=tiny"],
    "benchmarks/stage2.py": ["--size=tiny"],
    "benchmarks/windows.py": ["nowhere", "--model=nowhere"],
    "daisy_jax/commands/calibrate.py": ["nowhere", CLIP],
    "daisy_jax/commands/check.py": ["--model=nowhere"],
    "daisy_jax/commands/encode.py": [CLIP, "--model=nowhere"],
    "daisy_jax/commands/extract.py": ["nowhere", "--output=nowhere", "--model=nowhere"],
    "encode, as extract was called": ["--manifest=nowhere", "--output=x", "--model=nowhere"],
}
"""What ends each command right after it has chosen its device: nothing it asks for is there."""
ENDS = {
    "benchmarks/forms.py": "at least one",
    "benchmarks/lstm.py": "negative dimensions",
    "benchmarks/corpora.py": "lists no file",  # what the command says that it starts
}
STARTERS = ("benchmarks/corpora.py", "eval/reproduce.py")
SOURCES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for folder in ("train", "eval", "benchmarks", "conversions", "daisy_jax/commands")
    for path in sorted((ROOT / folder).glob("*.py"))
}
PROGRAM = re.compile(r"run_command\(main\)|    def run\(self\)")
OPTION = re.compile(r"\n    accelerator: Accelerator =|\nclass \w+\(.*Options\)")
WITH_OPTION = {n for n, text in SOURCES.items() if PROGRAM.search(text) and OPTION.search(text)}
DTYPE = re.compile(r"\n    dtype: Literal\[|\nclass Config\(StepOptions\)")
WITH_DTYPE = sorted(name for name in WITH_OPTION if DTYPE.search(SOURCES[name]))
BESIDE_TORCH = {name for name in WITH_OPTION if "torch_place" in SOURCES[name]}


def words_of(name: str) -> list[str]:
    program = [str(ROOT / name)]
    if not name.startswith(("train/", "eval/", "benchmarks/")):
        program = ["daisy-jax", re.split(r"\W", name.removeprefix("daisy_jax/commands/"))[0]]
    return [*program, *COMMANDS[name], "--accelerator=gpu"]


def start(words: list[str], environment: dict[str, str], folder: pathlib.Path):
    return subprocess.Popen(
        [sys.executable, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=folder,
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model and speech; environments with a GPU, with one that does not start, with none."""
    folder = tmp_path_factory.mktemp("gpu")
    sounds.speech_folder(folder / "speech", 4, (0.4, 0.6))
    config = type(SMALL)(**{**vars(SMALL), "num_classes": 0})
    daisy_jax.save(made_model(config), folder / "model")
    fault = "the played driver is missing (set JAX_PLATFORMS='' to go on)"
    kinds = {"gpu": play_gpu(folder / "plugin"), "broken": play_gpu(folder / "bad", fault)}
    return folder, kinds | {"none": kinds["gpu"] | {"PYTHONPATH": ""}}


@pytest.fixture(scope="module")
def headline(place):
    """The headline command, started; it runs beside the others."""
    folder, environments = place
    words = [str(ROOT / "train/branches.py"), "--accelerator=gpu", "--model=model", "--data=speech"]
    words += ["--output=run", "--steps=2", "--batch-size=2", "--crop-seconds=0.5", "--log-every=1"]
    process = start(words, environments["gpu"], folder)
    yield process
    process.kill()


@pytest.fixture(scope="module")
def ran(place, headline):
    """What every command chose and said, and those with a dtype in bfloat16, too."""
    folder, environments = place
    commands = {name: words_of(name) for name in COMMANDS}
    commands |= {f"{name} in 16": [*words_of(name), "--dtype=bfloat16"] for name in WITH_DTYPE}
    process = start([str(ROOT / "tests/played_gpu.py")], environments["gpu"], folder)
    printed, errors = process.communicate(json.dumps([*commands.values()]), timeout=300)
    assert process.returncode == 0, errors
    return dict(zip(commands, json.loads(printed), strict=True))


def test_every_command_with_the_option_is_tried_here():
    assert {name for name in COMMANDS if name in SOURCES} == WITH_OPTION
    assert len(WITH_DTYPE) == 7
    assert {"benchmarks/lstm.py", "eval/speed.py"} <= BESIDE_TORCH


PLAYED = pytest.mark.slow("runs every command in a process with a played GPU")


@PLAYED
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_finds_the_gpu_and_computes_in_float32_there(ran, name):
    found = ran[name]
    assert ENDS.get(name, "nowhere") in found["said"]
    assert "accelerator" not in found["said"]
    if name not in STARTERS:  # there the commands that it starts choose
        precision = None if name == "benchmarks/first_gpu.py" else "highest"  # it sets its own
        assert (found["platforms"], found["precision"]) == ("cuda,cpu", precision)
        assert found["cpus"] == 1


@PLAYED
@pytest.mark.parametrize("name", WITH_DTYPE)
def test_sixteen_bits_leave_the_precision_to_jax(ran, name):
    assert ran[f"{name} in 16"]["platforms"] == "cuda,cpu"
    assert ran[f"{name} in 16"]["precision"] is None


@PLAYED
@pytest.mark.parametrize("name", sorted(WITH_OPTION))
def test_who_runs_beside_torch_leaves_it_memory(ran, name):
    assert ran[name]["preallocate"] == ("false" if name in BESIDE_TORCH else None)


@pytest.mark.slow("starts processes with a played GPU")
def test_the_headline_command_trains_on_the_gpu(place, headline, ran):
    folder, _ = place
    printed, errors = headline.communicate(timeout=120)
    assert headline.returncode == 0, errors
    assert "speech: 4 utterances, 0.00 h; on cpu, trunk in float32\n" in printed
    assert len((folder / "run" / "metrics.jsonl").read_text().splitlines()) == 2
    assert daisy_jax.load(folder / "run" / "model").branches is not None


@pytest.mark.slow("starts processes with a played GPU")
def test_without_a_gpu_the_headline_command_says_so_in_one_line(place):
    folder, environments = place
    words = [str(ROOT / "train/branches.py"), "--accelerator=gpu"]
    for process in [start(words, environments[kind], folder) for kind in ("none", "broken")]:
        printed, errors = process.communicate(timeout=120)
        assert (process.returncode, printed) == (1, "")
        assert errors.startswith("error: no GPU for JAX here: ")
        assert errors.endswith(", or pass --accelerator=cpu\n")
        assert errors.count("\n") == 1
        assert "rocm" not in errors.lower()
        assert "JAX_PLATFORMS" not in errors


DRIVER = "the NVIDIA driver (libcuda.so.1 cannot be loaded)"


@pytest.mark.parametrize(
    ("plugins", "driver", "files", "said"),
    [
        ([], True, True, "missing is JAX's CUDA plugin (pip install 'jax[cuda13]'); add it"),
        (["cuda"], False, False, f"missing is {DRIVER}; add it"),
        ([], False, False, f"JAX's CUDA plugin (pip install 'jax[cuda13]') and {DRIVER}; add it"),
        (["cuda"], True, False, "a GPU that the driver shows here (there is no /dev/nvidiactl)"),
        (["cuda"], True, True, "cuda is out of order; mend that"),
        (["rocm"], False, False, "rocm is out of order; mend that"),
        (["rocm", "cuda"], True, True, "rocm is out of order; cuda is out of order; mend that"),
    ],
)
def test_what_is_missing_is_named(monkeypatch, plugins, driver, files, said):
    def devices(name):
        raise RuntimeError(f"{name} is out\nof order (set JAX_PLATFORMS='' to go on)")

    monkeypatch.setattr(jax, "devices", devices)
    monkeypatch.setattr(accelerator, "has_plugin", lambda kind: kind in plugins)
    monkeypatch.setattr(accelerator, "has_driver", lambda: driver)
    monkeypatch.setattr(accelerator, "has_device_files", lambda: files)
    before = jax.config.jax_platforms
    for kind, words in (("gpu", said), ("tpu", "tpu is out of order; install jax[tpu] on a mach")):
        with pytest.raises(InputError) as error:
            use_accelerator(kind)
        assert words in str(error.value)
        assert str(error.value).startswith(f"no {kind.upper()} for JAX here: ")
        assert str(error.value).endswith(", or pass --accelerator=cpu")
    assert jax.config.jax_platforms == before


@pytest.mark.parametrize("fails", [True, False])
def test_what_a_plugin_that_fails_logs_is_quoted_and_other_logs_are_kept(
    monkeypatch, caplog, fails
):
    def devices(name):
        try:
            raise RuntimeError("cuDNN is too old\nfor this JAX")
        except RuntimeError:
            log = logging.getLogger("jax._src.xla_bridge")
            log.exception("Exception when calling jax_plugins.xla_cuda13.initialize()")
        if fails:
            raise RuntimeError("Unknown backend cuda")
        return [types.SimpleNamespace(platform="gpu", device_kind="a GPU")]

    monkeypatch.setattr(jax, "devices", devices)
    for name in ("has_driver", "has_device_files"):
        monkeypatch.setattr(accelerator, name, lambda: True)
    monkeypatch.setattr(accelerator, "has_plugin", lambda kind: kind == "cuda")
    before = jax.config.jax_platforms
    if fails:
        with pytest.raises(InputError, match="here: cuDNN is too old for this JAX; mend that"):
            use_accelerator("gpu")
    else:
        assert use_accelerator("gpu") == "a GPU"
        jax.config.update("jax_platforms", before)
    assert len(caplog.records) == (0 if fails else 1)


def test_plugins_are_found_by_their_folder(monkeypatch, tmp_path):
    assert not accelerator.has_plugin("played")
    play_gpu(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert accelerator.has_plugin("played")


@pytest.mark.parametrize(
    ("error", "reason"),
    [(AssertionError(), "none is visible"), (RuntimeError("no TPU\nhere"), "no TPU here")],
)
def test_platforms_that_are_not_there_are_one_line(monkeypatch, error, reason):
    def devices():
        raise error

    monkeypatch.setattr(jax, "devices", devices)
    with pytest.raises(InputError, match=re.escape(f"({reason}); unset JAX_PLATFORMS, or")):
        use_accelerator("auto")


def test_the_type_that_was_chosen_is_printed(place, monkeypatch, capsys):
    folder, _ = place
    monkeypatch.setattr(accelerator, "trunk_dtype", lambda device: "float16")
    words = ["--model=model", "--data=speech", "--batch-size=3", "--accelerator=cpu"]
    monkeypatch.setattr(sys, "argv", ["branches.py", *words])
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit):  # three do not go into four devices
        runpy.run_path(str(ROOT / "train/branches.py"), run_name="__main__")
    printed = capsys.readouterr()
    assert "; on cpu, trunk in float16 (no bfloat16 before Ampere)\n" in printed.out
    assert "a batch of 3 cannot be split over 4 devices" in printed.err


@pytest.mark.slow("starts processes with a played GPU")
def test_a_slurm_task_alone_on_a_node_of_four_gpus_is_warned(place):
    folder, environments = place
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    slurm = {"JOB_ID": "7", "STEP_NODELIST": "localhost", "NTASKS": "1", "PROCID": "0"}
    slurm = {f"SLURM_{name}": value for name, value in (slurm | {"LOCALID": "0"}).items()}
    slurm |= {"JAX_COORDINATOR_PORT": port, "CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    words = [str(ROOT / "train/branches.py"), "--model=nowhere", "--processes=auto"]
    process = start([*words, "--accelerator=gpu"], environments["gpu"] | slurm, folder)
    _, errors = process.communicate(timeout=120)
    assert "warning: 3 of the 4 GPUs on " in errors
    assert "start as many tasks on each node as it has GPUs\n" in errors


@pytest.mark.parametrize(
    ("on_gpu", "has_cuda", "place"),
    [(True, False, "cpu"), (True, True, "cuda"), (False, True, "cpu")],
)
def test_torch_goes_where_it_can(monkeypatch, on_gpu, has_cuda, place):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu" if on_gpu else "cpu")
    assert runpy.run_path(str(ROOT / "eval/peers.py"))["torch_place"]() == place
    assert not torch.backends.cudnn.allow_tf32


def test_memory_is_shared_only_where_the_user_has_not_said_otherwise(monkeypatch):
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "true")
    use_accelerator("cpu", share_memory=True)
    assert os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] == "true"
