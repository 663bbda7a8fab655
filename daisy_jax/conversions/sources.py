"""Finds out what a path holds, and opens it with the module that reads that format."""

import os
import pathlib
import re

import numpy as np
from jaxtyping import Float32

from daisy_jax.conversions import bare_file, fairseq_file, transformers_folder
from daisy_jax.conversions.rules import Source
from daisy_jax.conversions.unwrapping import unread_notes
from daisy_jax.conversions.weight_files import read_file
from daisy_jax.errors import InputError
from daisy_jax.whole_files import read_numbers

HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w-][\w./-]*)?", re.ASCII)
"""Of a model on the Hugging Face hub, with or without a revision."""


def open_source(path: str | os.PathLike, num_heads: int = 0) -> Source:
    """Opens a checkpoint of any known format.

    Args:
      path: a file; a folder of transformers; or the name of a model of the Hugging Face hub, such
        as "facebook/hubert-base-ls960" or with "@" and a revision, which is downloaded.
      num_heads: attention heads of a model without configuration; 0: as HuBERT models of its width.

    Raises:
      InputError: not a checkpoint of a known format, or not of a HuBERT.
      OSError: nothing is there, a file cannot be read, or the hub cannot be reached.
    """
    checkpoint = pathlib.Path(path)
    if not checkpoint.exists():
        checkpoint = download(os.fspath(path))
    try:
        source = _read(checkpoint, num_heads)
    except InputError as error:
        if str(error).startswith((f"{checkpoint}:", f"{checkpoint}{os.sep}")):
            raise
        raise InputError(f"{checkpoint}: {error}") from None
    if num_heads not in (0, source.config.num_heads):
        raise InputError(
            f"{checkpoint}: has {source.config.num_heads} attention heads by its configuration, "
            f"not {num_heads}; give that number or none"
        )
    return source


def saved_features(path: str | os.PathLike[str]) -> Float32[np.ndarray, "..."]:
    """What somebody saved of another program's features, in a .npy file.

    Raises:
      InputError: the file holds something else, or NaN.
      OSError: it cannot be opened.
    """
    return read_numbers(path)


def _read(checkpoint: pathlib.Path, num_heads: int) -> Source:
    if checkpoint.is_dir():
        if not (checkpoint / transformers_folder.CONFIG).is_file():
            raise InputError(
                "not a checkpoint of a known format; wanted a folder with config.json and "
                "model.safetensors or pytorch_model.bin, as transformers' save_pretrained writes "
                "it, or a checkpoint file of fairseq, s3prl or torchaudio"
            )
        return transformers_folder.read(checkpoint)
    content = read_file(checkpoint)
    if fairseq_file.recognizes(content):
        source = fairseq_file.read(checkpoint, content)
    else:
        source = bare_file.read(checkpoint, content, num_heads)
    return source._replace(notes=(*source.notes, *unread_notes(content)))


def download(name: str) -> pathlib.Path:
    """A folder with a model of the hub; safetensors if it has them, else torch files.

    Raises:
      FileNotFoundError: the hub cannot be reached, or has no such model.
    """
    missing = f"{name}: no such file or folder"
    if not HUB_NAME.fullmatch(name):
        raise FileNotFoundError(f"{missing}; give a checkpoint on this machine or a name of a hub")
    try:
        import huggingface_hub
    except ImportError:
        raise FileNotFoundError(
            f"{missing}; a model of the hub needs pip install 'daisy-jax[convert]'"
        ) from None
    repository, _, revision = name.partition("@")
    try:
        for suffix in ("safetensors", "bin"):
            patterns = ["*.json", f"*.{suffix}"]
            found = huggingface_hub.snapshot_download(
                repository, revision=revision or None, allow_patterns=patterns
            )
            folder = pathlib.Path(found)
            if any(folder.glob(f"*.{suffix}")):
                break
    except Exception as error:  # no connection, no such model, no right to it, a bad name
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise FileNotFoundError(
            f"{missing}, and the hub could not give it ({reason}); give a folder written by "
            "daisy-jax convert or training, a checkpoint, or a name of the hub, which with a "
            f"connection hf download {repository} --local-dir FOLDER fetches for later"
        ) from None
    return folder
