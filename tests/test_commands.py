import errno
import json
import os
import pathlib
import signal
import subprocess
import time

import numpy as np
import pytest
import sounds
from conftest import environment
from helpers import assert_close_to_scale, encoded_alone
from hypothesis import given, settings
from hypothesis import strategies as st
from made_models import SMALL, made_model
from programs import COMMAND, run, run_here, words_of
from reference import reference_of

import daisy_jax
from daisy_jax.commands import encode as encode_command
from daisy_jax.commands.encode import HEADER, output_paths
from daisy_jax.cost import multiply_adds
from daisy_jax.exits import exit_layers, exit_threshold, threshold_for_budget


@pytest.fixture
def command():
    """Runs `daisy-jax` in this process: exit status, stdout lines, stderr lines."""

    def run(*arguments) -> tuple[int, list[str], list[str]]:
        done = run_here(COMMAND, *arguments)
        return done.returncode, done.stdout.splitlines(), done.stderr.splitlines()

    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Model folders and sounds."""
    folder = tmp_path_factory.mktemp("commands")
    model = made_model()
    daisy_jax.save(model, folder / "plain")
    files = [folder / f"{name}.wav" for name in "abcd"]
    for seed, path in enumerate(files):
        sounds.write(path, sounds.syllables(0.6 + 0.16 * seed, seed))
    batch = daisy_jax.audio.pad_batch([daisy_jax.audio.load(path) for path in files], 2 * 16_000)
    calibration = daisy_jax.calibrate(model, [batch], "made speech")
    daisy_jax.save(model.replace(calibration=calibration), folder / "model")
    daisy_jax.save(model.replace(branches=None, config=SMALL_TRUNK), folder / "trunk")
    return folder


SMALL_TRUNK = type(SMALL)(**{**vars(SMALL), "num_classes": 0})


@pytest.fixture(scope="module")
def model(folder):
    return daisy_jax.load(folder / "model")


@pytest.fixture(scope="module")
def files(folder):
    return [str(folder / f"{name}.wav") for name in "abcd"]


def rows(lines: list[str]) -> list[list[str]]:
    """The table's cells, without header and total."""
    assert lines[0] == HEADER
    return [line.split(maxsplit=5) for line in lines[1:-1]]


def expected(model, file, **options):
    """What `encode` gives for a file alone."""
    return encoded_alone(model, daisy_jax.audio.load(file), 2 * 16_000, **options)


# ---- encode: the table ----


def test_encode_uses_ratio_0_7_of_the_stored_calibration(command, folder, model, files):
    status, lines, errors = command("encode", *files, "--model", folder / "model")
    assert (status, errors) == (0, [])
    threshold = float(exit_threshold(model.calibration.mean_entropy, 0.7))
    layers, costs, fulls, seconds = [], [], [], []
    for row, file in zip(rows(lines), files, strict=True):
        out = expected(model, file, threshold=threshold)
        layer, samples = int(out.exit_layer[0]), len(daisy_jax.audio.load(file))
        cost = int(multiply_adds(SMALL, samples, layer))
        full = int(multiply_adds(SMALL, samples, 3, np.zeros(3, bool)))
        assert row == [
            f"{samples / 16_000:.2f}",
            f"{out.num_frames[0]}",
            f"{layer}{'*' if out.forced[0] else ''}",
            f"{out.entropy[0, layer - 1]:.3f}",
            f"{1 - cost / full:.1%}",
            file,
        ]
        layers.append(layer)
        costs.append(cost)
        fulls.append(full)
        seconds.append(samples / 16_000)
    assert lines[-1] == (
        f"4 files, {sum(seconds):.1f} s, mean exit layer {np.mean(layers):.2f} of 3, "
        f"{1 - sum(costs) / sum(fulls):.1%} of the multiply-adds saved; "
        f"threshold {threshold:.4g} nats (ratio 0.7 on made speech)"
    )
    again = command("encode", *files, "--model", folder / "model", "--ratio", "0.7")
    assert again == (0, lines, [])


def test_every_way_to_choose_the_depth(command, folder, model, files):
    def layers(*options):
        status, lines, errors = command("encode", *files, "--model", folder / "model", *options)
        assert (status, errors) == (0, [])
        return [row[2] for row in rows(lines)], lines[-1]

    assert layers("--threshold", "1e9")[0] == ["1"] * 4
    assert layers("--threshold", "-inf")[0] == ["3*"] * 4
    assert layers("--layer", "2")[0] == ["2"] * 4
    found, total = layers("--full")
    assert found == ["3"] * 4
    assert total.endswith("mean exit layer 3.00 of 3, 0.0% of the multiply-adds saved; full depth")
    assert layers("--ratio", "0")[0] == ["3*"] * 4
    found, total = layers("--budget", "2")
    assert np.mean([int(layer.rstrip("*")) for layer in found]) <= 2
    threshold = threshold_for_budget(model.calibration.entropy, 2)
    assert total.endswith(f"threshold {threshold:.4g} nats (budget 2 layers on made speech)")


@pytest.fixture(scope="module")
def certain(folder, model):
    """A model whose calibration has enough utterances to certify something."""
    rng = np.random.default_rng(0)
    entropy = np.concatenate([model.calibration.entropy + k / 200 for k in range(40)])
    agreement = 1 - rng.uniform(0, [0.4, 0.1, 0.0], (len(entropy), 3))
    calibration = daisy_jax.Calibration(
        entropy.astype(np.float16), "made speech", agreement.astype(np.float16)
    )
    daisy_jax.save(model.replace(calibration=calibration), folder / "certain")
    return calibration


@pytest.mark.parametrize("confidence", [None, 0.9])
def test_an_agreement_is_certified_on_the_calibration(command, folder, files, certain, confidence):
    options = [] if confidence is None else ["--confidence", confidence]
    where = ("--model", folder / "certain", "--agreement", 0.9, *options)
    status, lines, errors = command("encode", *files, *where)
    assert (status, errors) == (0, [])
    loss = 1 - certain.agreement.astype(np.float64)
    threshold = daisy_jax.threshold_for_risk(certain.entropy, loss, 1 - 0.9, confidence)
    model = daisy_jax.load(folder / "certain")
    layers = [int(expected(model, file, threshold=threshold).exit_layer[0]) for file in files]
    assert [int(row[2].rstrip("*")) for row in rows(lines)] == layers
    assert set(layers) - {1, 3}  # the certificate is worth something, and not for nothing
    sure = "" if confidence is None else " with confidence 0.9"
    assert lines[-1].endswith(
        f"threshold {threshold:.4g} nats (agreement 0.9{sure} on made speech)"
    )


def test_what_cannot_be_certified_is_one_line(command, folder, files, certain):
    for options, said in (
        (("--model", folder / "model", "--agreement", "0.9"), "4 utterances cannot certify"),
        (("--model", folder / "old", "--agreement", "0.9"), "run daisy-jax calibrate again"),
        (("--model", folder / "certain", "--confidence", "0.9"), "--confidence belongs to"),
        (("--model", folder / "certain", "--agreement", "1.5"), "agreement is 1.5; it must"),
        (
            ("--model", folder / "certain", "--agreement", "0.9", "--ratio", "1"),
            "--ratio and --agreement exclude each other",
        ),
    ):
        if options[1] == folder / "old":
            model = daisy_jax.load(folder / "model")
            kept = daisy_jax.Calibration(model.calibration.entropy, "of before")
            daisy_jax.save(model.replace(calibration=kept), folder / "old")
        status, _, errors = command("encode", files[0], *options)
        assert status == 1
        assert len(errors) == 1
        assert said in errors[0]


def test_info_says_what_certified_agreement_costs(command, folder, certain):
    lines = command("info", folder / "certain")[1]
    assert "certified with 90% confidence" in lines[-4]
    for line, wanted in zip(lines[-3:], (0.99, 0.95, 0.9), strict=True):
        assert line.startswith(f"  at least {wanted:.0%}  ")
        if "cannot certify" in line:
            continue
        threshold = float(line.split("threshold ")[1].split()[0])
        layers, _ = exit_layers(certain.entropy, threshold + 6e-5)  # it is rounded
        assert float(line.split("exit layer ")[1].split(",")[0]) == pytest.approx(
            layers.mean(), abs=0.02
        )
        assert float(line.split("here ")[1].rstrip("%")) / 100 >= wanted
    assert "saved" in lines[-1]
    assert "cannot certify a loss of at most 0.01" in command("info", folder / "model")[1][-3]


@pytest.mark.parametrize(
    ("span", "layers"), [("mean", [2, 3]), ("threshold", [1, 3]), ("min-max", [1, 2, 3])]
)
def test_spans_allow_the_layers_of_the_exits_file(command, folder, model, files, span, layers):
    exits = folder / "exits.json"
    exits.write_text(json.dumps({"exit_counts": [40, 10, 60]}))
    options = ("--span", span, "--exits", exits, "--threshold", "0.55")
    status, lines, _ = command("encode", *files, "--model", folder / "model", *options)
    assert status == 0
    assert lines[-1].endswith(f", span {span} (layers {', '.join(map(str, layers))})")
    allowed = np.isin(np.arange(1, 4), layers)
    for row, file in zip(rows(lines), files, strict=True):
        out = expected(model, file, threshold=0.55, allowed=allowed)
        assert row[2].rstrip("*") == str(out.exit_layer[0])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--ratio", "0.5", "--layer", "1"], "--ratio and --layer exclude each other"),
        (["--full", "--budget", "2"], "--budget and --full exclude each other"),
        (["--span", "mean"], "--span and --exits belong together"),
        (["--exits", "x.json"], "--span and --exits belong together"),
        (["--layer", "0"], "--layer 0: the model has layers 1 to 3"),
        (["--layer", "4"], "--layer 4: the model has layers 1 to 3"),
        (["--ratio", "1.5"], "ratio is 1.5; it must be in [0, 1]"),
        (["--ratio", "nan"], "ratio is nan; it must be in [0, 1]"),
        (["--threshold", "nan"], "--threshold is nan"),
        (["--budget", "0.5"], "--budget 0.5: give 1 to 3 layers"),
        (["--budget", "4"], "--budget 4: give 1 to 3 layers"),
        (["--hidden-states"], "--hidden-states needs --output"),
        (["--model", "nowhere"], "nowhere: no config.json there"),
    ],
)
def test_options_that_contradict_end_in_one_line(command, folder, files, options, said):
    given = ["encode", *files, "--model", folder / "model", *options]
    status, lines, errors = command(*given)
    assert status == 1
    assert lines == []
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert said in errors[0]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "give an exits file"),
        ("[1, 2, 3]", "give an exits file"),
        ('{"counts": [1, 2, 3]}', "give an exits file"),
        ('{"exit_counts": [1, 2]}', "2 counts for a model of 3 layers"),
        ('{"exit_counts": [[1], [2, 3]]}', "give an exits file"),
        ('{"exit_counts": [1, 2.5, 3]}', "Expected `int`, got `float`"),
        ('{"exit_counts": [1, -2, 3]}', "whole, non-negative numbers"),
        ('{"exit_counts": [0, 0, 0]}', "all zero"),
        (None, "No such file or directory"),
    ],
)
def test_a_wrong_exits_file_ends_in_one_line(command, folder, tmp_path, files, content, said):
    exits = tmp_path / "exits.json"
    if content is not None:
        exits.write_text(content)
    options = ("--span", "mean", "--exits", exits)
    status, lines, errors = command("encode", *files, "--model", folder / "model", *options)
    assert (status, lines, len(errors)) == (1, [], 1)
    assert said in errors[0]


def test_a_model_without_calibration_or_branches_says_the_ways_out(command, folder, files):
    status, _, errors = command("encode", *files, "--model", folder / "plain")
    assert status == 1
    assert "run daisy-jax calibrate, or give --threshold" in errors[0]
    status, _, errors = command("encode", *files, "--model", folder / "trunk", "--threshold", "1")
    assert status == 1
    assert len(errors) == 1
    assert "no branches" in errors[0]
    status, lines, _ = command("encode", *files, "--model", folder / "trunk", "--layer", "2")
    assert status == 0
    assert [row[2:4] for row in rows(lines)] == [["2", "-"]] * 4


def test_no_files_are_an_error(command, folder):
    status, _, errors = command("encode", "--model", folder / "model")
    assert status == 1
    assert errors == ["error: FILES: none are given; give at least one sound file"]


# ---- encode: bad files ----


def test_bad_files_are_one_line_each_and_the_others_are_encoded(command, folder, files, tmp_path):
    bad = sounds.bad_files(tmp_path / ("very_long_folder_name_" * 10))
    long = sounds.write(tmp_path / "long.wav", np.zeros(61 * 16_000))
    bad[long] = "61.0 s long; encode it in windows"
    given = [files[0], *bad, files[1]]
    status, lines, errors = command("encode", *given, "--model", folder / "model", "--full")
    assert status == 1
    assert [row[5] for row in rows(lines)] == files[:2]
    assert lines[-1].startswith(f"2 files, {len(bad)} failed, ")
    assert len(errors) == len(bad)
    for line, (path, said) in zip(errors, bad.items(), strict=True):
        assert line.startswith(f"error: {path}: ")
        assert said in line


def test_folders_stand_for_the_files_in_them(command, folder, files):
    by_folder = command(
        "encode", pathlib.Path(files[0]).parent, "--model", folder / "model", "--full"
    )
    named = [row[5] for row in rows(by_folder[1])]
    assert by_folder[0] == 0
    assert named == sorted(named)
    assert set(files) >= set(named) > {files[0]}


def test_only_bad_files_give_no_total(command, folder):
    status, lines, errors = command("encode", "gone.wav", "--model", folder / "model", "--full")
    assert (status, lines) == (1, [HEADER])
    assert errors == ["error: gone.wav: No such file or directory"]


def test_stereo_and_other_rates_are_served_and_said_once(command, folder, tmp_path):
    stereo = np.tile(sounds.syllables(0.4, 0, 8_000)[:, None], (1, 2))
    served = [sounds.write(tmp_path / f"{n}.wav", stereo, 8_000, "PCM_24") for n in range(3)]
    status, lines, errors = command("encode", *served, "--model", folder / "model", "--full")
    assert status == 0
    assert len(rows(lines)) == 3
    said = " (said for the first file only)"
    assert errors == [
        f"note: {served[0]}: mixed down to one channel{said}",
        f"note: {served[0]}: resampled to 16000 Hz{said}",
        f"note: {served[0]}: integer samples scaled to +-1{said}",
    ]


def test_odd_file_names_stay_on_one_line(command, folder, files, tmp_path, monkeypatch):
    content = pathlib.Path(files[0]).read_bytes()
    names = ["with space.wav", "line\nfeed.wav", "größe.wav", "-dash.wav", os.fsdecode(b"\xff.wav")]
    monkeypatch.chdir(tmp_path)
    for name in names:
        with open(name, "wb") as stream:
            stream.write(content)
    given = ["encode", "--model", folder / "model", "--full", "--output", "out", "--"]
    status, lines, errors = command(*given, *names, "no\nsuch.wav")
    assert status == 1
    assert [row[5] for row in rows(lines)] == [
        "with space.wav",
        "line\\nfeed.wav",
        "größe.wav",
        "-dash.wav",
        "\\udcff.wav",
    ]
    assert errors == ["error: no\\nsuch.wav: No such file or directory"]
    assert sorted(os.listdir("out")) == sorted(f"{name[:-4]}.npz" for name in names)
    for name in names[:4]:
        assert str(np.load(f"out/{name[:-4]}.npz")["path"]) == name


# ---- encode: features ----


def test_output_holds_features_and_how_they_were_made(command, folder, model, files, tmp_path):
    output = tmp_path / "deep" / "features"
    options = ("--threshold", "0.6", "--output", output, "--hidden-states")
    status, _, _ = command("encode", *files, "--model", folder / "model", *options)
    assert status == 0
    assert sorted(os.listdir(output)) == ["a.npz", "b.npz", "c.npz", "d.npz"]
    for file in files:
        out = expected(model, file, threshold=0.6, return_hidden_states=True)
        with np.load(output / f"{pathlib.Path(file).stem}.npz") as stored:
            assert sorted(stored) == [
                "entropy",
                "exit_layer",
                "forced",
                "frame_exit_layer",
                "hidden_states",
                "last_hidden",
                "num_frames",
                "path",
                "settings",
                "window_entropy",
                "window_exit_layer",
                "window_forced",
                "window_seconds",
                "window_start",
            ]
            assert_close_to_scale(stored["last_hidden"], out.last_hidden[0])
            assert stored["hidden_states"].shape == out.hidden_states[0].shape
            exit_layer = int(stored["exit_layer"])
            assert exit_layer == out.exit_layer[0]
            assert_close_to_scale(
                stored["hidden_states"][exit_layer], out.hidden_states[0, exit_layer]
            )
            assert stored["num_frames"] == out.num_frames[0]
            assert stored["forced"] == out.forced[0]
            np.testing.assert_allclose(stored["entropy"], out.entropy[0], rtol=1e-5)
            assert stored["last_hidden"].dtype == stored["entropy"].dtype == np.float32
            assert str(stored["path"]) == file
            assert str(stored["settings"]) == "threshold 0.6 nats"


def test_without_hidden_states_none_are_written(command, folder, files, tmp_path):
    options = ("--full", "--output", tmp_path)
    assert command("encode", files[0], "--model", folder / "model", *options)[0] == 0
    assert "hidden_states" not in np.load(tmp_path / "a.npz")


def test_an_output_that_is_a_file_is_refused_before_any_work(command, folder, files, tmp_path):
    (tmp_path / "taken").touch()
    options = ("--full", "--output", tmp_path / "taken")
    status, lines, errors = command("encode", *files, "--model", folder / "model", *options)
    assert (status, lines, len(errors)) == (1, [], 1)
    assert str(tmp_path / "taken") in errors[0]


@pytest.mark.parametrize("code", [errno.EACCES, errno.ENOSPC])
def test_a_failed_write_keeps_what_was_there_and_leaves_no_half(
    command, folder, files, tmp_path, monkeypatch, code
):
    options = ("--full", "--output", tmp_path)
    assert command("encode", files[0], "--model", folder / "model", *options)[0] == 0
    before = (tmp_path / "a.npz").read_bytes()

    def fail(stream, **arrays):
        stream.write(b"half")
        raise OSError(code, os.strerror(code), stream.name)

    monkeypatch.setattr(encode_command.np, "savez", fail)
    status, _, errors = command("encode", *files, "--model", folder / "model", *options)
    assert status == 1
    assert len(errors) == 1
    assert os.strerror(code) in errors[0]
    assert os.listdir(tmp_path) == ["a.npz"]
    assert (tmp_path / "a.npz").read_bytes() == before


def test_equal_stems_keep_enough_of_their_folders():
    files = ["/data/one/x.wav", "/data/two/x.wav", "/data/two/y.wav", "/other/one/x.wav"]
    assert [str(path) for path in output_paths(files, "out")] == [
        "out/data/one/x.npz",
        "out/two/x.npz",
        "out/y.npz",
        "out/other/one/x.npz",
    ]


def test_equal_stems_in_one_folder_keep_their_suffix():
    files = ["/d/x.wav", "/d/x.flac", "/d/y.wav", "/d/z.a.wav", "/d/z.b.wav", "/e/y.mp3"]
    assert [str(path) for path in output_paths(files, "out")] == [
        "out/x.wav.npz",
        "out/x.flac.npz",
        "out/d/y.npz",
        "out/z.a.npz",
        "out/z.b.npz",
        "out/e/y.npz",
    ]


def test_a_file_in_the_root_folder_stays_below_the_output():
    assert [str(path) for path in output_paths(["/x.wav", "/d/x.wav"], "out")] == [
        "out/x.npz",
        "out/d/x.npz",
    ]
    assert len(output_paths(["/", "/d/x.wav"], "out")) == 2


PARTS = st.sampled_from(["x", "y", "x.wav", "x.wav.mp3", ".wav", "y.b", "-"])


@settings(deadline=None)
@given(st.lists(st.lists(PARTS, min_size=1, max_size=3), min_size=1, max_size=6))
def test_different_files_never_share_an_output(parts):
    files = ["/".join(["", *names]) for names in parts]
    targets = output_paths(files, "out")
    assert len(set(targets)) == len(set(files))
    for target in targets:
        assert target.parts[0] == "out"
        assert target.suffix == ".npz"


# ---- calibrate and info ----


def logits_of(model, path):
    """What every branch says of a file, by the float64 reference."""
    reference = reference_of(model)
    taps = reference.everything(daisy_jax.audio.load(path))[2]
    kernel, bias = (reference.weights[f"branches.{name}"] for name in ("kernel", "bias"))
    return taps @ kernel + bias[:, None]


@pytest.fixture
def fresh(tmp_path):
    daisy_jax.save(made_model(), tmp_path / "model")
    return tmp_path / "model"


def test_calibrate_stores_entropies_and_encode_works_afterwards(command, fresh, files, tmp_path):
    speech = sounds.speech_folder(tmp_path / "speech", 3, (0.5, 1.0))
    status, lines, errors = command("calibrate", fresh, speech, files[0])
    assert (status, errors) == (0, [])
    assert lines[0] == "calibration: 4 utterances of speech"
    model = daisy_jax.load(fresh)
    assert model.calibration.dataset == "speech"
    paths = [*(speech / name for name in ("sub/utterance1.flac", "utterance0.flac"))]
    for row, path in zip(model.calibration.entropy, paths, strict=False):
        out = expected(model, path, threshold=-np.inf)
        np.testing.assert_allclose(row, np.asarray(out.entropy[0], np.float16), rtol=1e-3)
        labels = np.argmax(logits_of(model, path), axis=-1)
        same = np.mean(labels == labels[-1:], axis=-1)
        place = paths.index(path)
        np.testing.assert_allclose(model.calibration.agreement[place], same, atol=5e-4)
    for ratio in (0.7, 0.76, 1.0):
        threshold = float(exit_threshold(model.calibration.mean_entropy, ratio))
        stated = [line.split()[3] for line in lines if line.startswith(f"  ratio {ratio:<4} ")]
        assert float(stated[0]) == pytest.approx(threshold, abs=1e-3)
    assert command("encode", files[0], "--model", fresh, "--ratio", "0.7")[0] == 0


def test_calibrate_serves_the_good_files_among_bad_ones(command, fresh, files, tmp_path):
    (tmp_path / "bad.wav").touch()
    name = ("--name", "two of mine")
    status, lines, errors = command(
        "calibrate", fresh, files[0], tmp_path / "bad.wav", files[1], *name
    )
    assert status == 1
    assert errors == [f"error: {tmp_path / 'bad.wav'}: the file is empty; record or copy it again"]
    assert lines[0] == "calibration: 2 utterances of two of mine"
    assert daisy_jax.load(fresh).calibration.entropy.shape == (2, 3)


def test_calibrate_without_a_good_file_keeps_the_old_calibration(command, fresh, files, tmp_path):
    assert command("calibrate", fresh, files[0])[0] == 0
    before = daisy_jax.load(fresh).calibration
    assert before.dataset == pathlib.Path(files[0]).parent.name
    for paths, said in (
        ([tmp_path / "gone.wav"], "none of 1 files could be encoded"),
        ([], "FILES: none"),
    ):
        status, _, errors = command("calibrate", fresh, *paths)
        assert status == 1
        assert said in errors[-1]
    assert daisy_jax.load(fresh).calibration == before


def test_calibrate_keeps_the_storage_type(command, tmp_path, files):
    daisy_jax.save(made_model(), tmp_path / "half", dtype="float16")
    size = (tmp_path / "half" / "model.safetensors").stat().st_size
    assert command("calibrate", tmp_path / "half", files[0])[0] == 0
    assert (tmp_path / "half" / "model.safetensors").stat().st_size < size + 300


def test_calibrate_needs_branches(command, folder, files):
    status, _, errors = command("calibrate", folder / "trunk", files[0])
    assert status == 1
    assert "has no branches" in errors[0]


def test_info_shows_parts_and_thresholds(command, folder, model):
    status, lines, errors = command("info", folder / "model")
    assert (status, errors) == (0, [])
    text = "\n".join(lines)
    assert "prediction head: 6 clusters" in text
    assert "branches: 6 classes a layer" in text
    assert "calibration: 4 utterances of made speech" in text
    assert f"{float(exit_threshold(model.calibration.mean_entropy, 0.76)):.4f} nats" in text
    status, lines, _ = command("info", folder / "trunk")
    assert status == 0
    assert "branches: none" in lines
    assert lines[-1] == "calibration: none; it needs branches first"
    status, lines, _ = command("info", folder / "plain")
    assert lines[-1] == "calibration: none; run daisy-jax calibrate"


def test_info_of_nothing_is_one_line(command, tmp_path):
    status, lines, errors = command("info", tmp_path)
    assert (status, lines, len(errors)) == (1, [], 1)


# ---- the program ----


@pytest.mark.parametrize(
    ("arguments", "taught"),
    [
        (["--help"], ["encode", "extract", "calibrate", "info", "convert"]),
        (
            ["encode", "--help"],
            ["--ratio", "--budget", "nats", "exit_counts", ".npz", "at ratio 0.7"],
        ),
        (["extract", "--help"], ["LIST", "fairseq", "--shard", "feature store"]),
        (["calibrate", "--help"], ["entropy", "--name", "folders"]),
        (["info", "--help"], ["model folder"]),
        (["convert", "--help"], ["transformers", "without torch"]),
    ],
)
def test_help_teaches(command, arguments, taught):
    status, lines, _ = command(*arguments)
    assert status == 0
    text = " ".join(" ".join(lines).replace("│", " ").split())
    for word in taught:
        assert word in text


def test_an_unknown_option_is_an_error(command, folder):
    assert command("encode", "x.wav", "--rato", "1")[0] == 2
    assert command()[0] == 2


@pytest.mark.slow("starts the program as a process")
def test_the_program_itself_gives_status_and_streams(folder, files):
    given = ["encode", files[0], "gone.wav", "--model", folder / "model", "--accelerator", "cpu"]
    done = run(COMMAND, *given)
    assert done.returncode == 1
    assert done.stderr == "error: gone.wav: No such file or directory\n"
    assert len(done.stdout.splitlines()) == 3


@pytest.mark.slow("kills a process")
def test_sigterm_ends_the_program_with_143(folder, files):
    many = [files[0]] * 5_000  # more than it can encode before the signal
    words = words_of(COMMAND, "encode", *many, "--model", folder / "model", "--full")
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert process.stdout.readline().decode().rstrip("\n") == HEADER
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 143
    assert errors == b""


# ---------------------------------------------------------------- length and compilation


def test_the_longest_length_is_an_option(command, folder, files):
    status, out, err = command("encode", *files, "--model", folder / "model", "--max-seconds", 1)
    assert status == 1
    assert len(rows(out)) == 3
    (said,) = err
    assert said.startswith(f"error: {files[3]}: 1.1 s long; encode it in windows")
    for wrong in ("0", "-1", "nan"):
        status, _, err = command("encode", *files, "--max-seconds", wrong)
        assert (status, len(err)) == (1, 1)
        assert "give seconds above 0" in err[0]


@pytest.mark.slow("the compilation cache belongs to a process")
def test_a_compilation_cache_is_filled_and_used(folder, files, tmp_path):
    given = ["encode", files[0], "--model", folder / "model"]
    logs = environment() | {"JAX_LOGGING_LEVEL": "DEBUG", "XDG_CACHE_HOME": str(tmp_path)}
    del logs["JAX_COMPILATION_CACHE_DIR"]
    first, second = (run(COMMAND, *given, env=logs) for _ in range(2))
    assert (first.returncode, second.returncode) == (0, 0)
    assert first.stdout == second.stdout
    (place,) = (tmp_path / "daisy_jax/compiled").iterdir()
    assert any(place.iterdir())
    found = "cache hit for 'jit__compiled'"
    assert found not in first.stderr
    assert found in second.stderr


@pytest.mark.parametrize("words", [(COMMAND,), (COMMAND, "encode"), ("train/branches.py",)])
def test_every_program_says_its_version(words):
    done = run_here(*words, "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"daisy-jax {daisy_jax.__version__}, jax ")
