"""Recordings of a corpus, whole or in windows, read one part at a time."""

import collections
import pathlib
import tempfile
import threading
from typing import NamedTuple

import numpy as np

from daisy_jax import audio
from daisy_jax.data.corpus import Corpus, Waveform
from daisy_jax.errors import InputError


class Part(NamedTuple):
    """What is computed at once: a recording, or a window of it."""

    recording: int
    """The recording's number in its corpus."""
    window: audio.Window


DECODED = 2
"""Recordings that are kept decoded: two batches that are read at once may lie on both sides of the
border between two recordings."""


class Parts:
    """The parts of a corpus' recordings, by number; threads may read them side by side."""

    def __init__(self, corpus: Corpus, paths: list[pathlib.Path], cut: audio.Cut | None):
        """Recordings longer than `cut` says are cut; their files are `paths`."""
        self._corpus, self._paths = corpus, paths
        self.parts: list[Part] = []
        for index, samples in enumerate(map(int, corpus.lengths)):
            windows = audio.windows_of(samples, cut or audio.WHOLE)
            self.parts += [Part(index, window) for window in windows]
        self.lengths = np.asarray([p.window.stop - p.window.start for p in self.parts], np.int64)
        self._decoded: collections.OrderedDict[int, np.ndarray] = collections.OrderedDict()
        self._decoding = threading.Lock()

    def read(self, number: int) -> Waveform:
        """One part, float32. Those of one recording cost least one after the other.

        Raises:
          InputError: it cannot be read.
        """
        index, window = self.parts[number]
        if window.is_whole:
            return self._corpus.read(index, 0, window.stop)
        with self._decoding:
            if index not in self._decoded:
                while len(self._decoded) >= DECODED:  # its file goes before there is another
                    self._decoded.popitem(last=False)
                self._decoded[index] = self._decode(index)
            self._decoded.move_to_end(index)
            waveform = self._decoded[index]
        return np.array(waveform[window.start : window.stop])

    def _decode(self, index: int) -> Waveform:
        """A recording on the disk, in a file without a name, decoded once from end to end."""
        path, samples = self._paths[index], 0
        with tempfile.TemporaryFile() as file, audio.stream(path) as (blocks, _):
            for block in blocks:
                file.write(block.astype(np.float32, copy=False).tobytes())
                samples += len(block)
            if samples != (promised := int(self._corpus.lengths[index])):
                raise InputError(
                    f"{path}: {samples} samples at 16 kHz, and the list says {promised}; write the "
                    "list again, or leave its numbers out"
                )
            file.flush()
            return np.memmap(file, np.float32, "r", shape=(samples,))
