"""Prepared folders: decoded audio in one file that is memory-mapped.

A prepared folder holds `samples-*.int16`, all utterances one after the other as 16-bit
little-endian integers at 16 kHz, and `index.json` with the name and SHA-256 of that file, and the
utterances' names and lengths. It feeds an accelerator without decoding, and is read without any
audio library.

Samples are never written over: those of another preparation get a file of their own, and the index,
which is replaced as a whole, says which file it speaks of.
"""

import dataclasses
import hashlib
import json
import pathlib
import secrets
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float, Int

from daisy_jax import audio
from daisy_jax.data.file_list import nameable, sound_files
from daisy_jax.errors import InputError, require_file
from daisy_jax.reporting import followed, leave_out_item
from daisy_jax.whole_files import files_digest, is_written_to, read_json, whole_files

FORMAT = "daisy_jax_audio/1"
INDEX = "index.json"
MOST = 2**40
"""Samples, which is two years, that an utterance may have."""
EARLIER = "samples-" + 8 * "[0-9a-f]" + ".int16", "samples.int16"


@dataclasses.dataclass(frozen=True)
class _Index:
    """The content of index.json."""

    names: list[str]
    lengths: list[int]
    """Samples."""
    samples: str = "samples.int16"
    """The file of samples, which earlier versions did not name."""
    sha256: str | None = None
    """Of that file."""
    listed: str | None = None
    """SHA-256 of names and lengths."""

    def __post_init__(self) -> None:
        if len(self.names) != len(self.lengths):
            raise ValueError("names and lengths do not belong together")
        if not all(0 <= length < MOST for length in self.lengths):
            raise ValueError(f"lengths must be 0 to {MOST} samples")
        if self.listed is not None and self.listed != listed_digest(self.names, self.lengths):
            raise ValueError("names and lengths are not those that were written")
        if pathlib.PurePath(self.samples).name != self.samples:
            raise ValueError(f"its samples {self.samples!r} do not lie beside it")


def listed_digest(names: list[str], lengths: list[int]) -> str:
    """SHA-256 of names and lengths."""
    return hashlib.sha256(json.dumps([names, lengths]).encode()).hexdigest()


class PreparedCorpus:
    """A folder made by `prepare`."""

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        index = read_json(folder / INDEX, _Index, "prepare the folder again", FORMAT)
        self.names = index.names
        if not self.names:
            raise InputError(f"{folder}: holds no utterance; prepare it again from readable files")
        self.lengths: Int[np.ndarray, " utterances"] = np.asarray(index.lengths, np.int64)
        self._starts = np.concatenate([[0], np.cumsum(self.lengths)])
        self._file = folder / index.samples
        self._sha256 = index.sha256
        require_file(self._file)
        size, promised = self._file.stat().st_size, 2 * int(self._starts[-1])
        if size != promised:
            raise InputError(
                f"{self._file}: {size} bytes, the index promises {promised}; prepare the folder "
                "again"
            )
        self._samples = np.memmap(self._file, "<i2", "r")

    def verify(self) -> None:
        """Reads all samples once.

        Raises:
          InputError: they are not those that were written.
        """
        if self._sha256 is not None and files_digest([self._file]) != self._sha256:
            raise InputError(f"{self._file}: has changed since it was written; prepare it again")

    def __reduce__(self) -> tuple[type["PreparedCorpus"], tuple[pathlib.Path]]:
        # To another process goes the folder and not the samples.
        return PreparedCorpus, (self._folder,)

    def read(self, index: int, start: int, samples: int) -> Float[np.ndarray, " samples"]:
        """As for every `Corpus`."""
        begin = self._starts[index] + start
        end = min(begin + samples, self._starts[index + 1])
        return self._samples[begin:end].astype(np.float32) / audio.FULL_SCALE


def _samples_of(folder: pathlib.Path) -> str | None:
    """The file of samples that an index names; None if there is no whole one."""
    try:
        return read_json(folder / INDEX, _Index, "prepare the folder again", FORMAT).samples
    except (InputError, OSError):
        return None


def prepare(folders: Iterable[str | pathlib.Path], output: str | pathlib.Path) -> tuple[int, int]:
    """Decodes every sound file below `folders` into a prepared folder.

    Args:
      folders: where to look, recursively. Names in the index start with the folder's own name.
      output: the prepared folder, made if absent. What another preparation left there stays whole
        until this one is.

    Returns:
      How many utterances were written, and how many files were left out.

    Raises:
      InputError: one of `folders` is not a folder, or nothing in them can be read.
      OSError: `output` cannot be written.
    """
    folders = [pathlib.Path(folder) for folder in folders]
    output = pathlib.Path(output)
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; give folders of sound files")
        if folder.resolve() == output.resolve():
            raise InputError(f"{output}: holds the sound files themselves; give another --output")
    files = [(folder, file) for folder in folders for file in sound_files(folder)]
    samples = output / f"samples-{secrets.token_hex(4)}.int16"
    names, lengths, digest = [], [], hashlib.sha256()
    with whole_files(samples, output / INDEX) as (partial, index):
        with open(partial, "wb") as stream:
            for folder, file in followed(files, "decoding"):
                try:
                    waveform = audio.load(file)
                except Exception as error:
                    leave_out_item(file, error)
                    continue
                content = audio.as_int16(waveform).astype("<i2").tobytes()
                stream.write(content)
                digest.update(content)
                names.append(nameable(str(pathlib.Path(folder.name) / file.relative_to(folder))))
                lengths.append(len(waveform))
        if not names:
            raise InputError(
                f"{', '.join(map(str, folders))}: none of {len(files)} sound files can be read, so "
                "that nothing is prepared; give folders of readable ones"
            )
        content = {
            "format": FORMAT,
            "samples": samples.name,
            "sha256": digest.hexdigest(),
            "listed": listed_digest(names, lengths),
            "names": names,
            "lengths": lengths,
        }
        index.write_text(json.dumps(content) + "\n", encoding="utf-8")
    # Another process may be about to write the index that names its samples.
    if not is_written_to(output):
        named = _samples_of(output)
        for path in {path for pattern in EARLIER for path in output.glob(pattern)}:
            if named is not None and path.name != named:
                path.unlink(missing_ok=True)
    return len(names), len(files) - len(names)
