"""What is said in each utterance: a table in the corpus' folder, or LibriSpeech's listings.

A table is `transcripts.tsv`, lines of a name, a tab and a text, or `transcripts.jsonl`, lines such
as {"id": NAME, "text": TEXT} ("audio_filepath" in the place of "id" is NeMo's). A name is a file's
path below the folder, with or without its suffix, or its stem alone, where no other file has it.
Libri-light's 10 hours have LibriSpeech's listings (Panayotov et al., 2015; Kahn et al., 2020).
"""

import collections
import pathlib
from collections.abc import Sequence
from typing import TypedDict

from daisy_jax.errors import InputError
from daisy_jax.whole_files import parse_json, read_text, write_text

TABLE, JSON_TABLE = "transcripts.tsv", "transcripts.jsonl"


class _Line(TypedDict, total=False):
    """What is read of a line of JSON."""

    id: str
    audio_filepath: str
    text: str


def transcripts(folder: str | pathlib.Path, names: Sequence[str]) -> list[str]:
    """What is said in utterances of a corpus below `folder`, by their names in it.

    Raises:
      InputError: a transcript is missing, with the file in which it was expected, or a name could
        be that of several files.
    """
    folder = pathlib.Path(folder)
    for name, read in ((TABLE, _read_table), (JSON_TABLE, _read_json)):
        if (folder / name).is_file():
            return _by_table(folder / name, read(folder / name), folder, names)
    return _by_listings(folder, names)


def _by_table(
    table: pathlib.Path, texts: dict[str, str], folder: pathlib.Path, names: Sequence[str]
) -> list[str]:
    stems = collections.Counter(pathlib.PurePath(name).stem for name in names)
    found = []
    for name in names:
        path = pathlib.PurePath(name)
        spellings = [name, str(path.with_suffix("")), str(folder / name)]
        text = next((texts[each] for each in spellings if each in texts), None)
        if text is None and path.stem in texts:
            if stems[path.stem] > 1:
                raise InputError(
                    f"{table}: {path.stem} is the name of {stems[path.stem]} files, such as "
                    f"{name}; give paths below the folder"
                )
            text = texts[path.stem]
        if text is None:
            raise InputError(f"{table}: has no line for {name}; add one, or remove the file")
        found.append(text)
    return found


def _read_table(path: pathlib.Path) -> dict[str, str]:
    texts = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        name, tab, text = line.partition("\t")
        if not line.strip():
            continue
        if not tab:
            raise InputError(f"{path}:{number}: {line[:80]!r} has no tab; give NAME, a tab, TEXT")
        texts[name.strip()] = text.strip()
    return texts


def _read_json(path: pathlib.Path) -> dict[str, str]:
    texts, remedy = {}, 'give {"id": NAME, "text": TEXT}'
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if line.strip():
            fields = parse_json(f"{path}:{number}", line, _Line, remedy)
            name = fields.get("id", fields.get("audio_filepath"))
            if name is None or "text" not in fields:
                raise InputError(f"{path}:{number}: has no id or no text; {remedy}")
            texts[name] = fields["text"].strip()
    return texts


def _by_listings(folder: pathlib.Path, names: Sequence[str]) -> list[str]:
    """From `SPEAKER-CHAPTER.trans.txt` beside the files."""
    listings: dict[pathlib.Path, dict[str, str]] = {}
    texts = []
    for name in names:
        path = folder / name
        listing = path.with_name(f"{path.stem.rpartition('-')[0]}.trans.txt")
        if listing not in listings:
            if not listing.is_file():
                raise InputError(
                    f"{path}: no transcript; expected in {listing}, or in {folder / TABLE}"
                )
            lines = read_text(listing).splitlines()
            # Between name and text, any white space; a line may have a name alone.
            pairs = [(*line.split(maxsplit=1), "", "")[:2] for line in lines]
            listings[listing] = {name: text.strip() for name, text in pairs}
        if path.stem not in listings[listing]:
            raise InputError(f"{listing}: has no line for {path.stem}; unpack the archive again")
        texts.append(listings[listing][path.stem])
    return texts


def has_table(folder: str | pathlib.Path) -> bool:
    """Whether a corpus has a table, and not listings beside its files."""
    return any(pathlib.Path(folder, name).is_file() for name in (TABLE, JSON_TABLE))


def save_texts(folder: str | pathlib.Path, texts: dict[str, str]) -> None:
    """Writes a table of texts by name, whole or not at all."""
    lines = [f"{name}\t{' '.join(text.split())}\n" for name, text in texts.items()]
    write_text(pathlib.Path(folder, TABLE), "".join(lines))
