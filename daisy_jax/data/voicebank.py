"""VoiceBank-DEMAND: noisy recordings and the clean ones they were made of.

Source: Valentini-Botinhao et al., 2016. The archives of its own page unpack to 48 kHz and folders
such as `noisy_testset_wav`; s3prl's copy, `noisy-vctk-16k`, has 16 kHz and `noisy_testset_wav_16k`.
"""

import pathlib
from collections.abc import Sequence

from daisy_jax.data.corpus import WithSources, open_with_sources
from daisy_jax.errors import InputError


def open_voicebank(
    folder: str | pathlib.Path, part: str, speakers: Sequence[str] = (), without: Sequence[str] = ()
) -> WithSources:
    """Noisy and clean recordings: `noisy_PART_wav/NAME.wav` and `clean_PART_wav/NAME.wav`.

    The folders' names may end with `_16k`; where there are both, those are taken.

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

    choices = [
        [pathlib.Path(folder, f"{kind}_{part}_wav{rate}") for kind in ("noisy", "clean")]
        for rate in ("_16k", "")
    ]
    for folders in choices:
        if all(each.is_dir() for each in folders):
            return open_with_sources(folders, wanted)
    wanted_there = " and ".join(str(each) for each in choices[1])
    raise InputError(
        f"{folder}: no {part} of VoiceBank-DEMAND there; expected {wanted_there} (or with names "
        "that end with _16k), as its archives unpack to"
    )
