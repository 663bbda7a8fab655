"""Checkpoints: the best and the last are kept, a full disk leaves whole ones, versions inside."""

import dataclasses
import json
import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from daisy_jax import parallel
from daisy_jax.errors import InputError, Terminated
from daisy_jax.training.loop import fit
from daisy_jax.training.run_folder import Run


@dataclasses.dataclass(frozen=True)
class Config:
    steps: int = 6
    output: str = "somewhere"


def new_state(value: float) -> dict[str, jax.Array]:
    return parallel.replicate({"w": np.full(3, value, np.float32)})


def steps_kept(folder: pathlib.Path) -> list[int]:
    return sorted(int(entry.name) for entry in (folder / "checkpoints").iterdir())


def fit_six_steps(run: Run, step, **options):
    batch = {"x": np.zeros(4, np.float32)}
    whole = {"steps": 6, "save_every": 2, "log_every": 3, "describe": str}
    return fit(run, {"n": np.int32(0)}, step, lambda number: batch, **whole, **options)


def test_the_best_and_the_last_two_checkpoints_are_kept(tmp_path):
    run = Run(tmp_path, Config(), resume=False)
    for step, loss in [(1, 3.0), (2, 1.0), (3, 2.0), (4, None), (5, 2.5), (6, 2.4)]:
        scores = None if loss is None else {"validation_loss": loss, "validation_accuracy": 0.5}
        run.save(new_state(step), step, [], scores)
    best = run.best(new_state(0))
    np.testing.assert_array_equal(best["w"], np.full(3, 2))
    run.close()
    assert steps_kept(tmp_path) == [2, 5, 6]
    again = Run(tmp_path, Config(), resume=True)
    state, step, recent = again.restore(new_state(0))
    assert (step, recent) == (6, [])
    np.testing.assert_array_equal(state["w"], np.full(3, 6))
    np.testing.assert_array_equal(again.best(state)["w"], np.full(3, 2))
    again.close()


def test_the_last_state_is_the_best_without_a_validation(tmp_path):
    run = Run(tmp_path, Config(), resume=False)
    state = new_state(7)
    run.save(state, 1, [])
    assert run.best(state) is state
    run.close()


def test_every_checkpoint_says_what_it_was_made_with(tmp_path):
    run = Run(tmp_path, Config(), resume=False)
    run.save(new_state(1), 4, [])
    run.close()
    written = json.loads((tmp_path / "config.json").read_text())
    inside = json.loads((tmp_path / "checkpoints" / "4" / "config" / "metadata").read_text())
    assert written["output"] == "somewhere"  # which may differ in its continuation
    assert len(inside.pop("sha256")) == 64
    assert inside == {k: v for k, v in written.items() if k != "output"} | {"recent": []}
    assert written["steps"] == 6
    assert written["versions"]["jax"] == jax.__version__
    assert written["versions"]["numpy"] == np.__version__
    # Other versions may go on with a run.
    changed = written | {"versions": {"jax": "0.0.1"}}
    (tmp_path / "config.json").write_text(json.dumps(changed))
    Run(tmp_path, Config(), resume=True).close()
    assert json.loads((tmp_path / "config.json").read_text()) == written


def test_a_disk_without_room_is_refused_at_the_start(tmp_path, monkeypatch):
    run = Run(tmp_path, Config(), resume=False)
    state = parallel.replicate({"w": np.zeros(250_000, np.float32)})
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=3_900_000))
    with pytest.raises(InputError, match="checkpoints need 4 MB, and 4 MB are free; make room"):
        run.restore(state)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=4_100_000))
    assert run.restore(state)[1] == 0
    run.close()


def test_a_run_without_a_checkpoint_may_be_started_anew(tmp_path):
    Run(tmp_path, Config(steps=0), resume=False).close()
    Run(tmp_path, Config(), resume=False).close()
    assert json.loads((tmp_path / "config.json").read_text())["steps"] == 6


def test_other_data_are_refused_with_the_difference(tmp_path):
    Run(tmp_path, Config(), resume=False, data={"utterances": "12 utterances, ab"}).close()
    with pytest.raises(InputError, match="utterances was '12 utterances, ab' and is '13 utt"):
        Run(tmp_path, Config(), resume=True, data={"utterances": "13 utterances, cd"})


@pytest.mark.parametrize(
    ("content", "said"),
    [('{"format": "daisy_jax/1"}', "holds no run but something else"), ("{", "not JSON")],
)
def test_a_folder_of_something_else_is_left_alone(tmp_path, content, said):
    (tmp_path / "config.json").write_text(content)
    for resume in (False, True):
        with pytest.raises(InputError, match=said):
            Run(tmp_path, Config(), resume=resume)
    assert (tmp_path / "config.json").read_text() == content


def test_a_spoilt_checkpoint_is_named(tmp_path):
    run = Run(tmp_path, Config(), resume=False)
    for step in (1, 2):
        run.save(new_state(step), step, [])
    run.close()
    for path in (tmp_path / "checkpoints" / "2" / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:5])
    run = Run(tmp_path, Config(), resume=True)
    with pytest.raises(InputError, match=r"checkpoints/2: not a whole checkpoint"):
        run.restore(new_state(0))
    run.close()
    shutil.rmtree(tmp_path / "checkpoints" / "2")
    run = Run(tmp_path, Config(), resume=True)
    state, step, _ = run.restore(new_state(0))
    run.close()
    assert step == 1
    np.testing.assert_array_equal(state["w"], np.full(3, 1))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_changed_numbers_of_a_checkpoint_are_noticed(tmp_path, share):
    """A bit of the largest file, in which the numbers are, compressed or not."""
    run = Run(tmp_path, Config(), resume=False)
    state = {"w": jnp.asarray(np.random.default_rng(0).standard_normal(5_000), jnp.float32)}
    run.save(state, 1, [])
    run.close()
    places = (tmp_path / "checkpoints" / "1" / "state").rglob("*")
    path = max((p for p in places if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(path.read_bytes())
    content[int(share * len(content))] ^= 1
    path.write_bytes(content)
    run = Run(tmp_path, Config(), resume=True)
    with pytest.raises(InputError, match=r"checkpoints/1: .* --resume takes the one before"):
        run.restore(jax.tree.map(jnp.zeros_like, state))
    run.close()


def test_a_folder_that_cannot_be_written_is_refused_at_the_start(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file"):
        Run(tmp_path / "file" / "run", Config(), resume=False)


FULL_DISK = """
    import pathlib, resource, signal, sys, time
    import numpy as np
    from test_run_folder import Config, new_state
    from daisy_jax import parallel
    from daisy_jax.training.run_folder import Run
    from daisy_jax.console.terminal import run_command
    from daisy_jax.training.loop import fit

    def main():
        def step(state, batch):
            if batch["number"] == 2:
                while not pathlib.Path(sys.argv[1], "checkpoints", "2").is_dir():
                    time.sleep(0.01)
                # From now on files cannot grow beyond 100 kB.
                resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
            return {"w": state["w"] + batch["noise"]}, {"loss": np.float32(1)}
        def batch(number):
            noise = np.random.default_rng(number).standard_normal(300_000, np.float32)
            return {"number": np.int32(number), "noise": noise}
        run = Run(pathlib.Path(sys.argv[1]), Config(), resume=False)
        state = {"w": np.zeros(300_000, np.float32)}
        fit(run, state, step, batch, steps=6, save_every=2, log_every=2, describe=str)

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    run_command(main)
"""


@pytest.mark.slow("limits the files of a process")
def test_a_disk_that_fills_up_ends_the_run_in_one_line_and_spoils_nothing(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(FULL_DISK))
    done = subprocess.run(
        [sys.executable, script, tmp_path / "run"],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(pathlib.Path(__file__).parent), "PATH": "", "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("step ")]
    assert line == (
        f"error: {tmp_path / 'run' / 'checkpoints'}: a checkpoint could not be written (File too "
        "large); make room, then --resume goes on after step 2"
    )
    run = Run(tmp_path / "run", Config(), resume=True)
    state, step, _ = run.restore(parallel.replicate({"w": np.zeros(300_000, np.float32)}))
    run.save(state, 4, [])  # in the place of what was half written
    run.close()
    assert steps_kept(tmp_path / "run") == [2, 4]
    wanted = sum(
        np.random.default_rng(number).standard_normal(300_000, np.float32) for number in (0, 1)
    )
    assert step == 2
    np.testing.assert_array_equal(state["w"], wanted)


def test_fit_returns_the_state_of_the_lowest_validation_loss(tmp_path):
    losses = iter([0.7, 0.4, 0.9])
    run = Run(tmp_path, Config(), resume=False)
    state = fit(
        run,
        {"w": np.zeros(3, np.float32)},
        jax.jit(lambda state, batch: ({"w": state["w"] + 1}, {"loss": np.float32(1)})),
        lambda number: {"x": np.zeros(4, np.float32)},
        steps=6,
        save_every=2,
        log_every=3,
        validate=lambda state: {"validation_loss": next(losses)},
        describe=str,
    )
    np.testing.assert_array_equal(state["w"], np.full(3, 4))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    validated = [(line["step"], line["validation_loss"]) for line in lines if len(line) == 2]
    assert validated == [(2, 0.7), (4, 0.4), (6, 0.9)]


@pytest.mark.parametrize("at", [4, 6])
def test_a_signal_at_a_validated_step_changes_nothing(tmp_path, at):
    def train(resume, stop_at=0):
        def step(state, batch):
            if int(state["n"]) + 1 == stop_at:
                signal.raise_signal(signal.SIGTERM)
            return {"n": state["n"] + 1}, {"loss": np.float32(1)}

        return fit_six_steps(
            Run(tmp_path, Config(), resume=resume),
            step,
            validate=lambda state: {"validation_loss": {2: 0.7, 4: 0.3, 6: 0.9}[int(state["n"])]},
        )

    def terminate(number, frame):
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        with pytest.raises(Terminated):
            train(False, stop_at=at)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert int(train(True)["n"]) == 4
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    validated = [line["step"] for line in lines if "validation_loss" in line]
    assert validated == [2, 4, 6]


def test_batches_of_nothing_end_the_run(tmp_path):
    def step(state, batch):
        return state, {"loss": np.float32(0), "audio_seconds": np.float32(0)}

    with pytest.raises(InputError, match="no utterance of step 2 could be read"):
        fit_six_steps(Run(tmp_path, Config(), resume=False), step)
    assert not list((tmp_path / "checkpoints").iterdir())


def test_tensorboard_gets_every_number(tmp_path):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    run = Run(tmp_path, Config(), resume=False, tensorboard=True)
    run.log(3, {"loss": 0.5, "layer_loss": [0.25, 0.75]})
    run.close()
    (file,) = (tmp_path / "events").iterdir()
    content, found, place = file.read_bytes(), {}, 0
    while place < len(content):  # length, its checksum, the record, its checksum
        size = int.from_bytes(content[place : place + 8], "little")
        event = Event.FromString(content[place + 12 : place + 12 + size])
        values = [value for value in event.summary.value if value.HasField("simple_value")]
        found |= {value.tag: (event.step, value.simple_value) for value in values}
        place += 16 + size
    assert found == {"loss": (3, 0.5), "layer_loss/1": (3, 0.25), "layer_loss/2": (3, 0.75)}


def test_a_finished_run_goes_on_with_more_steps(tmp_path, caplog):
    def fitted(folder, steps, resume):
        run = Run(folder, Config(steps=steps), resume=resume)

        def step(state, batch):
            state = {"w": state["w"] + batch["x"].sum()}
            return state, {"loss": state["w"].sum()}

        def batch(number):
            return {"x": np.full(4, number, np.float32)}

        options = {"save_every": 4, "log_every": 1, "describe": str}
        state = fit(run, new_state(0), step, batch, steps=steps, **options)
        return np.asarray(state["w"])

    fitted(tmp_path / "short", 6, False)
    caplog.set_level("INFO", "daisy_jax")
    longer = fitted(tmp_path / "short", 9, True)
    assert "goes on from 6 to 9 steps" in caplog.text
    np.testing.assert_array_equal(longer, fitted(tmp_path / "long", 9, False))
    lines = [
        [json.loads(line)["loss"] for line in (path / "metrics.jsonl").read_text().splitlines()]
        for path in (tmp_path / "short", tmp_path / "long")
    ]
    assert lines[0] == lines[1]
    assert json.loads((tmp_path / "short" / "config.json").read_text())["steps"] == 9
    with pytest.raises(InputError, match="steps was 9 and is 6"):
        fitted(tmp_path / "short", 6, True)
