import concurrent.futures
import importlib
import os
import pathlib
import re
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sounds

from daisy_jax import audio
from daisy_jax.data.corpus import open_corpus
from daisy_jax.errors import InputError

libsndfile = importlib.import_module("daisy_jax.audio.libsndfile")
CONVOLUTIONS = ((10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2))


class Clip(NamedTuple):
    waveform: np.ndarray
    notes: tuple[str, ...]


def load_clip(path: pathlib.Path) -> Clip:
    """A file's audio, and what was done to it."""
    with audio.stream(path) as (blocks, notes):
        return Clip(np.concatenate(list(blocks)), notes)


def frames_by_convolutions(samples: int) -> int:
    for kernel, stride in CONVOLUTIONS:
        samples = (samples - kernel) // stride + 1 if samples >= kernel else 0
    return samples


def ramp(samples: int = 4_000) -> np.ndarray:
    """int16: every step of the range, both ends included."""
    return np.linspace(-32_768, 32_767, samples).round().astype(np.int16)


def test_window_and_hop_follow_from_the_convolutions():
    assert np.prod(audio.CONV_STRIDES) == audio.FRAME_HOP
    assert tuple(zip(audio.CONV_KERNELS, audio.CONV_STRIDES, strict=True)) == CONVOLUTIONS
    assert frames_by_convolutions(audio.FRAME_WINDOW) == 1
    assert frames_by_convolutions(audio.FRAME_WINDOW - 1) == 0


def test_frame_count_is_what_the_seven_convolutions_leave():
    lengths = np.concatenate([np.arange(4_000), np.arange(159_000, 161_000), [960_000, 2**31 - 1]])
    wanted = [frames_by_convolutions(int(n)) for n in lengths]
    assert [audio.frame_count(int(n)) for n in lengths] == wanted
    assert type(audio.frame_count(16_000)) is int
    for dtype in (np.int32, np.int64, np.uint32):
        counted = audio.frame_count(lengths.astype(dtype))
        assert counted.dtype == dtype
        np.testing.assert_array_equal(counted, wanted)
    for dtype in (jnp.int32, jnp.uint32):
        counted = jax.jit(audio.frame_count)(jnp.asarray(lengths, dtype))
        assert counted.dtype == dtype
        np.testing.assert_array_equal(counted, wanted)
    assert audio.frame_count(np.int64(-5)) == audio.frame_count(-5) == 0


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_16_bit_samples_are_integers_over_32768_exactly(tmp_path, suffix):
    path = sounds.write(tmp_path / f"ramp{suffix}", ramp(), subtype="PCM_16")
    loaded = audio.load(path)
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded, ramp() / np.float32(32_768))
    with audio.stream(path) as (_, notes):
        assert notes == ()


@pytest.mark.parametrize(
    ("subtype", "bits"),
    [("PCM_U8", 8), ("PCM_24", 24), ("PCM_32", 32), ("FLOAT", 0), ("DOUBLE", 0)],
)
def test_every_sample_type_is_scaled_to_one(tmp_path, subtype, bits):
    sound = np.clip(np.linspace(-1, 1, 4_000), -1, 1 - 2.0**-7)
    clip = load_clip(sounds.write(tmp_path / "sound.wav", sound, subtype=subtype))
    assert clip.waveform.dtype == np.float32
    # Half a step of the file's grid (libsndfile rounds to nearest or down), or float32's own.
    step = 2.0 ** (1 - bits) if bits else 0
    assert np.max(np.abs(clip.waveform - sound)) <= max(step, 2**-24)
    assert clip.notes == (("integer samples scaled to +-1",) if bits else ())


def test_channels_are_averaged_and_said(tmp_path):
    left, right = ramp(), ramp()[::-1] // 3
    path = sounds.write(tmp_path / "stereo.wav", np.stack([left, right], axis=1))
    clip = load_clip(path)
    wanted = (left.astype(np.float64) + right) / 2 / 32_768
    np.testing.assert_array_equal(clip.waveform, wanted.astype(np.float32))
    assert clip.notes == ("mixed down to one channel",)


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000])
def test_resampling_keeps_a_sine_where_it_is(tmp_path, rate):
    frequency, seconds = 997.0, 1.0
    sine = 0.5 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)
    clip = load_clip(sounds.write(tmp_path / "sine.wav", sine, rate, "DOUBLE"))
    assert clip.notes == ("resampled to 16000 Hz",)
    assert len(clip.waveform) == 16_000
    wanted = 0.5 * np.sin(2 * np.pi * frequency * np.arange(16_000) / 16_000)
    inner = slice(800, -800)  # the filter sees the file's ends as silence
    assert np.max(np.abs(clip.waveform - wanted)[inner]) < 0.5 * 2e-5


@pytest.mark.parametrize("rate", [8_000, 11_025, 12_345, 22_050, 32_000, 44_100, 48_000, 96_000])
def test_a_header_tells_what_resampling_makes(tmp_path, rate):
    for samples in np.random.default_rng(rate).integers(rate // 10, rate, 8):
        path = sounds.write(tmp_path / "sound.wav", np.full(samples, 0.25), rate)
        assert audio.measured(path) == (len(audio.load(path)), rate)


def test_everything_that_was_done_is_noted_once(tmp_path):
    stereo = np.stack([sounds.syllables(0.5, seed, 44_100) for seed in (0, 1)], axis=1)
    clip = load_clip(sounds.write(tmp_path / "stereo.wav", stereo, 44_100, "PCM_24"))
    assert clip.notes == (
        "mixed down to one channel",
        "resampled to 16000 Hz",
        "integer samples scaled to +-1",
    )


@pytest.mark.parametrize("suffix", [".ogg", ".mp3"])
def test_compressed_files_are_read(tmp_path, suffix):
    sound = sounds.syllables(2.0)
    loaded = audio.load(sounds.write(tmp_path / f"sound{suffix}", sound))
    assert abs(len(loaded) - len(sound)) < 2_000  # encoders add and trim a frame or two
    assert np.abs(np.fft.rfft(loaded)).max() == pytest.approx(
        np.abs(np.fft.rfft(sound)).max(), rel=0.1
    )


def test_files_that_cannot_seek_are_read(tmp_path):
    for rate in (8_000, 16_000):
        voice = sounds.syllables(0.5, rate=rate)
        path = sounds.write(tmp_path / f"{rate}.wav", voice, rate, "GSM610")
        waveform = audio.load(path)
        assert 8_000 <= len(waveform) < 9_000  # whole blocks of samples
        corpus = open_corpus(tmp_path)
        index = corpus.names.index(path.name)
        np.testing.assert_array_equal(corpus.read(index, 1_000, 500), waveform[1_000:1_500])
        expected = voice if rate == 16_000 else sounds.syllables(0.5)
        assert np.corrcoef(waveform[:7_500], expected[:7_500])[0, 1] > 0.8


def test_silence_and_clipped_audio_are_served(tmp_path):
    silence = audio.load(sounds.write(tmp_path / "silence.wav", np.zeros(16_000)))
    assert len(silence) == 16_000
    assert not silence.any()
    loud = np.clip(30 * sounds.syllables(1.0), -1, 1)
    clipped = audio.load(sounds.write(tmp_path / "clipped.wav", loud))
    assert np.max(np.abs(clipped)) <= 1
    above = audio.load(sounds.write(tmp_path / "above.wav", 2 * loud, subtype="FLOAT"))
    np.testing.assert_array_equal(above, 2 * loud)


def test_400_samples_are_enough(tmp_path):
    assert len(audio.load(sounds.write(tmp_path / "least.wav", ramp(400)))) == 400


def test_every_bad_file_ends_in_one_line_that_names_it(tmp_path):
    for path, said in sounds.bad_files(tmp_path / "bad").items():
        with pytest.raises((InputError, OSError)) as error:
            audio.load(path)
        message = str(error.value)
        assert said in message
        assert str(path) in message
        assert "\n" not in message


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("suffix", [".wav", ".flac", ".aiff", ".au", ".w64", ".rf64"])
def test_a_file_cut_anywhere_is_not_served(tmp_path, suffix, share):
    path = sounds.write(tmp_path / f"sound{suffix}", sounds.syllables(1.0), subtype="PCM_16")
    with pytest.raises(InputError, match=r"cut off|not readable"):
        audio.load(sounds.cut(path, tmp_path / f"cut{suffix}", share))


@pytest.mark.parametrize("promised", [0xFFFF_FFFF, 0x7FFF_FFFF, 0x7FFF_F000])
def test_a_wav_that_was_written_to_a_pipe_is_served(tmp_path, promised):
    path = sounds.streamed_wav(tmp_path / "streamed.wav", ramp(), promised)
    np.testing.assert_array_equal(audio.load(path), ramp() / np.float32(32_768))


def test_trailing_metadata_is_no_cut(tmp_path):
    path = sounds.write(tmp_path / "sound.wav", ramp())
    with open(path, "ab") as stream:
        stream.write(b"LIST\x04\0\0\0INFO")
    assert len(audio.load(path)) == len(ramp())


@pytest.mark.parametrize("name", ["with space.wav", "line\nfeed.wav", "größe🎙.WAV", "-dash.wav"])
def test_any_file_name_is_opened(tmp_path, name):
    path = sounds.write(tmp_path / "plain.wav", ramp())
    assert len(audio.load(path.rename(tmp_path / name))) == len(ramp())


@pytest.mark.skipif(os.name != "posix", reason="names are bytes on POSIX alone")
def test_a_name_that_is_not_utf8_is_opened(tmp_path):
    name = os.fsencode(tmp_path) + b"/\xff\xfe.wav"
    os.rename(sounds.write(tmp_path / "plain.wav", ramp()), name)
    assert len(audio.load(pathlib.Path(os.fsdecode(name)))) == len(ramp())


def test_pad_batch_puts_zeros_behind_and_empty_rows_below():
    batch, lengths = audio.pad_batch([np.ones(3), np.full(5, 2.0)], samples=6, rows=4)
    assert batch.dtype == np.float32
    assert lengths.dtype == np.int32
    np.testing.assert_array_equal(lengths, [3, 5, 0, 0])
    np.testing.assert_array_equal(batch.sum(axis=1), [3, 10, 0, 0])
    np.testing.assert_array_equal(batch[:, 5], 0)
    assert audio.pad_batch([np.ones(3), np.ones(5)])[0].shape == (2, 5)


def test_pad_batch_refuses_what_does_not_fit():
    with pytest.raises(InputError, match="do not fit"):
        audio.pad_batch([np.ones(5)], samples=4)
    with pytest.raises(InputError, match="do not fit"):
        audio.pad_batch([np.ones(5)] * 3, rows=2)


# ---- threads ----


def test_soundfile_is_used_by_one_thread_before_others_have_it(monkeypatch):
    module, running, most = libsndfile._used(), 0, 0

    def slow():
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.01)
        running -= 1
        return module

    monkeypatch.setattr(libsndfile, "_used", slow)
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        got = list(threads.map(lambda _: libsndfile.libsndfile(), range(8)))
    assert (most, set(got)) == (1, {module})


def test_soundfile_has_one_door():
    """Elsewhere it is named for type checkers alone."""
    package = pathlib.Path(audio.__file__).parents[1]
    found = {
        str(path.relative_to(package)): len(re.findall(r"^ *(?:import|from) soundfile", text, re.M))
        for path in sorted(package.rglob("*.py"))
        if (text := path.read_text(encoding="utf-8")) and "import soundfile" in text
    }
    checked = (package / "audio" / "sound_file.py").read_text(encoding="utf-8")
    assert "if TYPE_CHECKING:\n    import soundfile\n" in checked
    assert found == {"audio/libsndfile.py": 1, "audio/sound_file.py": 1}
