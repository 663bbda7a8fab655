"""Libri2Mix: mixtures of two speakers, and what each of them says.

Source: Cosentino et al., 2020; 16 kHz, "min", without noise.
"""

import pathlib

from daisy_jax.data.corpus import WithSources, open_with_sources
from daisy_jax.errors import InputError


def open_libri2mix(folder: str | pathlib.Path, part: str) -> WithSources:
    """Mixtures and both speakers: `wav16k/min/PART/{mix_clean,s1,s2}/NAME.wav`.

    Args:
      folder: the corpus.
      part: "train-100", "train-360", "dev" or "test".

    Raises:
      InputError: a folder is missing or holds no whole mixture.
    """
    below = pathlib.Path(folder, "wav16k", "min", part)
    if not below.is_dir():
        raise InputError(
            f"{below}: no such folder; LibriMix' scripts make it from LibriSpeech (the "
            "command stands in docs/downstream.md)"
        )
    return open_with_sources([below / name for name in ("mix_clean", "s1", "s2")])
