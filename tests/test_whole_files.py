"""Files that are written as a whole: what stays after a fault, a kill, or another process."""

import ast
import errno
import json
import os
import pathlib
import platform
import stat
import subprocess
import sys
import time

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from safetensors.numpy import save_file

import daisy_jax
from daisy_jax import InputError
from daisy_jax.data import prepared
from daisy_jax.errors import said_of_system
from daisy_jax.whole_files import files_digest, read_json, whole_files, write_json, write_text

PROJECT = pathlib.Path(__file__).parents[1]


def test_files_take_their_places_together(tmp_path):
    paths = tmp_path / "new" / "a", tmp_path / "b"
    with whole_files(*paths) as partials:
        for partial, text in zip(partials, "AB", strict=True):
            partial.write_text(text)
        assert not any(path.exists() for path in paths)
    assert [path.read_text() for path in paths] == ["A", "B"]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b", "new"]


def test_after_a_fault_everything_is_as_before(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("before")

    def write():
        with whole_files(old, new) as partials:
            for partial in partials:
                partial.write_text("after")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write()
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert old.read_text() == "before"


def test_files_are_made_as_this_process_makes_files(tmp_path):
    before = os.umask(0o027)
    try:
        with whole_files(tmp_path / "a") as (partial,):
            save_file({"x": np.zeros(1)}, partial)  # which the owner alone could read
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_a_folder_in_the_way_is_named(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(IsADirectoryError) as error, whole_files(tmp_path / "a"):
        pass
    assert error.value.filename == str(tmp_path / "a")


def test_a_full_disk_of_safetensors_is_an_os_error_with_the_path(tmp_path):
    tensors = {"x": np.zeros(1)}
    with (
        pytest.raises(OSError, match=f"No such file or directory: '{tmp_path / 'a'}'"),
        whole_files(tmp_path / "a") as (partial,),
    ):
        save_file(tensors, partial / "in a folder that is not there")


def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path):
    path = tmp_path / (250 * "n" + ".json")
    write_json(path, {})
    assert path.read_text() == "{}\n"


def test_what_is_planted_beside_a_file_is_not_followed(tmp_path):
    """Whoever knows host, process and name of the file cannot know where it is written."""
    (tmp_path / "secret").write_text("before")
    seen = []
    for _ in range(2):
        with whole_files(tmp_path / "a") as (partial,):
            assert partial.parent.stat().st_mode & 0o777 == 0o700
            seen.append(partial.parent)
    assert seen[0] != seen[1]
    for name in (f".a.{platform.node()}-{os.getpid()}.partial", seen[0].name, seen[1].name):
        (tmp_path / name).symlink_to(tmp_path / "secret")
    write_text(tmp_path / "a", "after")
    assert (tmp_path / "secret").read_text() == "before"


def test_what_dead_processes_left_is_removed(tmp_path):
    asked = [sys.executable, "-c", "import os; print(os.getpid())"]
    dead = int(subprocess.run(asked, capture_output=True).stdout)
    here, elsewhere, week = platform.node(), "another-machine", 7 * 86_400
    cases = {
        f".{here}-{dead}-aaaaaaaa.partial": (0, False),
        f".{here}-{os.getppid()}-aaaaaaaa.partial": (0, True),
        f".{here}-{os.getppid()}-bbbbbbbb.partial": (week + 60, False),
        f".{elsewhere}-{dead}-aaaaaaaa.partial": (week - 60, True),
        f".{elsewhere}-{dead}-bbbbbbbb.partial": (week + 60, False),
        ".of-another-program.partial": (2 * week, True),
    }
    for name, (age, _) in cases.items():
        (tmp_path / name).mkdir()
        for path in (tmp_path / name / "a", tmp_path / name):
            path.touch()
            os.utime(path, (time.time() - age,) * 2)
    write_text(tmp_path / "b", "")
    left = {path.name for path in tmp_path.glob(".*")}
    assert left == {name for name, (_, stays) in cases.items() if stays}


def test_a_full_disk_is_said_of_the_file_that_was_to_be_there(tmp_path):
    def write(**where):
        with whole_files(tmp_path / "a", tmp_path / "b") as partials:
            names = {"first": partials[0], "second": partials[1], "input": "some/input.wav"}
            name = [str(names[key]) for key in where]
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *name)

    for where, said in {"": "a", "first": "a", "second": "b"}.items():
        with pytest.raises(OSError, match="No space left") as error:
            write(**({where: True} if where else {}))
        assert error.value.filename == str(tmp_path / said)
        line = said_of_system(error.value)
        assert line.startswith(f"{tmp_path / said}: No space left on device; make room and start")
    with pytest.raises(OSError, match="No space left") as error:
        write(input=True)
    assert error.value.filename == "some/input.wav"
    assert list(tmp_path.iterdir()) == []


@hypothesis.given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_json_comes_back_but_for_numbers_that_it_does_not_have(tmp_path, content):
    path = tmp_path / "a.json"
    write_json(path, {"format": "x/1", "content": content})
    text = path.read_text(encoding="utf-8")
    standard = json.loads(text, parse_constant=pytest.fail)
    assert read_json(path, dict, "make it again", "x/1") == standard

    def same(ours, theirs) -> bool:
        if isinstance(ours, float) and not np.isfinite(ours):
            return theirs is None
        if isinstance(ours, list):
            return len(ours) == len(theirs) and all(map(same, ours, theirs))
        if isinstance(ours, dict):
            return ours.keys() == theirs.keys() and all(same(ours[k], theirs[k]) for k in ours)
        return ours == theirs

    assert same(content, standard["content"])


def test_other_json_is_refused_in_one_line(tmp_path):
    path = tmp_path / "a.json"
    for text, said in (("{", "not JSON"), ("[]", "format is None"), ('{"format": 3}', "is 3")):
        write_text(path, text)
        with pytest.raises(InputError, match=said) as error:
            read_json(path, dict, "make it again", "x/1")
        assert "make it again" in str(error.value)
        assert "\n" not in str(error.value)


def test_json_that_is_not_utf8_has_the_remedy_of_its_kind(tmp_path):
    (tmp_path / "it.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(InputError, match=r"it\.json: not UTF-8 text \(at byte 7\); make it again"):
        read_json(tmp_path / "it.json", dict[str, str], "make it again")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no such pipes")
def test_a_pipe_has_no_digest(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="is a pipe or a device"):
        files_digest([tmp_path / "pipe"])


def test_a_digest_is_of_all_bytes_in_turn(tmp_path):
    (tmp_path / "a").write_bytes(b"ab")
    (tmp_path / "b").write_bytes(b"c")
    # SHA-256 of "abc", from the standard (FIPS 180-2, appendix B.1).
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files_digest([tmp_path / "a", tmp_path / "b"]) == known
    assert files_digest([tmp_path / "a", tmp_path / "c"]) is None


SPEECH = pathlib.Path(daisy_jax.__file__).parent / "samples"


def fails(*args):
    return 1 / 0


def stops(*args):
    raise KeyboardInterrupt


def full(*args):
    raise OSError(errno.ENOSPC, "no space left on device")


STOPS = {
    "no file can be read": (prepared.audio, "load", fails),
    "a person stops it": (prepared.audio, "load", stops),
    "the disk is full": (prepared.audio, "as_int16", full),
    "killed before the index is replaced": (pathlib.Path, "replace", None),
}


@pytest.mark.parametrize("name", STOPS)
def test_a_prepared_folder_is_kept_when_preparing_again_stops(tmp_path, monkeypatch, name):
    place, function, played = STOPS[name]
    prepared.prepare([SPEECH], tmp_path / "out")
    before = prepared.PreparedCorpus(tmp_path / "out")
    for path in SPEECH.glob("*-0dB.flac"):
        (tmp_path / "some").mkdir(exist_ok=True)
        (tmp_path / "some" / path.name).write_bytes(path.read_bytes())
    with monkeypatch.context() as context:
        real = pathlib.Path.replace

        def last_fails(partial, target):
            if target.name == prepared.INDEX:
                raise KeyboardInterrupt
            return real(partial, target)

        context.setattr(place, function, played or last_fails)
        with pytest.raises((InputError, KeyboardInterrupt, OSError)):
            prepared.prepare([tmp_path / "some"], tmp_path / "out")
    again = prepared.PreparedCorpus(tmp_path / "out")
    assert again.names == before.names
    again.verify()
    np.testing.assert_array_equal(again.read(0, 0, 1000), before.read(0, 0, 1000))
    # And what the stop left behind is gone when the next one is whole.
    prepared.prepare([tmp_path / "some"], tmp_path / "out")
    assert len(prepared.PreparedCorpus(tmp_path / "out").names) == 4
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_changed_samples_are_noticed(tmp_path):
    prepared.prepare([SPEECH], tmp_path / "out")
    corpus = prepared.PreparedCorpus(tmp_path / "out")
    corpus.verify()
    (samples,) = (tmp_path / "out").glob("samples-*")
    content = bytearray(samples.read_bytes())
    content[12_345] ^= 1
    samples.write_bytes(content)
    with pytest.raises(InputError, match=rf"{samples.name}: has changed"):
        corpus.verify()
    samples.write_bytes(content[:-1])
    with pytest.raises(InputError, match=f"{len(content) - 1} bytes, the index promises"):
        prepared.PreparedCorpus(tmp_path / "out")


WRITERS = {"write_bytes", "to_csv", "to_parquet", "savefig", "savez", "write_table", "tofile"}


def test_nothing_is_written_in_place():
    """Each call that writes a file stands in a block that makes it whole."""
    in_place = []
    for path in sorted(PROJECT.glob("daisy_jax/**/*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        whole = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.With) and "whole_files(" in ast.unparse(node)
        ]
        inside = {inner for block in whole for inner in ast.walk(block)}
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or node in inside:
                continue
            name = ast.unparse(node.func)
            last = name.rpartition(".")[2]
            opened = last == "open" and any(
                isinstance(mode, ast.Constant) and str(mode.value)[0] in "wx" for mode in node.args
            )
            if opened or last in WRITERS or name in ("np.save", "save_file", "partial.write_text"):
                in_place.append(f"{path.relative_to(PROJECT)}: {ast.unparse(node)}")
    assert not in_place
