"""M4A, WebM and the sound of films, which PyAV reads: lengths, damage, and where it is missing."""

import fractions
import pathlib
import sys

import numpy as np
import pytest
import sounds
from programs import run_here

import daisy_jax
from daisy_jax import InputError, audio
from daisy_jax.data.corpus import open_corpus
from daisy_jax.data.voxceleb import open_voxceleb

av = pytest.importorskip("av")

KINDS = {
    "m4a": ("aac", 44_100),
    "mp4": ("aac", 48_000),
    "aac": ("aac", 44_100),
    "mka": ("aac", 32_000),
    "webm": ("libopus", 48_000),
}
SECONDS = 1.5


def encoded(path: pathlib.Path, samples: np.ndarray, film: bool = False, **options) -> pathlib.Path:
    """A file of the kind that its suffix says, float [channels, samples] at that kind's rate."""
    codec, rate = KINDS[path.suffix[1:]]
    with av.open(str(path), "w", options=options) as container:
        picture = None
        if film:
            picture = container.add_stream("mpeg4", rate=5)
            picture.width = picture.height = 32
        layout = "stereo" if len(samples) == 2 else "mono"
        track = container.add_stream(codec, rate=rate, layout=layout)
        track.codec_context.open()
        if picture is not None:  # three seconds, longer than the sound
            black = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            for _ in range(15):
                container.mux(picture.encode(black))
            container.mux(picture.encode(None))
        size = track.codec_context.frame_size or 1024
        form = track.codec_context.format.name
        turn = av.AudioResampler(form, layout, rate)
        for start in range(0, samples.shape[1], size):
            block = np.ascontiguousarray(samples[:, start : start + size], np.float32)
            frame = av.AudioFrame.from_ndarray(block, "fltp", layout)
            frame.rate, frame.pts, frame.time_base = rate, start, fractions.Fraction(1, rate)
            for converted in turn.resample(frame):
                container.mux(track.encode(converted))
        container.mux(track.encode(None))
    return path


def chirp(rate: int, channels: int = 1, seconds: float = SECONDS) -> np.ndarray:
    """A tone that rises from 200 to 1 700 Hz, so that every shift shows."""
    time = np.arange(round(seconds * rate)) / rate
    tone = 0.4 * np.sin(2 * np.pi * (200 * time + 500 * time**2))
    return np.stack([tone] * channels).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_decoded_to_its_end(tmp_path, kind):
    rate = KINDS[kind][1]
    path = encoded(tmp_path / f"tone.{kind}", chirp(rate, channels=2))
    found, wanted = audio.load(path), chirp(16_000)[0]
    # Bare AAC and Matroska do not say how many samples the encoder put before the sound.
    exact = kind in ("m4a", "mp4", "webm")
    shift = int(np.argmax(np.correlate(found, wanted[:8_000], "valid")))
    assert shift <= (2 if exact else 2_400)
    assert 0 <= len(found) - shift - len(wanted) < 2_400
    inner, wanted = found[shift : shift + len(wanted)][800:-800], wanted[800:-800]
    if exact:
        assert np.sqrt(np.mean((inner - wanted) ** 2)) < 0.05 * np.sqrt(np.mean(wanted**2))
    else:  # where the shift is no whole number of samples
        assert np.corrcoef(inner, wanted)[0, 1] > 0.97
    assert audio.measured(path) == (len(found), rate)
    with audio.stream(path) as (_, notes):
        assert notes == ("mixed down to one channel", "resampled to 16000 Hz")


@pytest.mark.parametrize("options", [{}, {"movflags": "faststart"}])
@pytest.mark.parametrize("kind", ["m4a", "webm"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_what_is_cut_off_is_noticed(tmp_path, kind, share, options):
    path = encoded(tmp_path / f"tone.{kind}", chirp(KINDS[kind][1]), **options)
    part = sounds.cut(path, tmp_path / f"cut.{kind}", share)
    for use in (audio.load, audio.measured):
        with pytest.raises(InputError, match=r"cut\.\w+: the file is cut off"):
            use(part)


def test_a_film_gives_its_sound(tmp_path):
    path = encoded(tmp_path / "film.mp4", chirp(48_000), film=True)
    assert abs(len(audio.load(path)) / 16_000 - SECONDS) < 0.1
    with av.open(str(tmp_path / "silent.mp4"), "w") as container:
        picture = container.add_stream("mpeg4", rate=5)
        picture.width = picture.height = 32
        black = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        container.mux([*picture.encode(black), *picture.encode(None)])
    with pytest.raises(InputError, match=r"silent\.mp4: holds no sound"):
        audio.load(tmp_path / "silent.mp4")


def test_rubbish_with_a_films_beginning_is_one_line(tmp_path):
    path = tmp_path / "rubbish.m4a"
    path.write_bytes(b"\x00\x00\x00\x20ftypM4A " + bytes(range(256)) * 8)
    with pytest.raises(InputError, match=r"rubbish\.m4a: .* \(Invalid data found"):
        audio.load(path)


def test_without_pyav_the_extra_is_named(tmp_path, monkeypatch):
    path = encoded(tmp_path / "tone.m4a", chirp(44_100))
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match=r"tone\.m4a: .*pip install 'daisy-jax\[media\]'.*ffmpeg"):
        audio.load(path)


def test_folders_and_the_command_take_them(tmp_path):
    (tmp_path / "sound").mkdir()
    encoded(tmp_path / "sound" / "a.m4a", chirp(44_100))
    corpus = open_corpus(tmp_path / "sound")
    assert corpus.names == ["a.m4a"]
    whole = audio.load(tmp_path / "sound" / "a.m4a")
    assert corpus.lengths.tolist() == [len(whole)]
    np.testing.assert_array_equal(corpus.read(0, 1000, 500), whole[1000:1500])
    done = run_here("daisy-jax", "encode", tmp_path / "sound", "--layer=1", "--window=1")
    assert done.returncode == 0, done.stderr
    assert f"{audio.frame_count(len(whole))} " in done.stdout


def test_voxceleb_is_read_as_it_is_downloaded(tmp_path, monkeypatch):
    folder = tmp_path / "wav" / "id10001" / "video"
    folder.mkdir(parents=True)
    sounds.write(folder / "00001.wav", sounds.syllables(0.6))
    encoded(folder / "00002.m4a", chirp(44_100))
    listing = "1 id10001/video/00001.wav\n1 id10001/video/00002.wav\n"
    (tmp_path / "iden_split.txt").write_text(listing)
    opened = open_voxceleb(tmp_path, "iden_split.txt", "1")
    assert [pathlib.PurePath(name).name for name in opened.corpus.names] == [
        "00001.wav",
        "00002.m4a",
    ]
    assert opened.speaker.tolist() == [0, 0]
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match=r"00002\.m4a: .*daisy-jax\[media\]"):
        open_voxceleb(tmp_path, "iden_split.txt", "1")


def test_the_model_takes_what_was_read(model, tmp_path):
    path = encoded(tmp_path / "tone.webm", chirp(48_000))
    (result,) = daisy_jax.encode_files(model, [path], threshold=1.0)
    assert result.error is None
    assert result.num_frames == audio.frame_count(len(audio.load(path)))
