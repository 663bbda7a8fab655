"""Folders of noisy speech, with a log of what each file was mixed from.

Beside the files, in the clean corpus' layout, lie `mixtures.tsv`, a line a file, and
`mixtures.json`, which says what the folder is made of. The log is written last: where it is, the
folder is whole.
"""

import pathlib
import shutil
from typing import Any, NamedTuple

from daisy_jax import audio
from daisy_jax.data.corpus import Waveform
from daisy_jax.data.file_list import nameable
from daisy_jax.data.noisy_corpus import CLEAN, NoisyCorpus
from daisy_jax.data.transcripts import has_table, save_texts, transcripts
from daisy_jax.errors import InputError
from daisy_jax.reporting import followed, leave_out_item
from daisy_jax.whole_files import (
    differences,
    is_unused,
    read_json,
    read_text,
    whole_files,
    write_json,
    write_text,
)

LOG, SETTINGS, FORMAT = "mixtures.tsv", "mixtures.json", "daisy_jax_mixtures/1"


class NoisyFile(NamedTuple):
    """A line of the log."""

    name: str
    """The file, below the folder."""
    clean: str
    """The clean one, below its corpus' folder."""
    snr: float
    """dB; infinite, "clean" in the file, without noise."""
    noise: str
    """The recording, below its corpus' folder; empty without noise."""
    offset: int
    """Its first sample, at 16 kHz."""
    scale: float | None
    """What the sum was multiplied with so that it does not exceed full scale; None: not known."""
    size: int | None = None
    """Bytes of the file; None: not known."""


def write_noisy(
    folder: str | pathlib.Path,
    corpora: list[tuple[NoisyCorpus, list[str]]],
    clean: str | pathlib.Path,
    settings: dict[str, object],
) -> list[NoisyFile]:
    """Writes 16-bit FLAC files, their log, and the clean corpus' transcripts beside them.

    Args:
      folder: where; made if absent. One that was interrupted is made anew, file by file; of a
        whole one, the files that are missing.
      corpora: what to write, and each file's name below the folder.
      clean: the clean corpus' folder, for the transcripts (`*.trans.txt` beside the utterances).
      settings: what the mixtures depend on; kept in mixtures.json.

    Returns:
      The log.

    Raises:
      InputError: the folder holds something else, or lies in the clean corpus, or two files would
        have one name.
      OSError: a file cannot be written.
    """
    folder = pathlib.Path(folder)
    names = [name for _, theirs in corpora for name in theirs]
    if len(set(names)) < len(names):
        double = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{folder / double}: two utterances would have this name; rename one")
    bad = next((name for name in names if nameable(name) != name), None)
    if bad is not None:
        raise InputError(f"{nameable(bad)}: the log cannot hold this name; rename the file")
    settings = {"format": FORMAT, **settings}
    if (folder / SETTINGS).is_file():
        changed = differences(
            read_json(folder / SETTINGS, dict[str, Any], "give another folder", FORMAT), settings
        )
        if changed:
            raise InputError(
                f"{folder}: holds mixtures of other settings ({', '.join(changed)}); give another "
                "folder, or remove this one"
            )
    elif not is_unused(folder):
        raise InputError(f"{folder}: holds something else; give a new folder")
    inside = pathlib.Path(clean).resolve() in (folder.resolve(), *folder.resolve().parents)
    if inside:
        raise InputError(
            f"{folder}: lies in {clean}, of which it would be a part; give a folder elsewhere"
        )
    logged = read_log(folder) if (folder / LOG).is_file() else []
    whole = {row.name: row for row in logged if _is_whole(folder, row)}
    jobs = [(corpus, i, name) for corpus, theirs in corpora for i, name in enumerate(theirs)]
    if len(whole) == len(jobs) and (folder / LOG).is_file():
        _copy_transcripts(clean, folder, logged)
        return logged
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / SETTINGS, settings)
    rows = []
    for corpus, index, name in followed(jobs, "mixing"):
        if name in whole:
            rows.append(whole[name])
            continue
        try:
            waveform, scale = corpus.mixed(index)
        except Exception as error:
            leave_out_item(corpus.clean.names[index], error)
            continue
        _write(folder / name, waveform)
        size = (folder / name).stat().st_size
        row = _row(corpus, index, name, scale)._replace(size=size)
        rows.append(row)
    _copy_transcripts(clean, folder, rows)
    write_log(folder, rows)
    return rows


def _copy_transcripts(
    clean: str | pathlib.Path, folder: pathlib.Path, rows: list[NoisyFile]
) -> None:
    """Copies the transcripts of the clean files, where they are not there yet."""
    if has_table(clean):
        texts = transcripts(clean, [row.clean for row in rows])
        save_texts(folder, dict(zip([row.name for row in rows], texts, strict=True)))
    folders = {(pathlib.Path(clean, row.clean).parent, (folder / row.name).parent) for row in rows}
    for origin, target in sorted(folders):
        for text in origin.glob("*.trans.txt"):
            copy = target / text.name
            if not copy.is_file() or copy.stat().st_size != text.stat().st_size:
                with whole_files(copy) as (partial,):
                    shutil.copyfile(text, partial)


def _is_whole(folder: pathlib.Path, row: NoisyFile) -> bool:
    """Whether a file of the log is there as it was written."""
    try:
        size = (folder / row.name).stat().st_size
    except OSError:
        return False
    return row.size in (None, size)


def log_of(corpus: NoisyCorpus) -> list[NoisyFile]:
    """The log of a corpus whose noise is added while it is read."""
    return [_row(corpus, index, name, None) for index, name in enumerate(corpus.names)]


def _row(corpus: NoisyCorpus, index: int, name: str, scale: float | None) -> NoisyFile:
    snr, (noise, offset) = float(corpus.snrs[index]), corpus.draws[index]
    cut = ("", 0) if snr == CLEAN else (corpus.noises.names[noise], offset)
    return NoisyFile(name, corpus.clean.names[index], snr, *cut, scale)


def write_log(folder: pathlib.Path, rows: list[NoisyFile]) -> None:
    """Writes the log into a folder, all of it or nothing."""
    lines = ["\t".join(NoisyFile._fields)]
    for row in rows:
        snr = "clean" if row.snr == CLEAN else f"{row.snr:g}"
        scale = "" if row.scale is None else f"{row.scale:.9g}"
        size = "" if row.size is None else str(row.size)
        lines.append("\t".join([row.name, row.clean, snr, row.noise, str(row.offset), scale, size]))
    write_text(folder / LOG, "\n".join(lines) + "\n")


def _write(path: pathlib.Path, waveform: Waveform) -> None:
    soundfile = audio.libsndfile()
    samples = audio.as_int16(waveform)
    try:
        with whole_files(path) as (partial,), open(partial, "wb") as stream:
            soundfile.write(stream, samples, audio.SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    except soundfile.LibsndfileError as error:
        raise OSError(f"{path}: cannot be written ({error.error_string}); make room") from None


def read_log(folder: str | pathlib.Path) -> list[NoisyFile]:
    """What the files of a folder were mixed from.

    Raises:
      InputError: there is no whole log.
    """
    path = pathlib.Path(folder, LOG)
    if not path.is_file():
        raise InputError(f"{folder}: no {LOG} there; make it with train/noisy.py")
    head, *lines = read_text(path).splitlines() or [""]
    remedy = f"remove it, and train/noisy.py makes {folder} again"
    fields = list(NoisyFile._fields)
    if head.split("\t") not in (fields, fields[:-1]):  # earlier versions gave no size
        raise InputError(f"{path}: not a log of mixtures; {remedy}")
    rows = []
    for line in lines:
        try:
            name, clean, snr, noise, offset, scale, *size = line.split("\t")
            decibels = CLEAN if snr == "clean" else float(snr)
            factor = float(scale) if scale else None
            bytes_written = int(size[0]) if size and size[0] else None
            row = NoisyFile(name, clean, decibels, noise, int(offset), factor, bytes_written)
        except ValueError:
            raise InputError(f"{path}: {line!r} is no line of it; {remedy}") from None
        rows.append(row)
    return rows
