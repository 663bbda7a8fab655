"""`daisy-jax extract`: what it says and refuses, processes that are killed, Ray's."""

import os
import pathlib
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import sounds
from conftest import environment
from made_models import made_model
from programs import COMMAND, run, run_here, words_of

import daisy_jax
from daisy_jax.exits import ExitRule
from daisy_jax.features.extractor import model_digest
from daisy_jax.features.store import FeatureStore
from daisy_jax.tasks.presets import make_task, read_preset
from daisy_jax.tasks.trained_heads import EXITS_FORMAT, TrainedHead, count_exits, save_head
from daisy_jax.tasks.training import new_params

FILES = 24
SHARDS = 12


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """A model, two dozen files, and lists of them."""
    folder = tmp_path_factory.mktemp("corpora")
    daisy_jax.save(made_model(), folder / "model")
    names = []
    for number in range(FILES):
        sounds.write(folder / "speech" / f"{number:02}.wav", sounds.syllables(0.5, number))
        names.append(f"{number:02}.wav")
    (folder / "good.tsv").write_text("\n".join([str(folder / "speech"), *names]) + "\n")
    bad = [*names[:3], "gone.wav", names[0]]
    (folder / "bad.tsv").write_text("\n".join([str(folder / "speech"), *bad]) + "\n")
    return folder


def given(there, *arguments, listed="good.tsv"):
    usual = ["extract", there / listed, "--model", there / "model"]
    return [*usual, "--threshold", "1.2", "--accelerator", "cpu", *arguments]


def extract(there, *arguments, listed="good.tsv"):
    return run_here(COMMAND, *given(there, *arguments, listed=listed))


def start(there, *arguments):
    return subprocess.Popen(
        words_of(COMMAND, *given(there, *arguments)),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment(),
        start_new_session=True,
    )


def assert_each_file_once(folder):
    store = FeatureStore(folder)
    assert sorted(row.id for row in store.rows) == [f"{n:02}.wav" for n in range(FILES)]
    assert store.errors == {}
    assert store.verify() == []
    assert not [path for path in folder.rglob("*") if "partial" in path.name]
    return store


@pytest.fixture(scope="module")
def whole(there):
    """All shards by one process."""
    done = extract(there, "--output", there / "whole", "--shard-files", 2)
    assert done.returncode == 0, done.stderr
    return done, assert_each_file_once(there / "whole")


# ---- one machine ----


def test_one_process_encodes_all_shards_and_says_what_there_is(whole):
    lines = whole[0].stdout.splitlines()
    assert lines[0].startswith("threshold 1.2 nats")
    assert lines[1] == "24 files in 12 shards; stored: exit"
    assert lines[2].startswith("shard 0/12: 2 files, 0.000278 h, mean exit layer ")
    assert lines[-1].split(":")[1].startswith(" 24 files")
    assert lines[-1].endswith("0 failed")


@pytest.mark.slow("runs processes side by side")
def test_shards_may_be_made_by_any_processes_at_once(there, whole, tmp_path):
    # Two of them make the same shard.
    shards = [f"{number}/3" for number in (0, 1, 2, 1)]
    started = [start(there, "--output", tmp_path, "--shard", each) for each in shards]
    assert [process.wait(timeout=300) for process in started] == [0, 0, 0, 0]
    store = assert_each_file_once(tmp_path)
    ours = {row.id: store.read(place) for place, row in enumerate(store.rows)}
    for place, row in enumerate(whole[1].rows):
        np.testing.assert_allclose(ours[row.id], whole[1].read(place), rtol=1e-3, atol=2e-3)


@pytest.mark.slow("kills a process")
def test_a_killed_process_goes_on_where_it_was(there, tmp_path):
    process = start(there, "--output", tmp_path, "--shard-files", 2)
    for line in process.stdout:
        if line.startswith("shard 2/12"):
            break
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("features-0000[012]*")}
    assert len(kept) == 3
    done = run(COMMAND, *given(there, "--output", tmp_path, "--shard-files", 2))
    assert done.returncode == 0, done.stderr
    assert_each_file_once(tmp_path)
    assert kept == {path: path.stat().st_mtime_ns for path in kept}


def test_bad_files_are_said_and_the_status_is_1(there, tmp_path):
    for _ in range(2):  # also where the shard is there already
        done = extract(there, "--output", tmp_path / "store", listed="bad.tsv")
        assert done.returncode == 1
        gone = there / "speech" / "gone.wav"
        assert done.stderr == f"error: {gone}: No such file or directory\n"
        assert "note: 1 lines repeat earlier ones" in done.stdout
        assert "3 files, " in done.stdout
        assert len(FeatureStore(tmp_path / "store").rows) == 4


def test_files_that_were_repaired_are_tried_again_with_retry(there, tmp_path):
    late = there / "speech" / "late.wav"
    listed = tmp_path / "late.tsv"
    listed.write_text(f"{there / 'speech'}\n00.wav\nlate.wav\n")
    output = ["--output", tmp_path / "store"]
    assert extract(there, *output, listed=listed).returncode == 1
    sounds.write(late, sounds.syllables(0.7, 5))
    try:
        assert extract(there, *output, listed=listed).returncode == 1
        assert extract(there, *output, "--retry", listed=listed).returncode == 0
        assert FeatureStore(tmp_path / "store").errors == {}
        assert extract(there, *output, listed=listed).returncode == 0
    finally:
        late.unlink()


def test_a_head_of_another_model_is_refused(there, tmp_path):
    task = make_task("sid", read_preset("sid", "daisy-tiny"))
    rule = ExitRule("", 0.5, np.ones(3, bool))
    for name, upstream in (("other", "0" * 16), ("mine", model_digest(made_model()))):
        params = new_params(task, 16, 3, ("a", "b"), 0)
        exits = {"format": EXITS_FORMAT, **count_exits(np.array([1]), np.array([False]), 3)}
        entropy = np.zeros(3, np.float32)
        head = TrainedHead(
            task, params, 16, "daisy-tiny", ("a", "b"), upstream, "x", entropy, rule, exits
        )
        save_head(tmp_path / name, head)
    arguments = ["--store", "pooled", "--output", tmp_path / "store", "--head"]
    done = extract(there, *arguments, tmp_path / "other")
    assert done.returncode == 1
    assert "was trained on another model" in done.stderr
    done = extract(there, *arguments, tmp_path / "mine")
    assert done.returncode == 0, done.stderr
    assert FeatureStore(tmp_path / "store").items == ["pooled"]


def test_the_name_of_before_still_works_and_contents_come_from_the_command_line(there, tmp_path):
    np.save(tmp_path / "centroids.npy", np.eye(4, 16))
    arguments = ["--store", "units", "--centroids", tmp_path / "centroids.npy", "--layer", "2"]
    usual = ["encode", "--model", there / "model", "--manifest", there / "bad.tsv"]
    usual += ["--output", tmp_path / "units", "--npy", "--accelerator", "cpu"]
    done = run_here(COMMAND, *usual, *arguments)
    assert "stored: units" in done.stdout, done.stderr
    units = np.load(tmp_path / "units" / "npy" / "00.wav.npy")
    assert units.dtype == np.int32
    assert set(np.unique(units)) <= set(range(4))


def test_a_pickled_codebook_is_refused_with_the_line_that_turns_it_into_one_that_is_read(
    there, tmp_path
):
    joblib = pytest.importorskip("joblib")
    from sklearn.cluster import MiniBatchKMeans

    frames = np.random.default_rng(0).standard_normal((50, 16)).astype(np.float32)
    kmeans = MiniBatchKMeans(4, n_init=1, random_state=0).fit(frames)
    joblib.dump(kmeans, tmp_path / "k m.bin")
    options = ["extract", there / "good.tsv", "--model", there / "model", "--accelerator", "cpu"]
    options += ["--store", "units", "--layer", "2", "--output", tmp_path / "store"]
    done = run_here(COMMAND, *options, "--centroids", tmp_path / "k m.bin")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "a pickle, whose code is never run here" in done.stderr
    words = shlex.split(done.stderr.partition("if you trust it: ")[2])
    assert words[0] == "python"
    subprocess.run([sys.executable, *words[1:]], check=True)
    np.testing.assert_array_equal(np.load(words[-1]), kmeans.cluster_centers_)
    done = run_here(COMMAND, *options, "--centroids", words[-1])
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--shard", "3/3"], "shard 3/3: shards of 3 are 0 to 2"),
        (["--shard", "first"], "--shard 'first': give I/N, such as 0/40"),
        (["--shard", "0/3", "--ray"], "leave --ray and --shard-files out"),
        (["--store", "units"], "--store units needs --centroids"),
        (["--layers", "1"], "--layers belongs to --store layers"),
        (["--store", "layers"], "--store layers runs all layers; leave --threshold out"),
        (["--store", "units", "--centroids", "x.npy"], "--store units leaves at --layer"),
        (["--workers", "2"], "--workers are Ray's; add --ray"),
        (["--shard-files", "-1"], "give at least 1"),
        (["--max-seconds", "-1"], "give seconds above 0"),
    ],
)
def test_options_that_contradict_are_one_line(there, tmp_path, arguments, said):
    done = run_here(COMMAND, *given(there, "--output", tmp_path / "store", *arguments))
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "option"),
    [(["encode", "00.wav", "--npy"], "--npy"), (["extract", "x", "--hidden-states"], "--hidden")],
)
def test_a_command_refuses_the_options_of_the_other(there, arguments, option):
    done = run_here(COMMAND, *arguments, "--output=x")
    assert done.returncode == 2
    assert option in done.stderr


# ---- Ray ----


@pytest.mark.parametrize("listens", ["nobody", "somebody who is silent", "another program"])
def test_a_cluster_that_does_not_answer_is_one_line_soon(there, tmp_path, monkeypatch, listens):
    monkeypatch.setattr("daisy_jax.features.ray.CONNECT_SECONDS", 1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # so that nobody else listens there
        if listens != "nobody":
            taken.listen()
        if listens == "another program":
            threading.Thread(target=lambda: [taken.accept()[0].close() for _ in "12"]).start()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for form in (address, f"ray://{address}"):
            monkeypatch.setenv("RAY_ADDRESS", form)
            done = run_here(COMMAND, *given(there, "--output", tmp_path / "store", "--ray"))
            assert done.returncode == 1
            joining, error = done.stderr.splitlines()
            assert joining.endswith(f"joining Ray at {form}, which has 1 s to answer")
            assert error.startswith(f"error: RAY_ADDRESS={form}: nothing answers there within 1 s")
            assert "unset RAY_ADDRESS" in error


def without_rays(errors):
    """Stderr without what Ray itself says of actors that may be restarted, or that were killed."""
    lines = errors.splitlines(keepends=True)
    own = [line for line in lines if "core_worker.cc" not in line and "(raylet)" not in line]
    return "".join(own)


def test_fewer_gpus_than_workers_are_one_line(there, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "init", lambda **options: None)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 1.0})
    options = ["--output", tmp_path, "--ray", "--workers", "2", "--accelerator", "gpu"]
    done = run_here(COMMAND, *given(there, *options))
    assert done.returncode == 1
    (error,) = done.stderr.splitlines()
    assert error.startswith("error: 2 workers with a GPU each, and Ray has 1 GPUs; lower --workers")


def workers_of(process):
    """Processes of Ray's actors below a driver; their names begin with ray::MapWorker."""
    found = []
    for place in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            name = (place / "cmdline").read_bytes()
            environ = (place / "environ").read_bytes()
        except OSError:
            continue
        if b"ray::MapWorker" in name and f"DAISY_TEST={process}".encode() in environ:
            found.append(int(place.name))
    return found


def start_ray(there, output, name, workers):
    options = ["--output", output, "--shard-files", 2, "--ray", "--workers", workers]
    return subprocess.Popen(
        words_of(COMMAND, *given(there, *options)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment() | {"DAISY_TEST": name},
        start_new_session=True,
    )


def wait_for(condition, seconds=200):
    end = time.time() + seconds
    while not condition():
        assert time.time() < end, "never happened"
        time.sleep(0.05)


def parts(folder):
    return list((folder / "index").glob("[0-9]*.parquet"))


@pytest.mark.slow("starts Ray, and kills its processes")
@pytest.mark.skipif(not pathlib.Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_ray_recovers_from_a_killed_driver_and_a_killed_worker(there, tmp_path):
    pytest.importorskip("ray")
    # The driver dies, and its workers with it.
    first = start_ray(there, tmp_path, "first", workers=2)
    wait_for(lambda: len(parts(tmp_path)) >= 2 or first.poll() is not None)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    wait_for(lambda: not workers_of("first"))
    kept = {path: path.stat().st_mtime_ns for path in parts(tmp_path)}
    assert 2 <= len(kept) < SHARDS

    # Started again, it does what is missing. A worker dies: its shard is handed out again. In the
    # place of the last shard's part lies a folder that cannot be replaced: the others are made.
    last = tmp_path / "index" / f"{SHARDS - 1:05}.parquet"
    (last / "x").mkdir(parents=True)
    second = start_ray(there, tmp_path, "second", workers=1)
    try:
        wait_for(lambda: len(parts(tmp_path)) > len(kept) + 1 or second.poll() is not None)
        victims = workers_of("second")
        assert victims, second.communicate()[1] if second.poll() is not None else "no worker"
        os.kill(victims[0], signal.SIGKILL)
        output, errors = second.communicate(timeout=300)
    finally:
        second.kill()
    assert second.returncode == 1
    (error,) = without_rays(errors).splitlines()
    assert error.startswith(f"error: 1 shards could not be encoded; shard {SHARDS - 1}: ")
    assert f"{last}: Is a directory" in error
    assert output.count("shard ") == SHARDS - 1
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    shutil.rmtree(last)
    done = extract(there, "--output", tmp_path, "--shard-files", 2)
    assert done.returncode == 0, done.stderr
    assert_each_file_once(tmp_path)
