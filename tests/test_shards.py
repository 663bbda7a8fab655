"""Whole corpora: every file exactly once, whatever is killed, cut off, repeated or full."""

import pathlib

import jax
import numpy as np
import pytest
import soundfile
import sounds
from helpers import encoded_alone
from made_models import SMALL, made_model

import daisy_jax
from daisy_jax import audio
from daisy_jax.data.file_list import deal, read_list
from daisy_jax.errors import InputError
from daisy_jax.exits import ExitRule
from daisy_jax.features import contents, extract
from daisy_jax.features.extract import Extractor, encode_shard, shard_size
from daisy_jax.features.shard_format import npy_file, part_file, shard_file
from daisy_jax.features.store import FeatureStore

LAYERS = SMALL.num_layers
EVERYWHERE = np.ones(LAYERS, bool)


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    return sounds.speech_folder(tmp_path_factory.mktemp("speech"), 7, (0.3, 0.9))


@pytest.fixture(scope="module")
def listed(speech, tmp_path_factory):
    """A list with a repeated line, fairseq's numbers of some files, and two that are no audio."""
    names = sorted(str(path.relative_to(speech)) for path in speech.rglob("*.flac"))
    (speech / "note.txt").write_text("nothing")
    known = [f"{name}\t{soundfile.info(speech / name).frames}" for name in names[::2]]
    lines = [str(speech), *known, *names[1::2], f"./{names[0]}", "gone.wav"]
    path = tmp_path_factory.mktemp("list") / "all.tsv"
    path.write_text("\n".join([*lines, "note.txt"]) + "\n")
    return path


@pytest.fixture(scope="module")
def extractor(model):
    return Extractor(model, contents.at_exit(ExitRule("", float(threshold_of(model)), EVERYWHERE)))


def encoded(model, waveform, **options):
    return encoded_alone(model, waveform, 16_000, **options)


def threshold_of(model):
    """In the middle of the entropies of some noise."""
    noise = np.random.default_rng(0).standard_normal(8_000).astype(np.float32)
    return np.median(encoded(model, noise, threshold=-np.inf).entropy)


def all_shards(extractor, files, folder, count=3, **options):
    for number in range(count):
        encode_shard(extractor, files, number, count, folder, **options)
    return FeatureStore(folder)


# ---- lists ----


def test_a_files_number_is_used_and_a_wrong_one_is_its_error(
    extractor, speech, tmp_path, monkeypatch
):
    names = sorted(str(path.relative_to(speech)) for path in speech.rglob("*.flac"))[:4]
    frames = [soundfile.info(speech / name).frames for name in names]
    told = [frames[0], frames[1] - 320, 399, frames[3] + 1]
    lines = [f"{name}\t{number}" for name, number in zip(names, told, strict=True)]
    (tmp_path / "list").write_text("\n".join([str(speech), *lines, "gone.wav\t5000"]))
    monkeypatch.setattr(extract, "open_file", lambda path: pytest.fail("was opened"))
    files = read_list(tmp_path / "list")
    rows = {row.id: row for row in encode_shard(extractor, files, 0, 1, tmp_path / "store")}
    assert rows[names[0]].error is None
    assert rows[names[0]].frames == audio.frame_count(frames[0])
    for index in (1, 3):
        said = f"{frames[index]} samples at 16 kHz, and the list says {told[index]}"
        assert said in rows[names[index]].error
    assert "shorter than 400 samples" in rows[names[2]].error
    assert "gone.wav" in rows["gone.wav"].error


def test_a_list_has_each_file_once(listed, speech):
    files = read_list(listed)
    assert files.folder == speech
    assert len(files.names) == 9
    assert files.repeated == 1
    assert files.digest == read_list(listed).digest


@pytest.mark.parametrize("count", [1, 2, 5, 20])
def test_dealing_gives_each_file_to_one_shard(count):
    names = [str(number) for number in range(17)]
    dealt = [deal(names, number, count) for number in range(count)]
    assert sorted((name for part in dealt for name in part), key=int) == names
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
    for wrong in (-1, count):
        with pytest.raises(InputError, match=f"shards of {count} are 0 to {count - 1}"):
            deal(names, wrong, count)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "its first line is ''"),
        ("/nowhere/at/all\na.wav\n", "its first line is '/nowhere/at/all'"),
        ("{folder}\n", "lists no file"),
        ("{folder}\n../a.wav\n", "does not lie below"),
        ("{folder}\n/etc/passwd\n", "does not lie below"),
    ],
)
def test_what_is_no_list_is_refused(tmp_path, text, said):
    path = tmp_path / "list"
    path.write_text(text.format(folder=tmp_path))
    with pytest.raises(InputError, match=said):
        read_list(path)
    with pytest.raises(InputError, match="is a folder"):
        read_list(tmp_path)


def test_shards_of_more_items_have_fewer_files():
    assert [shard_size(items) for items in (0, 1, 4, 100)] == [512, 512, 128, 32]


def test_two_spellings_are_one_file_and_odd_names_are_kept(tmp_path):
    names = [
        "a/b.wav",
        "./a//b.wav",
        "a/./b.wav",
        "no\xa0break.wav",
        "line\x85.wav",
        "bell\x07.wav",
    ]
    text = "\n".join([str(tmp_path), *names])
    path = tmp_path / "list"
    path.write_bytes(text.encode() + b"\nlatin-\xe9.wav\r\n")
    files = read_list(path)
    wanted = ["a/b.wav", "no\xa0break.wav", r"line\x85.wav", r"bell\x07.wav"]
    assert files.names[:4] == wanted
    assert files.names[4].startswith(r"latin-\xe9.wav")
    assert files.repeated == 2


# ---- contents ----


def test_exits_are_those_of_encode(extractor, model, listed, tmp_path):
    store = all_shards(extractor, read_list(listed), tmp_path / "store")
    assert store.items == ["exit"]
    threshold = float(threshold_of(model))
    readable = 0
    for index, row in enumerate(store.rows):
        if row.error is not None:
            continue
        out = encoded(model, audio.load(row.path), threshold=threshold)
        assert (row.exit_layer, row.forced) == (int(out.exit_layer[0]), bool(out.forced[0]))
        found = store.read(index)
        assert found.dtype == np.float16
        np.testing.assert_allclose(found[0], out.last_hidden[0], rtol=1e-3, atol=2e-3)
        np.testing.assert_allclose(row.entropy, out.entropy[0], rtol=1e-5)
        readable += 1
    assert readable == 7
    assert len({row.exit_layer for row in store.rows if row.frames}) > 1


def test_each_file_is_there_once_and_errors_are_in_the_table(extractor, listed, speech, tmp_path):
    store = all_shards(extractor, read_list(listed), tmp_path / "store")
    assert sorted(row.id for row in store.rows) == sorted(read_list(listed).names)
    assert store.errors.keys() == {str(speech / "gone.wav"), str(speech / "note.txt")}
    assert "No such file" in store.errors[str(speech / "gone.wav")]
    assert "not readable as audio" in store.errors[str(speech / "note.txt")]
    assert store.verify() == []


def test_a_file_of_its_own_for_each_utterance(extractor, listed, tmp_path):
    files = read_list(listed)
    whole = all_shards(extractor, files, tmp_path / "whole")
    apart = all_shards(extractor, files, tmp_path / "apart", npy=True)
    for index, row in enumerate(whole.rows):
        if row.frames:
            np.testing.assert_array_equal(apart.read(index), whole.read(index))
            alone = np.load(npy_file(apart.folder, row.id))
            np.testing.assert_array_equal(alone, whole.read(index)[0])
    assert not list(apart.folder.glob("*.safetensors"))
    assert apart.verify() == []
    with pytest.raises(InputError, match=r"holds features of something else .*layout"):
        encode_shard(extractor, files, 0, 3, tmp_path / "apart")


@pytest.mark.slow("compiles for each kind of content")
@pytest.mark.parametrize("kind", ["pooled", "layers", "labels", "units"])
def test_other_contents_are_those_of_the_library(model, listed, tmp_path, kind):
    rng = np.random.default_rng(0)
    weights = rng.standard_normal(LAYERS + 1).astype(np.float32)
    centroids = rng.standard_normal((5, SMALL.dim)).astype(np.float32)
    rule = ExitRule("", float(threshold_of(model)), EVERYWHERE)
    content = {
        "pooled": contents.at_exit(rule, weights),
        "layers": contents.layers((0, 2)),
        "labels": contents.labels(),
        "units": contents.units(centroids, 2),
    }[kind]
    store = all_shards(Extractor(model, content), read_list(listed), tmp_path / "store", 2)
    index = next(place for place, row in enumerate(store.rows) if row.frames)
    row, found = store.rows[index], store.read(index)
    waveform = audio.load(row.path)
    if kind == "pooled":
        out = encoded(model, waveform, threshold=rule.threshold, layer_weights=weights)
        np.testing.assert_allclose(found, out.pooled, rtol=1e-3, atol=2e-3)
    if kind == "layers":
        out = encoded(model, waveform, threshold=-np.inf, return_hidden_states=True)
        np.testing.assert_allclose(found, out.hidden_states[0, [0, 2]], rtol=1e-3, atol=2e-3)
        np.testing.assert_allclose(row.entropy, out.entropy[0], rtol=1e-5)
        assert row.agreement[-1] == 1
    if kind == "labels":
        wanted = jax.jit(daisy_jax.frame_labels)(model, waveform[None])
        np.testing.assert_array_equal(found, wanted)
    if kind == "units":
        out = encoded(model, waveform, return_hidden_states=True)
        hidden = np.asarray(out.hidden_states[0, 2], np.float64)
        distances = ((hidden[:, None] - centroids[None]) ** 2).sum(axis=-1)
        np.testing.assert_array_equal(found[0], distances.argmin(axis=-1))
    if kind in ("labels", "units"):
        assert found.dtype == np.int32


def test_half_precision_costs_what_is_promised(model, listed, tmp_path):
    store = all_shards(
        Extractor(model, contents.layers((LAYERS,))), read_list(listed), tmp_path / "s", 1
    )
    index = next(place for place, row in enumerate(store.rows) if row.frames)
    out = encoded(model, audio.load(store.rows[index].path), return_hidden_states=True)
    wanted = out.hidden_states[0, -1].astype(np.float64)
    error = np.abs(store.read(index)[0] - wanted) / np.abs(wanted)
    assert np.max(error[np.abs(wanted) > 1e-3]) < 2**-11 + 1e-4


def test_contents_that_a_model_cannot_yield_are_refused(model):
    bare = model.replace(branches=None)
    rule = ExitRule("", 0.5, EVERYWHERE)
    for content, said in (
        (contents.at_exit(rule), "no branches"),
        (contents.layers((9,)), "layer 9: the model has 0 to"),
        (contents.units(np.zeros((3, 7), np.float32), 1), r"centroids have the shape \(3, 7\)"),
        (contents.units(np.zeros((3, SMALL.dim), np.float32), 99), "layer 99"),
        (contents.units(np.zeros((0, SMALL.dim), np.float32), 1), "centroids have the shape"),
        (contents.units(np.full((2, SMALL.dim), np.nan, np.float32), 1), "hold NaN or infinite"),
    ):
        with pytest.raises(InputError, match=said):
            Extractor(bare, content)
    with pytest.raises(InputError, match="prediction head"):
        Extractor(model.replace(head=None), contents.labels())


def test_labels_of_another_head_are_not_taken_for_these(model, listed, tmp_path):
    files = read_list(listed)
    encode_shard(Extractor(model, contents.labels()), files, 0, 3, tmp_path)
    other = model.replace(head=made_model(seed=1).head)
    with pytest.raises(InputError, match=r"something else .*head"):
        encode_shard(Extractor(other, contents.labels()), files, 0, 3, tmp_path)


# ---- whole, or not there ----


def test_another_folder_of_the_same_names_is_another_list(extractor, listed, speech, tmp_path):
    encode_shard(extractor, read_list(listed), 0, 3, tmp_path / "store")
    other = tmp_path / "other"
    for path in speech.rglob("*.flac"):
        sounds.write(other / path.relative_to(speech), 0.5 * audio.load(path))
    lines = listed.read_text().splitlines()
    (tmp_path / "list").write_text("\n".join([str(other), *lines[1:]]))
    with pytest.raises(InputError, match=r"something else .*corpus"):
        encode_shard(extractor, read_list(tmp_path / "list"), 0, 3, tmp_path / "store")


def test_files_are_readable_for_whom_the_mask_says(extractor, listed, tmp_path):
    encode_shard(extractor, read_list(listed), 0, 3, tmp_path)
    modes = {path.stat().st_mode for path in (shard_file(tmp_path, 0), part_file(tmp_path, 0))}
    assert len(modes) == 1


@pytest.mark.parametrize("npy", [False, True])
def test_a_shard_that_is_made_again_and_stopped_is_not_half_another(
    extractor, listed, tmp_path, monkeypatch, npy
):
    """Its part of the index must not speak of features that are no longer there."""
    encode_shard(extractor, read_list(listed), 0, 1, tmp_path, npy=npy)
    calls, replace = [], pathlib.Path.replace

    def stopped(partial, target):
        calls.append(target)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return replace(partial, target)

    with monkeypatch.context() as context:
        context.setattr(pathlib.Path, "replace", stopped)
        with pytest.raises(KeyboardInterrupt):
            encode_shard(extractor, read_list(listed), 0, 1, tmp_path, npy=npy, retry=True)
    with pytest.raises(InputError, match="no feature store there"):
        FeatureStore(tmp_path)
    encode_shard(extractor, read_list(listed), 0, 1, tmp_path, npy=npy)
    assert FeatureStore(tmp_path).verify() == []


def test_a_finished_shard_is_left_alone(extractor, listed, tmp_path):
    files = read_list(listed)
    first = encode_shard(extractor, files, 0, 3, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    assert encode_shard(extractor, files, 0, 3, tmp_path) == first
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    with pytest.raises(InputError, match=r"something else .*shards 3 and not 4"):
        encode_shard(extractor, files, 0, 4, tmp_path)


@pytest.mark.parametrize("damage", ["a bit", "cut", "gone", "part"])
def test_a_spoilt_shard_is_made_again(extractor, listed, tmp_path, damage):
    files = read_list(listed)
    store = all_shards(extractor, files, tmp_path)
    wanted = [store.read(index) for index, row in enumerate(store.rows) if row.frames]
    shard = part_file(tmp_path, 1) if damage == "part" else shard_file(tmp_path, 1)
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content if damage == "a bit" else content[:99])
    if damage == "gone":
        shard.unlink()
    again = all_shards(extractor, files, tmp_path)
    assert again.verify() == []
    found = [again.read(index) for index, row in enumerate(again.rows) if row.frames]
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_disk_that_is_full_costs_one_shard_and_is_said(extractor, listed, tmp_path, monkeypatch):
    files = read_list(listed)
    encode_shard(extractor, files, 0, 3, tmp_path)

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("daisy_jax.features.shard_format.save_file", full)
        with pytest.raises(OSError, match="No space left"):
            encode_shard(extractor, files, 1, 3, tmp_path)
    assert not list(tmp_path.rglob("*partial*"))
    assert not part_file(tmp_path, 1).exists()
    with pytest.raises(InputError, match="1 of 3 shards are there"):
        FeatureStore(tmp_path)
    assert len(all_shards(extractor, files, tmp_path).rows) == 9


def test_too_long_files_are_errors(extractor, listed, tmp_path):
    store = all_shards(extractor, read_list(listed), tmp_path, max_seconds=0.5)
    long = [error for error in store.errors.values() if "encode it in windows" in str(error)]
    assert len(long) == 4
    assert sum(row.frames > 0 for row in store.rows) == 3


def test_a_shard_of_nothing_but_bad_files_is_a_shard(extractor, speech, tmp_path):
    path = tmp_path / "list"
    path.write_text(f"{speech}\ngone.wav\nnote.txt\n")
    store = all_shards(extractor, read_list(path), tmp_path / "store", 3)
    assert [row.frames for row in store.rows] == [0, 0]
    assert len(store.errors) == 2


# ---- Kaldi's lists ----


def scp(folder, lines):
    path = folder / "wav.scp"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_kaldis_list_gives_names_to_files(extractor, speech, tmp_path, monkeypatch):
    files = sorted(speech.rglob("*.flac"))[:3]
    monkeypatch.chdir(speech)
    lines = [f"spk1/utt-1  {files[0]}", "", f"utt2 {files[1].relative_to(speech)}"]
    lines += [lines[0], f"utt3 {files[2]}", "gone nowhere/gone.wav"]
    listed = read_list(scp(tmp_path, lines))
    assert listed.names == ["spk1/utt-1", "utt2", "utt3", "gone"]
    assert (listed.repeated, listed.path("utt2")) == (1, files[1])
    store = all_shards(extractor, listed, tmp_path / "store", 2)
    rows = {row.id: row for row in store.rows}
    assert [rows[name].path for name in listed.names[:3]] == [str(file) for file in files]
    assert "nowhere/gone.wav: No such file" in rows["gone"].error
    other = "".join(f"{path.relative_to(speech)}\n" for path in files)
    (tmp_path / "list").write_text(f"{speech}\n{other}", encoding="utf-8")
    plain = all_shards(extractor, read_list(tmp_path / "list"), tmp_path / "plain", 1)
    for number, row in enumerate(plain.rows):
        at = next(n for n, other in enumerate(store.rows) if other.path == row.path)
        np.testing.assert_array_equal(store.read(at), plain.read(number))


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (
            ["u1 sph2pipe a.sph |"],
            r"wav\.scp:1: u1 is a command \(sph2pipe a\.sph \|",
        ),
        (["u1 a.wav", "u2 -"], r"wav\.scp:2: u2 is a command"),
        (["u1"], r"wav\.scp:1: 'u1' has no path"),
        (["u1 a.wav", "u1 b.wav"], r"wav\.scp:2: u1 is the name of two files"),
        (["../u1 a.wav"], r"'\.\./u1' cannot be a name"),
        ([""], "lists no file"),
    ],
)
def test_what_is_no_list_of_files_of_kaldis(tmp_path, lines, said):
    with pytest.raises(InputError, match=said):
        read_list(scp(tmp_path, lines))
