"""VoiceBank-DEMAND: noisy recordings and the clean ones they were made of.

Source: Valentini-Botinhao et al., 2016, as `noisy-vctk-16k`.
"""

import pathlib
from collections.abc import Sequence

from daisy_jax.data.corpus import WithSources, open_with_sources


def open_voicebank(
    folder: str | pathlib.Path, part: str, speakers: Sequence[str] = (), without: Sequence[str] = ()
) -> WithSources:
    """Noisy and clean recordings: `noisy_PART_wav_16k/NAME.wav` and `clean_PART_wav_16k/NAME.wav`.

    Args:
      folder: the corpus.
      part: "trainset_28spk" or "testset".
      speakers: of these alone (names begin with p226_); none: of all.
      without: not of these.

    Raises:
      InputError: a folder is missing or holds nothing that was wanted.
    """

    def wanted(path: pathlib.Path) -> bool:
        speaker = path.name.partition("_")[0]
        return (not speakers or speaker in speakers) and speaker not in without

    folders = [pathlib.Path(folder, f"{kind}_{part}_wav_16k") for kind in ("noisy", "clean")]
    return open_with_sources(folders, wanted)
