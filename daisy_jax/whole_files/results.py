"""Results of an evaluation: `results.json`, and the rows of `utterances.parquet` behind it.

The table is what counts: its metadata hold the text of the JSON file, too, and one digest of both.
Where a process died between replacing the one and the other, the table's text is read.
"""

import hashlib
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from daisy_jax.errors import InputError, require_file
from daisy_jax.whole_files.reading import Kind, files_digest, parse_json, read_text
from daisy_jax.whole_files.writing import json_text, whole_files

if TYPE_CHECKING:
    import pyarrow

Schema = TypeVar("Schema")
RESULTS, ROWS = "results.json", "utterances.parquet"
DIGEST = "sha256"
"""Under which the table's metadata hold the digest of rows and text."""
EARLIER_DIGEST = "utterances_sha256"
"""Under which results.json of earlier versions holds the digest of the table's file."""


def write_results(
    folder: pathlib.Path,
    content: Mapping[str, object],
    rows: Sequence[Mapping[str, object]],
    replaces: Iterable[pathlib.Path] = (),
) -> None:
    """Writes both files, as far as possible at once.

    Args:
      folder: made if absent.
      content: of results.json; NaN and infinities become null.
      rows: of the table.
      replaces: files of earlier results, which are removed.

    Raises:
      OSError: they cannot be written; results that were there before are kept then.
    """
    import pyarrow
    import pyarrow.parquet

    text, table = json_text(content), pyarrow.Table.from_pylist(list(rows))
    sealed = table.replace_schema_metadata({RESULTS: text, DIGEST: _digest(table, text)})
    with whole_files(folder / ROWS, folder / RESULTS, replaces=replaces) as (partial, results):
        pyarrow.parquet.write_table(sealed, partial)
        results.write_text(text, encoding="utf-8")


def read_results(
    folder: pathlib.Path, schema: Kind[Schema], remedy: str
) -> tuple[Schema, "pyarrow.Table"]:
    """What `write_results` wrote.

    Args:
      folder: of both files.
      schema: what results.json must hold.
      remedy: what to do about other content, such as "evaluate the run again".

    Raises:
      InputError: a file is missing, not whole, or not what was written.
    """
    import pyarrow
    import pyarrow.parquet

    path = folder / ROWS
    try:
        require_file(path)
        table = pyarrow.parquet.read_table(path)
        held = table.schema.metadata or {}
        text = held.get(RESULTS.encode(), b"").decode()
        digest = _digest(table, text)
        beside = "" if text else read_text(folder / RESULTS)
    except (pyarrow.ArrowException, OSError, ValueError) as error:  # also of what is not UTF-8
        reason = " ".join(str(error).split())
        raise InputError(f"{folder}: not whole ({reason}); {remedy}") from None
    if not text:
        content = parse_json(str(folder / RESULTS), beside, schema, remedy)
        written = json.loads(beside).get(EARLIER_DIGEST)
        if written is not None and written != files_digest([path]):
            raise InputError(f"{path}: is of another evaluation, or has changed; {remedy}")
        return content, table
    if held.get(DIGEST.encode()) != digest.encode():
        raise InputError(f"{path}: has changed since it was written; {remedy}")
    return parse_json(f"{path}, {RESULTS}", text, schema, remedy), table


def _digest(table: "pyarrow.Table", text: str) -> str:
    """SHA-256 of rows and a text."""
    return hashlib.sha256(json.dumps([table.to_pylist(), text]).encode()).hexdigest()
