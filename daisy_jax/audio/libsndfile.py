"""The one door to soundfile, and so to libsndfile, that is safe for threads."""

import contextlib
import functools
import io
import os
import threading
import types
from typing import Any

import numpy as np

_door = threading.Lock()


def libsndfile() -> types.ModuleType:
    """The module soundfile, once one thread has used all of it that we use.

    cffi makes a C type when it is first wanted. Since version 2.0 two threads that want it at once
    can end the process (python-cffi/cffi#271), as happened here once in some thousand starts.
    """
    with _door:
        return _used()


@functools.cache
def _used() -> types.ModuleType:
    import soundfile

    stream = io.BytesIO()
    soundfile.write(stream, np.zeros((8, 1), np.float32), 16_000, "PCM_16", format="WAV")
    stream.seek(0)
    with soundfile.SoundFile(stream) as file:
        assert file.seekable()
        assert file.extra_info
        file.seek(1)
        file.read(1, dtype="float32", always_2d=True)
    name: Any = os.fsencode(os.devnull) if os.name == "posix" else os.devnull  # as files are opened
    with contextlib.suppress(soundfile.LibsndfileError):
        soundfile.SoundFile(name).close()
    return soundfile
