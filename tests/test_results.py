"""Results of evaluations: two files that belong together, whatever happens to one of them."""

import json
import pathlib

import pyarrow
import pyarrow.parquet
import pytest

from daisy_jax import InputError
from daisy_jax.whole_files import files_digest, read_results, write_json, write_results

OLD = {"name": "old", "value": 1.5}, [{"id": "a", "total": 1.0}, {"id": "b", "total": None}]
NEW = {"name": "new", "value": float("nan")}, [{"id": "c", "total": 2.0}]
REMEDY = "evaluate again"


def read(folder):
    content, table = read_results(folder, dict[str, object], REMEDY)
    return content, table.to_pylist()


def test_results_come_back(tmp_path):
    write_results(tmp_path / "it", *OLD)
    assert read(tmp_path / "it") == OLD
    assert json.loads((tmp_path / "it" / "results.json").read_text()) == OLD[0]
    write_results(tmp_path / "it", *NEW)
    assert read(tmp_path / "it") == ({"name": "new", "value": None}, NEW[1])


@pytest.mark.parametrize("stop", [0, 1])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_wherever_writing_stops_there_is_one_result(tmp_path, monkeypatch, stop, error):
    write_results(tmp_path, *OLD)
    calls, replace = [], pathlib.Path.replace

    def stopped(partial, target):
        calls.append(target)
        if len(calls) > stop:
            raise error
        return replace(partial, target)

    with monkeypatch.context() as context:
        context.setattr(pathlib.Path, "replace", stopped)
        with pytest.raises((KeyboardInterrupt, OSError)):
            write_results(tmp_path, *NEW)
    assert read(tmp_path)[0]["name"] == ("new" if stop else "old")
    assert read(tmp_path)[1] == (NEW if stop else OLD)[1]
    write_results(tmp_path, *NEW)
    assert read(tmp_path)[1] == NEW[1]


def test_what_replaces_a_study_removes_its_pages(tmp_path):
    (tmp_path / "page.html").write_text("old")
    write_results(tmp_path, *OLD, replaces=[tmp_path / "page.html", tmp_path / "none"])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "results.json",
        "utterances.parquet",
    ]


def test_every_changed_byte_is_noticed_or_does_not_matter(tmp_path):
    write_results(tmp_path, *OLD)
    path = tmp_path / "utterances.parquet"
    written, said = path.read_bytes(), []
    for place in range(len(written)):
        changed = bytearray(written)
        changed[place] ^= 1 << (place % 8)
        path.write_bytes(changed)
        try:
            found = read(tmp_path)
        except InputError as error:
            said.append(str(error))
        else:
            assert found == OLD
    assert len(said) > len(written) / 3
    assert not any("\n" in line for line in said)


def test_another_results_json_is_not_believed(tmp_path):
    write_results(tmp_path, *OLD)
    write_json(tmp_path / "results.json", NEW[0])
    assert read(tmp_path) == OLD


def test_results_of_earlier_versions_are_read(tmp_path):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(OLD[1]), tmp_path / "utterances.parquet")
    write_json(tmp_path / "results.json", OLD[0])
    assert read(tmp_path) == OLD
    digest = {"utterances_sha256": files_digest([tmp_path / "utterances.parquet"])}
    write_json(tmp_path / "results.json", OLD[0] | digest)
    assert read(tmp_path) == (OLD[0] | digest, OLD[1])
    write_json(tmp_path / "results.json", OLD[0] | {"utterances_sha256": "0"})
    with pytest.raises(InputError, match="is of another evaluation, or has changed; evaluate"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["results.json", "utterances.parquet"])
def test_a_file_that_is_missing_or_none_is_one_line(tmp_path, name):
    write_json(tmp_path / "results.json", OLD[0])
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(OLD[1]), tmp_path / "utterances.parquet")
    for content in (b"", b"\xff\xfe\x00", None):
        (tmp_path / name).unlink()
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=REMEDY) as error:
            read(tmp_path)
        assert "\n" not in str(error.value)
        (tmp_path / name).touch()
