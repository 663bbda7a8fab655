"""Models of any source: what is not a model folder is converted once, and kept for later."""

import hashlib
import os
import pathlib
import re
import tomllib
from collections.abc import Iterator
from typing import NamedTuple

from daisy_jax import checkpoints
from daisy_jax.conversions import transformers_folder
from daisy_jax.conversions.convert import convert
from daisy_jax.conversions.sources import HUB_NAME, download
from daisy_jax.errors import InputError
from daisy_jax.model.hubert import Hubert
from daisy_jax.reporting import logger
from daisy_jax.whole_files import (
    TENSORS,
    cache_folder,
    files_digest,
    read_json,
    whole_folder,
    write_json,
)

RULES = 1
"""Changes with what a conversion makes of the same files, so that they are converted again."""
SOURCE = "source.json"
FORMAT = "daisy_jax_source/1"
SUFFIXES = (".json", ".safetensors", ".bin")
"""Of the files that make a transformers folder."""


def load(source: str | os.PathLike | None = None, dtype: str | None = None) -> Hubert:
    """Loads a model.

    What is not a model folder is converted once, which needs `pip install 'daisy-jax[convert]'` for
    all but safetensors, and kept in $XDG_CACHE_HOME/daisy_jax/models (~/.cache without it) under
    the source's name and SHA-256. The next time it is loaded from there, without torch.

    Args:
      source: a folder written by `save`, by the converter or by training; a checkpoint of fairseq,
        s3prl, torchaudio or the DAISY authors; a folder or file of transformers; the name of a
        model on the Hugging Face hub, "facebook/hubert-base-ls960", with "@" and a revision behind
        it if it is not to be the main one; None: the small pretrained model inside the package.
      dtype: of the trunk, "float32", "bfloat16" or "float16"; None: float32. On a CPU weights are
        rounded to it and products are float32, since XLA has no faster ones there. Branches and
        prediction head are always float32.

    Raises:
      InputError: not a model of this version or a checkpoint of a known format, or not a whole one;
        a model that is no HuBERT; or an extra that is missing.
      OSError: nothing is there, a file cannot be read, or the hub cannot be reached.
    """
    return checkpoints.load(None if source is None else model_folder(source), dtype)


def model_folder(source: str | os.PathLike) -> pathlib.Path:
    """The model folder of a source; raises as `load`, and converts what is to be converted."""
    path, name = pathlib.Path(source), os.fspath(source)
    if _is_inside_a_model_folder(path):
        return path  # of which its reader says that the folder is wanted
    if path.is_file() or _is_of_transformers(path):
        return _converted(path, path.stem if path.is_file() else path.resolve().name, str(path))
    if path.exists() or not HUB_NAME.fullmatch(name):
        return path
    label = name.replace("/", "--")
    for folder in sorted(_models().glob(f"{_plain(label)}-{16 * '[0-9a-f]'}")):
        if _is_of(folder, name):
            return folder
    return _converted(download(name), label, name)


class KnownCheckpoint(NamedTuple):
    """A public checkpoint of HuBERT."""

    name: str
    """What `load` takes: a name of the Hugging Face hub, or the publisher's file."""
    model: str
    """What it is, and what it was trained on."""
    size: str
    """base, large or xlarge."""
    source: str
    """Where it comes from."""
    parts: tuple[str, ...]
    """Of "trunk", "prediction head" (which stage 1 needs) and "branches"."""
    licence: str
    """As published."""


def known_checkpoints() -> list[KnownCheckpoint]:
    """Public HuBERT checkpoints; docs/checkpoints.md has the same table."""
    text = (pathlib.Path(__file__).parent / "known.toml").read_text(encoding="utf-8")
    entries = tomllib.loads(text)["checkpoints"]
    return [KnownCheckpoint(**entry | {"parts": tuple(entry["parts"])}) for entry in entries]


def _is_inside_a_model_folder(path: pathlib.Path) -> bool:
    beside = path.parent / checkpoints.CONFIG
    named = path.name in (checkpoints.CONFIG, TENSORS) and path.is_file()
    return named and beside.is_file() and not _is_of_transformers(path.parent)


def _is_of_transformers(folder: pathlib.Path) -> bool:
    try:
        return transformers_folder.describes(folder)
    except InputError:  # what is wrong with a model folder of ours, its reader says better
        return False


def _models() -> pathlib.Path:
    return cache_folder() / "models"


def _plain(label: str) -> str:
    """A label as a part of a folder's name, on any system."""
    return re.sub(r"[^\w.-]", "_", label, flags=re.ASCII)[:80]


def _is_of(folder: pathlib.Path, name: str) -> bool:
    """Whether a kept model was made of a source of this name, by the conversion of today."""
    if not (folder / SOURCE).is_file():
        return False
    content = read_json(folder / SOURCE, dict[str, object], "remove this folder")
    return (content.get("source"), content.get("rules")) == (name, RULES)


def _converted(path: pathlib.Path, label: str, source: str) -> pathlib.Path:
    """The model folder that is kept for the files of a checkpoint."""
    digest = hashlib.sha256(f"{RULES} {files_digest(_files_of(path))}".encode()).hexdigest()
    folder = _models() / f"{_plain(label)}-{digest[:16]}"
    if folder.is_dir():
        return folder
    logger.info("converting %s, once; kept in %s", source, folder)
    with whole_folder(folder) as partial:
        report = convert(path, partial)
        content = {"source": source, "rules": RULES, "notes": report.notes}
        content |= {"format": FORMAT, "files": dict(report.sha256)}
        write_json(partial / SOURCE, content)
    return folder


def _files_of(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """What decides about a conversion: a file with transformers' configuration, or a folder."""
    folder, suffixes = path, SUFFIXES
    if path.is_file():
        yield path
        folder, suffixes = path.parent, (".json",)
    if _is_of_transformers(folder):
        yield from sorted(file for file in folder.iterdir() if file.suffix in suffixes)
