"""Measuring in other processes, beside the device's work."""

import os
import signal
import subprocess
import sys
import time

import made_corpora
import numpy as np
import pytest
from made_models import SMALL, made_model

from daisy_jax.data.side_work import SideProcesses
from daisy_jax.errors import InputError
from daisy_jax.exits import fixed_layer
from daisy_jax.tasks.metrics import short_time_intelligibility
from daisy_jax.tasks.presets import make_task, read_preset
from daisy_jax.tasks.task_data import open_examples, with_features
from daisy_jax.tasks.training import Evaluator, new_params


@pytest.mark.slow("starts processes that measure")
def test_what_is_measured_beside_is_what_is_measured_here(tmp_path):
    made_corpora.voicebank(tmp_path / "VoiceBank")
    folder, model = str(tmp_path / "VoiceBank"), made_model()
    task = make_task("se", read_preset("se", "daisy-tiny"))
    examples = open_examples(task, "test", folder)
    data = with_features(task, "test", examples, folder, model, tmp_path / "features", live=False)
    params = new_params(task, SMALL.dim, SMALL.num_layers, (), 0)
    rule, evaluator = fixed_layer(2, SMALL.num_layers), Evaluator(data, 10.0)
    found = evaluator(params, rule).utterances
    assert [each.id for each in found] == list(data.examples.corpus.names)
    outputs = {}
    measure = type(task).measure_beside

    def watched(task, examples, index, output, processes):
        outputs[index] = output
        return measure(task, examples, index, output, processes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(task), "measure_beside", watched)
        evaluator(params, rule)
    for index, utterance in enumerate(found):
        here = task.measure(data.examples, index, outputs[index]).values
        for name, values in utterance.measured.values.items():
            np.testing.assert_array_equal(values, here[name])

    noisy = evaluator.unprocessed()
    assert set(noisy) == {"pesq", "stoi"}
    inputs = [
        task.measure(examples, index, examples.corpus.read(index, 0, int(length))[None]).values
        for index, length in enumerate(examples.corpus.lengths)
    ]
    for name, mean in noisy.items():
        assert mean == np.mean([values[name][0] for values in inputs])


@pytest.fixture(scope="module")
def processes():
    """Those of two tests: each of them takes seconds to start."""
    return SideProcesses()


@pytest.mark.slow("starts processes that measure")
def test_an_error_comes_out_where_the_value_is_wanted(processes):
    silence = np.zeros(9, np.float32)
    assert np.isnan(processes.begin(short_time_intelligibility, silence, silence)())
    with pytest.raises(InputError, match="bad"):
        processes.begin(raise_it, "bad")()


@pytest.mark.slow("kills processes that measure")
@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_what_a_killed_process_owes_is_done_here(processes):
    """As when a batch system sends SIGTERM to every process of a job."""
    victim = processes.begin(os.getpid)()
    assert victim != os.getpid()
    waiting = [processes.begin(sleep_and_tell, number) for number in range(4)]
    os.kill(victim, signal.SIGTERM)
    assert [wait() for wait in waiting] == [0, 1, 2, 3]
    assert [processes.begin(sleep_and_tell, 5)() for _ in range(2)] == [5, 5]


def sleep_and_tell(number):
    time.sleep(0.3)
    return number


def raise_it(text):
    raise InputError(text)


FOREVER = """
import os, time
from daisy_jax.data.side_work import SideProcesses
if __name__ == "__main__":
    processes = SideProcesses()
    print(processes.begin(os.getpid)(), flush=True)
    time.sleep(600)
"""


@pytest.mark.slow("kills a process")
@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_processes_end_with_the_one_that_was_killed(tmp_path):
    (tmp_path / "forever.py").write_text(FOREVER)
    started = subprocess.Popen(
        [sys.executable, tmp_path / "forever.py"], stdout=subprocess.PIPE, text=True
    )
    child = int(started.stdout.readline())
    started.send_signal(signal.SIGKILL)
    started.wait()
    for _ in range(100):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail(f"process {child} outlives the one that started it")
