"""What every format of libsndfile serves of whole, cut, joined and endless files.

The true length is that of the array that was written, never what a header says.
"""

import functools
import os
import pathlib

import numpy as np
import pytest
import soundfile
import sounds

from daisy_jax import audio
from daisy_jax.audio import sound_file
from daisy_jax.data.corpus import open_corpus
from daisy_jax.data.file_list import SUFFIXES, sound_files
from daisy_jax.errors import InputError

RATE = 16_000
NO_HEADER = {"RAW", "SD2"}  # nothing tells what they are (SD2 keeps it in another file)
NO_LENGTH = {"PAF", "PVF", "IRCAM", "XI"}  # their headers have none, so that nobody can miss it
CODED = ("PCM_16", "VORBIS", "OPUS", "MPEG_LAYER_III", "ULAW", "IMA_ADPCM", "GSM610", "FLOAT")
WRITTEN = [
    (kind, subtype)
    for kind in soundfile.available_formats()
    for subtype in (*CODED, "ALAC_16", "DPCM_16")
    if kind not in NO_HEADER and soundfile.check_format(kind, subtype)
]
ONE_OF_EACH = dict(reversed(WRITTEN))
SECONDS = 3
RATES = {"XI": 44_100}  # which it always has
DELAY = 1152  # samples of an MP3 frame


@pytest.fixture(scope="module")
def sound():
    return sounds.syllables(SECONDS)


def written(path: pathlib.Path, sound: np.ndarray, kind: str, subtype: str) -> bytes | None:
    try:
        soundfile.write(path, sound, RATE, format=kind, subtype=subtype)
    except soundfile.LibsndfileError:  # some combinations are announced and not there
        return None
    return path.read_bytes()


def served(path: pathlib.Path) -> int | str:
    """Samples, or what is said instead."""
    try:
        return len(audio.load(path))
    except InputError as error:
        return str(error)


def true_length(kind: str) -> float:
    return SECONDS * 16_000 * RATE / RATES.get(kind, RATE)


@pytest.mark.parametrize(("kind", "subtype"), WRITTEN)
def test_whole_files_have_the_length_that_was_written(tmp_path, sound, kind, subtype):
    path = tmp_path / "whole"
    if written(path, sound, kind, subtype) is None:
        pytest.skip("libsndfile does not write it")
    # Coders of blocks fill their last one; nothing is ever missing.
    length = true_length(kind)
    assert length - 1 <= served(path) <= length + 1024
    assert audio.measured(path)[0] == served(path)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.97])
@pytest.mark.parametrize(("kind", "subtype"), WRITTEN)
def test_an_end_that_comes_too_early_is_an_error(tmp_path, sound, kind, subtype, share):
    path = tmp_path / "cut"
    content = written(path, sound, kind, subtype)
    if content is None:
        pytest.skip("libsndfile does not write it")
    path.write_bytes(content[: round(len(content) * share)])
    said = served(path)
    if kind in NO_LENGTH:
        assert said < true_length(kind)
    else:
        assert "cut off" in said or ("not readable" in said and kind in ("CAF", "HTK", "VOC"))
        assert said.startswith(f"{path}: ")


@pytest.mark.parametrize(("kind", "subtype"), ONE_OF_EACH.items())
def test_joined_files_lose_nothing_in_silence(tmp_path, sound, kind, subtype):
    path = tmp_path / "joined"
    path.write_bytes(2 * written(path, sound, kind, subtype))
    said = served(path)
    if isinstance(said, str):
        assert "several sound files in one" in said or kind == "HTK"
    else:
        assert said >= 2 * true_length(kind)


@pytest.mark.parametrize("size", range(1, 30))
def test_the_beginning_of_a_joined_file_is_found_across_blocks(tmp_path, sound, monkeypatch, size):
    path = tmp_path / "joined"
    content = written(path, sound, "FLAC", "PCM_16")
    path.write_bytes(content + content[:8])
    monkeypatch.setattr(sound_file, "BLOCK", size)
    with pytest.raises(InputError, match="several sound files in one"):
        sound_file._refuse_joined(path)
    path.write_bytes(content + content[:7])
    sound_file._refuse_joined(path)


@pytest.mark.parametrize(("kind", "subtype"), ONE_OF_EACH.items())
def test_what_lies_behind_is_no_sound(tmp_path, sound, kind, subtype):
    path = tmp_path / "longer"
    path.write_bytes(written(path, sound, kind, subtype) + bytes(range(256)) * 8)
    said = served(path)
    if not isinstance(said, str) and kind not in NO_LENGTH:
        assert true_length(kind) <= said <= true_length(kind) + 1024


# ---------------------------------------------------------------- without a length


def read_up_to(seconds: float, path: pathlib.Path) -> None:
    """Decodes a file, unless it is longer."""
    with audio.stream(path, seconds) as (blocks, _):
        list(blocks)


def flac_of_length(path: pathlib.Path, sound: np.ndarray, samples: int) -> pathlib.Path:
    """A FLAC whose header says so; 0: unknown, as encoders write it into a pipe."""
    content = bytearray(written(path, sound, "FLAC", "PCM_16"))
    content[21] = content[21] & 0xF0 | samples >> 32
    content[22:26] = (samples & 0xFFFF_FFFF).to_bytes(4, "big")
    path.write_bytes(content)
    return path


def test_a_flac_without_a_length_is_served_whole(tmp_path, sound):
    path = flac_of_length(tmp_path / "piped.flac", sound, 0)
    np.testing.assert_allclose(audio.load(path), sound, atol=2**-15)
    assert audio.measured(path) == (len(sound), RATE)
    corpus = open_corpus(tmp_path)
    assert corpus.lengths.tolist() == [len(sound)]
    np.testing.assert_allclose(corpus.read(0, 1000, 500), sound[1000:1500], atol=2**-15)
    with pytest.raises(InputError, match="long; encode it in windows"):
        read_up_to(SECONDS / 2, path)


@pytest.mark.parametrize("claimed", [2**36 - 1, 1_000_000])
def test_a_flac_that_claims_too_much_is_cut_off(tmp_path, sound, claimed):
    path = flac_of_length(tmp_path / "claims.flac", sound, claimed)
    for read in (audio.load, functools.partial(read_up_to, 60.0)):
        with pytest.raises(InputError, match=r"cut off|long; encode it in windows"):
            read(path)


def test_a_flac_without_a_length_that_was_cut_is_noticed(tmp_path, sound):
    path = flac_of_length(tmp_path / "piped.flac", sound, 0)
    path.write_bytes(path.read_bytes()[:-3000])
    assert "cut off" in served(path)


@pytest.fixture(scope="module", params=["VARIABLE", "CONSTANT"])
def mp3(request, sound, tmp_path_factory):
    """A file's frame with the number of frames, and its frames with sound."""
    path = tmp_path_factory.mktemp("mp3") / "whole.mp3"
    rate = 44_100
    rising = np.concatenate([0.001 * sound, sound, sound])  # bit rates differ along the file
    resampled = np.interp(np.arange(0, len(rising), RATE / rate), np.arange(len(rising)), rising)
    options = {"bitrate_mode": request.param, "compression_level": 0.5}
    soundfile.write(path, resampled, rate, format="MP3", **options)
    content = path.read_bytes()
    second = content.index(content[:2], 100)
    assert b"Info" in content[:second] or b"Xing" in content[:second]
    return content[:second], content[second:], len(resampled) / rate


def test_mp3s_are_as_long_as_their_frames(tmp_path, mp3):
    length, frames, seconds = mp3
    tag = b"ID3\x04\0\0\0\0\0\x23" + bytes(35)
    variants = {
        "whole": (length + frames, 1),
        "tagged": (tag + length + frames + b"TAG" + bytes(125), 1),
        "piped": (frames, 1),
        "piped and tagged": (tag + frames, 1),
        "joined": (2 * (length + frames), 2),
        "piped and joined": (3 * frames, 3),
        "with rubbish between": (length + frames + b"\0rubbish\xff" * 50 + tag + frames, 2),
    }
    for name, (content, times) in variants.items():
        path = tmp_path / f"{name}.mp3"
        path.write_bytes(content)
        found = len(audio.load(path)) / 16_000
        # What encoders put in front and behind is two frames at most, and two more of silence.
        assert times * seconds - 0.01 <= found <= times * (seconds + 4 * DELAY / 44_100), name
        assert audio.measured(path)[0] / 16_000 == pytest.approx(found, abs=0.001)
    exact = len(audio.load(tmp_path / "whole.mp3"))
    assert exact == pytest.approx(16_000 * seconds, abs=1)  # its header says what to take off


def test_an_mp3_that_ends_within_a_frame_is_cut_off(tmp_path, mp3):
    length, frames, _ = mp3
    for content in (length + frames[:-5000], frames[:-5], 2 * frames[:-1]):
        path = tmp_path / "cut.mp3"
        path.write_bytes(content)
        assert "cut off" in served(path)


# ---------------------------------------------------------------- what is no recording


def test_sizes_are_bounded_before_anything_is_made_of_them(tmp_path):
    path = tmp_path / "slow.wav"
    soundfile.write(path, np.zeros(100_000), 1, subtype="PCM_U8")
    assert "1 samples a second" in served(path)
    with pytest.raises(InputError, match="1 samples a second"):
        audio.measured(path)


@pytest.mark.parametrize("loudest", [1e19, 1e38])
def test_amplitudes_that_would_overflow_are_refused(tmp_path, sound, loudest):
    path = tmp_path / "loud.wav"
    soundfile.write(path, sound * loudest, RATE, subtype="FLOAT")
    assert "times full scale" in served(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    assert "is a pipe or a device" in served(tmp_path / "pipe.wav")
    assert "is a pipe or a device" in served(pathlib.Path("/dev/zero"))


def test_a_folder_is_searched_for_every_format(tmp_path, sound):
    for suffix in SUFFIXES:
        soundfile.write(tmp_path / f"sound{suffix}", sound[:1600], RATE, format="WAV")
    soundfile.write(tmp_path / "sound.SPH", sound[:1600], RATE, format="NIST")
    (tmp_path / "sound.txt").write_text("what was said")
    assert len(sound_files(tmp_path)) == len(SUFFIXES) + 1
    assert len(open_corpus(tmp_path).names) == len(SUFFIXES) + 1
