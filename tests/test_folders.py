"""Folders of sound files as people have them, and prepared folders that something happens to."""

import json
import os
import pathlib

import numpy as np
import pytest
import sounds

from daisy_jax import InputError
from daisy_jax.data.corpus import open_corpus
from daisy_jax.data.file_list import sound_files
from daisy_jax.data.prepared import PreparedCorpus, prepare


@pytest.mark.skipif(os.name != "posix", reason="links and pipes of POSIX")
def test_a_link_to_itself_and_a_pipe_cost_nothing_but_themselves(tmp_path, left_out):
    for name in ("a.wav", "deep/b.wav", "m.wav", "z.wav"):
        sounds.write(tmp_path / name, np.zeros(800))
    (tmp_path / "link.wav").symlink_to(tmp_path / "link.wav")
    (tmp_path / "gone.flac").symlink_to(tmp_path / "nowhere.flac")
    os.mkfifo(tmp_path / "pipe.wav")
    found = [str(path.relative_to(tmp_path)) for path in sound_files(tmp_path)]
    assert found == ["a.wav", "deep/b.wav", "m.wav", "z.wav"]
    names = sorted(line.partition(": ")[0].rpartition("/")[2] for line in left_out)
    assert names == ["gone.flac", "link.wav", "pipe.wav"]


@pytest.mark.skipif(os.name != "posix", reason="names of POSIX")
def test_a_name_with_control_characters_is_kept_escaped(tmp_path):
    for name in ("plain.wav", "\x1b[31mred.wav", "two\nlines.wav", "\u202eltr.wav"):
        sounds.write(tmp_path / "speech" / name, np.zeros(800))
    corpus = open_corpus(tmp_path / "speech")
    wanted = {"plain.wav", r"\x1b[31mred.wav", r"two\x0alines.wav", "\u202eltr.wav"}
    assert set(corpus.names) == wanted
    assert all(len(corpus.read(index, 0, 800)) == 800 for index in range(4))
    prepare([tmp_path / "speech"], tmp_path / "prepared")
    names = PreparedCorpus(tmp_path / "prepared").names
    assert {name.removeprefix("speech/") for name in names} == wanted


def test_an_index_knows_its_names_and_lengths(tmp_path):
    for name in ("a.wav", "b.wav"):
        sounds.write(tmp_path / "speech" / name, np.zeros(800))
    prepare([tmp_path / "speech"], tmp_path / "it")
    index = json.loads((tmp_path / "it" / "index.json").read_text())
    for other in ({"names": index["names"][::-1]}, {"lengths": [700, 900]}):
        changed = index | other
        (tmp_path / "it" / "index.json").write_text(json.dumps(changed))
        with pytest.raises(InputError, match="names and lengths are not those that were written"):
            PreparedCorpus(tmp_path / "it")


def test_two_preparations_at_once_leave_a_whole_one(tmp_path, monkeypatch):
    """One begins and ends between the two files of the other."""
    for name in ("first", "second"):
        sounds.write(tmp_path / name / "a.wav", np.full(800, 0.25))
    replace, inside = pathlib.Path.replace, []

    def interleaved(partial, target):
        if target.name == "index.json" and not inside:
            inside.append(True)
            prepare([tmp_path / "second"], tmp_path / "it")
        return replace(partial, target)

    monkeypatch.setattr(pathlib.Path, "replace", interleaved)
    prepare([tmp_path / "first"], tmp_path / "it")
    corpus = PreparedCorpus(tmp_path / "it")
    corpus.verify()
    assert corpus.names == ["first/a.wav"]
    assert len(list((tmp_path / "it").iterdir())) == 2


def test_the_sound_files_own_folder_is_no_place_for_them(tmp_path):
    sounds.write(tmp_path / "a.wav", np.zeros(800))
    with pytest.raises(InputError, match="holds the sound files themselves"):
        prepare([tmp_path], tmp_path)
