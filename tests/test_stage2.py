"""Stage 2 as programs: train, stop, resume, spread over devices, evaluate, report."""

import json
import pathlib
import re
import shutil
import signal
import subprocess
import types
from typing import Any

import jax
import made_corpora
import numpy as np
import pyarrow.parquet
import pytest
from conftest import environment
from made_models import made_model
from programs import COMMAND, run_here, words_of
from programs import run as run_in_process
from safetensors.numpy import load_file

import daisy_jax
from daisy_jax import InputError
from daisy_jax.study import task_risk
from daisy_jax.tasks.presets import PRESETS, task_class
from daisy_jax.whole_files import write_results

FOLDERS = {
    "asr": "LibriSpeech",
    "sid": "VoxCeleb1",
    "se": "noisy-vctk-16k",
    "ss": "Libri2Mix",
}
SID = ("--ratio", "1", "--cache", "layers")  # which is not what crops are trained on by default
EQUAL = ("--compute-of-layer", "2", "--cache", "entropies")
BASELINE = ("--full", "--no-normalize")
SHORT = "--steps 4 --save-every 2 --log-every 1 --batch-size 4"


def run(script: str, *arguments, status: int = 0, start=run_here, **settings) -> str:
    """What a script prints; what it says on stderr alone if it is to fail."""
    done = start(script, *arguments, "--accelerator=cpu", **settings)
    assert done.returncode == status, done.stderr
    return done.stderr if status else done.stdout + done.stderr


def options(data: pathlib.Path, task: str, output: pathlib.Path, *extra) -> list:
    return [
        *["--task", task, "--model", data / "model", "--data", data / FOLDERS[task]],
        *["--features", data / "features", "--preset", data / "small.toml", "--output", output],
        *[*SHORT.split(), *extra],
    ]


def metrics_of(folder: pathlib.Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timed = ("steps_per_second", "audio_per_second")
    return [{name: line[name] for name in line if name not in timed} for line in lines]


def write_again(folder: pathlib.Path, result: dict) -> None:
    """Other results of the same rows."""
    rows = pyarrow.parquet.read_table(folder / "utterances.parquet").to_pylist()
    write_results(folder, result, rows)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    made_corpora.librispeech(folder / "LibriSpeech", "train-clean-100", 2, 3)
    made_corpora.librispeech(folder / "LibriSpeech", "dev-clean", 1, 2)
    made_corpora.librispeech(folder / "LibriSpeech", "test-clean", 1, 3)
    made_corpora.voxceleb(folder / "VoxCeleb1", 3, 5)
    made_corpora.voicebank(folder / "noisy-vctk-16k")
    made_corpora.libri2mix(folder / "Libri2Mix", {"train-100": 4, "dev": 2, "test": 2})
    daisy_jax.save(made_model(seed=3), folder / "model")
    # The preset daisy-tiny with heads of one narrow layer.
    sections = ("\n" + PRESETS.read_text()).split("\n[")
    tables = (each for each in sections if re.match(r"\w+\.daisy-tiny[\].]", each))
    text = "".join(f"\n[{each}" for each in tables)
    text = re.sub(r"\b(units|projection) = \d+", r"\1 = 8", text)
    (folder / "small.toml").write_text(re.sub(r"\blayers = \d+", "layers = 1", text))
    return folder


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """A run a task: a ratio, equal compute, a static layer, SUPERB's baseline; stored and not."""
    folder = tmp_path_factory.mktemp("runs")
    said = {
        "sid": run("train/downstream.py", *options(data, "sid", folder / "sid", *SID)),
        "asr": run("train/downstream.py", *options(data, "asr", folder / "asr", *BASELINE)),
        "se": run("train/downstream.py", *options(data, "se", folder / "se", "--layer", "2")),
        "ss": run(
            "train/downstream.py",
            *options(data, "ss", folder / "ss", *EQUAL),
        ),
    }
    return folder, said


@pytest.mark.slow("trains heads from end to end")
def test_a_run_leaves_a_head_with_its_exits(data, runs, tmp_path):
    folder, said = runs
    assert "sid, ratio 1: 9 utterances" in said["sid"]
    assert "GB of features" in said["sid"]
    exits = json.loads((folder / "sid" / "head" / "exits.json").read_text())
    model = daisy_jax.load(data / "model")
    files = sorted((data / "VoxCeleb1" / "wav").rglob("0000[012].wav"))
    threshold = exits["threshold"]
    entropies = daisy_jax.encode_files(model, files, threshold=-np.inf)
    mean = np.mean([result.entropy for result in entropies], axis=0)
    assert threshold == pytest.approx(float(daisy_jax.exit_threshold(mean, 1.0)), rel=1e-4)
    layers = [
        result.exit_layer for result in daisy_jax.encode_files(model, files, threshold=threshold)
    ]
    assert exits["exit_counts"] == [layers.count(layer) for layer in (1, 2, 3)]
    assert exits["mean"] == pytest.approx(np.mean(layers))
    # Figure 2 needs no other pass over the training set.
    run("eval/entropy.py", f"sid={folder / 'sid'}", "--output", tmp_path)
    (found,) = json.loads((tmp_path / "entropy.json").read_text())["sets"]
    np.testing.assert_allclose(found["mean_entropy"], mean, rtol=1e-4)
    assert found["utterances"] == 9
    static = json.loads((folder / "se" / "head" / "exits.json").read_text())
    assert static["exit_counts"] == [0, 3, 0]


@pytest.mark.slow("trains heads from end to end")
def test_exits_serve_the_command_line(data, runs):
    folder, _ = runs
    arguments = [data / "VoxCeleb1" / "wav", "--model", data / "model", "--threshold", "1.5"]
    arguments += ["--span", "min-max", "--exits", folder / "sid" / "head" / "exits.json"]
    assert "15 files" in run(COMMAND, "encode", *arguments)


@pytest.mark.slow("stops a process, and goes on")
def test_a_run_that_was_stopped_ends_with_the_same_head(data, runs, tmp_path):
    folder, _ = runs
    again = options(data, "sid", tmp_path / "sid", *SID)
    process = subprocess.Popen(
        words_of("train/downstream.py", *again, "--accelerator=cpu"),
        stderr=subprocess.PIPE,
        text=True,
        env=environment(jax.device_count()),
    )
    for line in process.stderr:
        if line.startswith("step 1/"):
            break
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 143
    assert not (tmp_path / "sid" / "head").exists()
    run("train/downstream.py", *again, "--resume")
    assert metrics_of(tmp_path / "sid") == metrics_of(folder / "sid")
    name = "head/model.safetensors"
    ours, theirs = (load_file(place / "sid" / name) for place in (tmp_path, folder))
    assert ours.keys() == theirs.keys()
    for tensor in ours:
        np.testing.assert_array_equal(ours[tensor], theirs[tensor])
    said = run("train/downstream.py", *again, "--resume", "--learning-rate", "0.5", status=1)
    assert "learning_rate was 0.01 and is 0.5" in said


@pytest.mark.slow("trains heads from end to end")
def test_devices_share_the_batches(data, runs, tmp_path):
    folder, _ = runs
    spread = options(data, "ss", tmp_path, *EQUAL)
    run("train/downstream.py", *spread, start=run_in_process, env=environment(1))
    for line, other in zip(metrics_of(tmp_path), metrics_of(folder / "ss"), strict=True):
        assert line.keys() == other.keys()
        for name in line:
            np.testing.assert_allclose(line[name], other[name], rtol=1e-4)


@pytest.fixture(scope="module")
def report(runs, tmp_path_factory):
    folder, _ = runs
    names = ("sid", "asr", "se", "ss")
    paths = [folder / name for name in names]
    said = run("eval/downstream.py", *paths, "--timed", "1", "--timing-runs", "1")
    output = tmp_path_factory.mktemp("report")
    done = run_here("eval/report.py", *paths, "--output", output)
    assert done.returncode == 0, done.stderr
    return said, done.stdout, output


@pytest.mark.slow("trains heads from end to end")
def test_every_row_of_an_evaluation(runs, report):
    folder, _ = runs
    result = json.loads((folder / "sid" / "evaluation" / "results.json").read_text())
    rules = [row["rule"] for row in result["rows"]]
    assert rules[0] == "ratio 1"
    assert {"span mean", "span min-max"} <= set(rules)
    assert rules[-3:] == [
        "first layer with 100% of the final labels",
        "first layer with 90% of the final labels",
        "best layer of each utterance",
    ]
    values = {}
    for row in result["rows"]:
        values[row["rule"]] = row["measures"]["accuracy"]["value"]
        low, high = row["measures"]["accuracy"]["interval"]
        assert 0 <= low <= values[row["rule"]] <= high <= 1
        assert 1 <= row["mean_exit_layer"] <= 3
        assert (row["time_saved"] is None) == (row["rule"] in rules[-3:])
    assert values["best layer of each utterance"] == max(values.values())
    table = pyarrow.parquet.read_table(folder / "sid" / "evaluation" / "utterances.parquet")
    assert len(table) == 3 * len(rules)
    timed = [row for row in table.to_pylist() if row["upstream_seconds"] is not None]
    assert len(timed) == len(rules) - 3
    full = json.loads((folder / "asr" / "evaluation" / "results.json").read_text())["rows"]
    assert [row["rule"] for row in full] == ["full depth, no LayerNorm"]
    assert full[0]["multiply_adds_saved"] == 0
    live = json.loads((folder / "ss" / "evaluation" / "results.json").read_text())["rows"]
    assert not any("of the final labels" in row["rule"] for row in live)
    noisy = json.loads((folder / "se" / "evaluation" / "results.json").read_text())
    assert 0.5 < noisy["unprocessed"]["stoi"] < 1


@pytest.mark.slow("trains heads from end to end")
@pytest.mark.parametrize(("task", "measure"), [("sid", "accuracy"), ("ss", "si_sdri")])
def test_a_risk_is_certified_on_the_development_set(data, runs, task, measure, tmp_path):
    # Features of "sid" are stored, those of "ss" are computed on the way.
    folder = tmp_path / task
    shutil.copytree(runs[0] / task, folder)
    least = ("--timed", "0", "--no-oracle")
    run("eval/downstream.py", folder, *least, "--part", "dev", "--layers", "1", "2", "3")
    rows = pyarrow.parquet.read_table(folder / "evaluation-dev" / "utterances.parquet").to_pylist()
    # How bad each utterance is at each layer, from what was written by another way.
    value = {"accuracy": lambda v: 1 - v, "si_sdri": lambda v: 1 - min(max(v, 0), 20) / 20}[measure]
    names = sorted({row["id"] for row in rows})
    by_rule = {(row["rule"], row["id"]): value(row[f"{measure}_total"]) for row in rows}
    bad = np.asarray([[by_rule[f"at layer {k}", name] for k in (1, 2, 3)] for name in names])
    place = {"sid": "VoxCeleb1", "ss": "Libri2Mix/wav16k/min/dev/mix_clean"}[task]
    files = [data / place / name for name in names]
    found = daisy_jax.encode_files(daisy_jax.load(data / "model"), files, threshold=-np.inf)
    entropy = np.asarray([result.entropy for result in found])
    loss = np.maximum(bad - bad[:, 2:], 0)
    expected = daisy_jax.threshold_for_risk(entropy, loss, 0.5)
    said = run("eval/downstream.py", folder, *least, "--risk", "0.5", "0.01")
    result = json.loads((folder / "evaluation" / "results.json").read_text())
    (row,) = [row for row in result["rows"] if row["kind"] == "risk"]
    assert (row["rule"], row["value"]) == ("risk 0.5", 0.5)
    assert row["threshold"] == pytest.approx(expected, rel=1e-4)
    assert f"no row for a risk of 0.01: {len(names)} utterances cannot certify" in said
    text = run_here("eval/report.py", folder).stdout
    table = text[: text.index("Time is that of the trunk")]
    assert f"{result['trained']}, risk 0.5 |" in table


@pytest.mark.slow("trains heads from end to end")
def test_a_static_head_certifies_nothing(runs, tmp_path):
    shutil.copytree(runs[0] / "se", tmp_path / "se")
    least = ("--timed", "0", "--no-oracle")
    said = run("eval/downstream.py", tmp_path / "se", *least, "--risk", "0.5")
    assert "no rows for --risk: the task head has never seen the last layer" in said
    result = json.loads((tmp_path / "se" / "evaluation" / "results.json").read_text())
    assert [row["kind"] for row in result["rows"]] == ["own"]


@pytest.mark.usefixtures("unchecked_annotations")
def test_losses_of_a_tasks_own_measure(monkeypatch):
    """By hand: bounds, gains, what is undefined at a layer, at the last one, or unreadable."""
    totals = np.array(
        [
            [3.0, 1.0, 1.0],  # of 4 words
            [0.0, 1.0, 2.0],  # gains by leaving early
            [9.0, 9.0, 1.0],  # more errors than words
            [np.nan, 1.0, 0.0],  # undefined at the first layer alone
            [1.0, 1.0, np.nan],  # undefined at the last
        ]
    )
    weights = np.where(np.isnan(totals), np.nan, 4.0)
    monkeypatch.setattr(task_risk, "sums_by_layer", lambda *_: (totals, weights))
    monkeypatch.setattr(task_risk, "Evaluator", lambda *_: None)
    task = types.SimpleNamespace(measures=task_class("asr").measures)
    entropy = np.arange(15, dtype=np.float32).reshape(5, 3)
    data: Any = types.SimpleNamespace(task=task, entropy=entropy)
    losses = task_risk.task_losses(None, data, None, 60.0)
    np.testing.assert_array_equal(losses.entropy, entropy[:4])
    expected = [[0.5, 0, 0], [0, 0, 0], [0.75, 0.75, 0], [1, 0.25, 0]]
    np.testing.assert_allclose(losses.loss, expected)
    # Where only full depth is certified, no branch is asked.
    choice = task_risk.at_risk(losses._replace(loss=np.array([[1.0, 1, 0]] * 4)), 0.3, None)
    assert (choice.kind, choice.rule.threshold) == ("risk", None)
    assert choice.rule.exits(losses.entropy)[0].tolist() == [3] * 4
    totals[:] = np.nan
    with pytest.raises(InputError, match="WER is not defined for any of 5 utterances"):
        task_risk.task_losses(None, data, None, 60.0)


@pytest.mark.slow("trains heads from end to end")
def test_a_report_says_that_small_corpora_are_stand_ins(report):
    said, text, output = report
    assert "| rule | accuracy, % | exit layer |" in said
    assert text.count("not comparable with the paper: a SMALL STAND-IN for the corpora") == 4
    assert text.startswith("## Table 1")
    assert "## Speech recognition" in text
    assert "| static layer 2 |" in text
    assert "15.45" not in text  # the paper's figures stand beside whole corpora alone
    assert (output / "report.md").read_text() in text + "\n"
    assert (output / "figure3.png").stat().st_size > 10_000
    assert len(json.loads((output / "report.json").read_text())["results"]) == 4


@pytest.mark.slow("trains heads from end to end")
def test_heads_are_compared_at_the_compute_that_they_were_trained_for(data, runs, report, tmp_path):
    folder, _ = runs
    result = json.loads((folder / "ss" / "evaluation" / "results.json").read_text())
    assert result["trained"] == "compute of layer 2"
    layers = result["upstream"]["layers"]
    own = result["rows"][0]
    none, config = np.zeros(layers, bool), daisy_jax.load(data / "model").config
    mixtures = sorted((data / "Libri2Mix/wav16k/min/dev/mix_clean").glob("*.wav"))
    found = list(
        daisy_jax.encode_files(daisy_jax.load(data / "model"), mixtures, threshold=own["threshold"])
    )
    samples = [len(daisy_jax.audio.load(path)) for path in mixtures]
    spent = daisy_jax.multiply_adds(config, samples, [each.exit_layer for each in found])
    assert sum(spent) <= sum(daisy_jax.multiply_adds(config, samples, 2, none))
    shutil.copytree(folder / "ss", tmp_path / "static")
    result["settings"] |= {"layer": 2, "compute_of_layer": None}
    result["trained"] = own["rule"] = "static layer 2"
    write_again(tmp_path / "static" / "evaluation", result)
    text = run_here("eval/report.py", folder / "ss", tmp_path / "static").stdout
    table = text[text.index("Trained and tested at the compute of a static exit at layer 2") :]
    assert re.findall(r"^\| (\w+ \w+ \w+[ \w]*) \|", table, re.MULTILINE) == [
        "static layer 2",
        "compute of layer 2",
    ]


@pytest.mark.slow("trains heads from end to end")
def test_the_papers_figures_stand_beside_whole_corpora(runs, report, tmp_path):
    folder, _ = runs
    result = json.loads((folder / "sid" / "evaluation" / "results.json").read_text())
    shutil.copytree(folder / "sid", tmp_path / "sid")
    settings = result["settings"] | {"preset": "superb"}
    settings |= {name: settings["settings"][name] for name in ("steps", "batch_size")}
    result |= {"utterances": 8200, "training_utterances": 138_361, "settings": settings}
    result["upstream"] |= {"layers": 12, "dim": 768}
    write_again(tmp_path / "sid" / "evaluation", result)
    command = ["eval/report.py", tmp_path / "sid", tmp_path / "none"]
    text = run_here(*command).stdout
    assert re.search(r"\(8200 utterances, [\d.e-]+ h\); the paper's", text)
    assert "| ratio 1, span mean | 79.55 | 31.51 % |" in text
    assert "none has no evaluation" in text
    result["settings"]["steps"] = 20
    write_again(tmp_path / "sid" / "evaluation", result)
    text = run_here(*command).stdout
    assert "not comparable with the paper: steps 20 instead of 500" in text
    assert "79.55" not in text
    del result["settings"]["batch_size"]
    write_again(tmp_path / "sid" / "evaluation", result)
    done = run_here(*command)
    assert done.returncode == 1
    said = "settings: Object missing required field `batch_size`; evaluate"
    assert said in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (["--ratio", "1", "--full"], "--ratio and --full exclude each other"),
        (["--layer", "9"], "layer 9 of a model with 3 layers"),
        (["--layer", "0"], "layer 0 of a model with 3 layers"),
        (["--dev", "7"], "no line of set 7"),
        (["--train", "1", "2"], "sid, train: one part of the corpus was wanted"),
        (["--criterion", "wer"], "criterion is 'wer'; sid has accuracy, loss"),
    ],
)
def test_mistakes_end_in_one_line(data, tmp_path, extra, said):
    line = run("train/downstream.py", *options(data, "sid", tmp_path, *extra), status=1)
    assert said in line.splitlines()[-1]
    assert "Traceback" not in line
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.slow("trains heads from end to end")
def test_a_ratio_needs_branches_and_an_evaluation_its_own_model(data, runs, tmp_path):
    folder, _ = runs
    bare = made_model().replace(branches=None)
    bare = bare.replace(config=type(bare.config)(**{**vars(bare.config), "num_classes": 0}))
    daisy_jax.save(bare, tmp_path / "model")
    arguments = options(data, "sid", tmp_path / "run")
    arguments[arguments.index("--model") + 1] = tmp_path / "model"
    said = run("train/downstream.py", *arguments, status=1)
    assert "has no branches, so no threshold can be met" in said
    said = run("eval/downstream.py", folder / "sid", "--model", tmp_path / "model", status=1)
    assert "is not the model of" in said
    said = run("eval/downstream.py", tmp_path, status=1)
    assert "no run of train/downstream.py there" in said
