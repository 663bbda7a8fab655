"""The page of `daisy-jax encode --report`: what it shows, and what it must not let in."""

import base64
import html.parser
import io
import re
import shutil
import subprocess

import librosa
import numpy as np
import PIL.Image
import pytest
import sounds
from conftest import LIBROSA, speech_like
from programs import ROOT, run_here

import daisy_jax
from daisy_jax import audio
from daisy_jax.commands import exit_page
from daisy_jax.console.charts import bars, curve, png, steps

ODD = "<img src=x onerror=alert(1)> & \"quoted\" 'name'.wav"


class Page(html.parser.HTMLParser):
    """Elements and texts of a page."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def made(model, tmp_path_factory):
    """A page of three files, one in windows, and one with a name that would inject."""
    folder = tmp_path_factory.mktemp("page")
    daisy_jax.save(model, folder / "model")
    clips = sorted((ROOT / "daisy_jax" / "samples").glob("reading-*.flac"))
    parts = [audio.load(clip)[: 24_000 + 2_000 * number] for number, clip in enumerate(clips)]
    sounds.write(folder / "a.flac", parts[0])
    sounds.write(folder / ODD, parts[1], subtype="PCM_16")
    sounds.write(folder / "long.wav", np.concatenate(parts[:4]))
    files = [folder / "a.flac", folder / ODD, folder / "long.wav", folder / "gone.wav"]
    words = ["--model", folder / "model", "--threshold=1.5", "--window=2"]
    done = run_here("daisy-jax", "encode", *files, *words, "--report", folder / "page.html")
    assert done.returncode == 1
    return folder, done.stdout, (folder / "page.html").read_text(encoding="utf-8")


def test_every_file_is_shown_with_picture_sound_and_curve(made, model):
    folder, said, text = made
    page = Page(text)
    files = [folder / "a.flac", folder / ODD, folder / "long.wav"]
    assert [t for t in page.texts if str(folder) in t] == [str(file) for file in files]
    results = daisy_jax.encode_files(model, files, threshold=1.5, window_seconds=2)
    pictures, players = page.all("img"), page.all("audio")
    assert len(pictures) == len(players) == 3
    charts = [chart["aria-label"] for chart in page.all("svg")]
    by_file = ["entropy by layer"] * 3
    assert charts == ["exits by layer", *by_file, "exit layer along time"]
    for result, picture, player in zip(results, pictures, players, strict=True):
        sound = audio.load(result.path)
        data = picture["src"].removeprefix("data:image/png;base64,")
        shown = np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(data))))
        np.testing.assert_array_equal(shown, exit_page.log_mel(sound))
        heard = folder / "heard.mp3"
        heard.write_bytes(base64.b64decode(player["src"].partition(",")[2]))
        again = audio.load(heard)
        shift = int(np.argmax(np.correlate(again, sound[:16_000], "valid")))
        assert shift <= 1200
        assert np.corrcoef(again[shift:][:20_000], sound[:20_000])[0, 1] > 0.98
        number = str(result.exit_layer)
        assert any(f"exit at layer {number} of 3" in line for line in page.texts)
    assert said.splitlines()[-1] in "".join(page.texts)


def test_names_inject_nothing_and_nothing_is_loaded(made):
    _, _, text = made
    page = Page(text)
    assert not page.all("script")
    assert all("onerror" not in attributes for _, attributes in page.elements)
    assert all(a["src"].startswith("data:") for a in [*page.all("img"), *page.all("audio")])
    assert not re.search(r"https?:|//|url\(|@import", re.sub(r"base64,[^\"]*", "", text))
    (policy,) = [m["content"] for m in page.all("meta") if "http-equiv" in m]
    assert policy.startswith("default-src 'none'")


@pytest.mark.slow("opens a browser")
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_a_browser_shows_it(made, tmp_path):
    folder, _, _ = made
    words = ["chromium", "--headless", "--no-sandbox", "--disable-gpu"]
    words += [
        f"--user-data-dir={tmp_path}",
        "--enable-logging=stderr",
        "--virtual-time-budget=5000",
    ]
    done = subprocess.run(
        [*words, "--dump-dom", f"file://{folder / 'page.html'}"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    page = Page(done.stdout)
    assert str(folder / ODD) in page.texts
    assert (len(page.all("img")), len(page.all("audio")), len(page.all("svg"))) == (3, 3, 5)
    assert "CONSOLE" not in done.stderr  # no error, nothing that the policy forbade


def test_many_long_files_stay_below_the_limit(model, tmp_path, monkeypatch):
    monkeypatch.setattr(exit_page, "MOST_FILES", 3)
    monkeypatch.setattr(exit_page, "AUDIO_BYTES", 66_000)
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 16_000 * 8).astype(np.float32)
    files = [sounds.write(tmp_path / f"{number}.wav", noise) for number in range(5)]
    rule = daisy_jax.exits.ExitRule("all", None, np.ones(model.config.num_layers, bool))
    page = exit_page.ExitPage(str(tmp_path / "page.html"), rule, model.config.num_layers, 5)
    for number, result in enumerate(daisy_jax.encode_files(model, files)):
        page.add(number, result, 0.0)
    page.finish("5 files")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "The first 3 of 5 files" in text
    assert text.count("4.0 s; the first of 8 s") == 3
    of_players = [len(each["src"]) * 3 / 4 for each in Page(text).all("audio")]
    assert sum(of_players) < 66_000


def test_a_file_that_goes_away_leaves_a_word(model, tmp_path):
    file = sounds.write(tmp_path / "a.wav", sounds.syllables(0.5))
    (result,) = daisy_jax.encode_files(model, [file])
    file.unlink()
    rule = daisy_jax.exits.ExitRule("all", None, np.ones(model.config.num_layers, bool))
    page = exit_page.ExitPage(str(tmp_path / "page.html"), rule, model.config.num_layers, 1)
    page.add(0, result, 0.0)
    page.finish("1 file")
    assert "No such file" in (tmp_path / "page.html").read_text(encoding="utf-8")


@LIBROSA
def test_the_picture_is_librosas_mel_spectrum():
    (sound,) = speech_like([30_000], seed=1)
    spectrum = librosa.feature.melspectrogram(
        y=np.pad(sound, 56),  # its windows of 512 samples have the 400 in their middle
        sr=16_000,
        n_fft=512,
        win_length=400,
        window=np.hanning(400),
        hop_length=320,
        n_mels=64,
        htk=True,
        norm=None,
        center=False,
    )
    level = librosa.power_to_db(spectrum, ref=np.max, amin=1e-10, top_db=80)
    wanted = -255 / 80 * level[::-1]
    picture = exit_page.log_mel(sound)
    assert picture.shape == wanted.shape
    assert np.abs(picture - wanted).max() < 1


def test_charts_put_values_in_their_places():
    values = np.array([2.0, 1.0, np.inf])
    chart = curve(values, 1.5, 2, "x")
    (points,) = re.findall(r'points="([^"]*)"', chart)
    places = [tuple(map(float, point.split(","))) for point in points.split()]
    assert len(places) == 2
    bottom, top = 150 - 24, 8
    for (x, y), layer, value in zip(places, (1, 2), (2.0, 1.0), strict=True):
        assert x == pytest.approx(40 + (layer - 0.5) / 3 * 430, abs=0.1)
        assert y == pytest.approx(bottom - value / 2.2 * (bottom - top), abs=0.1)
    assert f'cx="{places[1][0]:.1f}" cy="{places[1][1]:.1f}"' in chart
    assert "limit" not in curve(values, None, 2, "x")
    heights = re.findall(r'height="([\d.]+)"', bars(np.array([0, 3, 6]), "x"))
    assert [float(h) for h in heights] == pytest.approx([0, 59, 118], abs=0.1)
    (points,) = re.findall(r'points="([^"]*)"', steps([0.0, 10.0], [1, 4], 15.0, 4, "x"))
    xs, ys = zip(*(map(float, point.split(",")) for point in points.split()), strict=True)
    assert xs == pytest.approx((40, 40 + 430 * 2 / 3, 40 + 430 * 2 / 3, 470), abs=0.1)
    assert ys == pytest.approx((126 - 118 / 4, 126 - 118 / 4, 8, 8), abs=0.1)


def test_pictures_are_png():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 9)).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(PIL.Image.open(io.BytesIO(png(pixels)))), pixels)
