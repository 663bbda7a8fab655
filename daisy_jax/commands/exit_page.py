"""`daisy-jax encode --report`: an HTML page that shows where files left, and plays them."""

import base64
import html
import io
import os
import pathlib

import numpy as np
from jaxtyping import Float, UInt8

import daisy_jax
from daisy_jax import FileResult
from daisy_jax.console import pages
from daisy_jax.console.charts import bars, curve, png, steps
from daisy_jax.exits import ExitRule
from daisy_jax.reporting import printable
from daisy_jax.whole_files import write_text

MOST_FILES = 200
"""Files that are shown one by one; the summary counts all."""
AUDIO_BYTES = 8_000_000
"""Of all players together; 20 MB a page, with pictures, and a third more for their spelling."""
BYTES_PER_SECOND = 5_500
"""Of the sound, as MP3 at 16 kHz; about."""
LONGEST_SOUND = 120.0
"""Seconds of one player."""
COLUMNS, BANDS = 800, 64
"""Of a picture, at most, and mel bands."""
RANGE = 80.0
"""dB below the loudest, of a picture's lightest grey."""
TITLE = "Where speech left the model"
POLICY = f"{pages.POLICY}; media-src data:"
"""With players."""
STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --paper: #fff; --faint: #888; --mark: #0b62c4;
        --limit: #c2410c; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --paper: #161616; --faint: #8a8a8a; --mark: #6cb2ff; --limit: #ff9d66; }
  img { filter: invert(1); }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }
h1 { line-height: 1.2; } h2 { font-size: 1rem; margin: 0 0 0.3rem; overflow-wrap: anywhere; }
section { border-top: 1px solid var(--faint); padding: 1rem 0; }
p { margin: 0.3rem 0; } .faint { color: var(--faint); }
.side { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr));
        gap: 1rem; align-items: start; }
.summary { max-width: 30rem; margin-bottom: 1rem; }
figure { margin: 0; } figcaption { font-size: 0.8rem; color: var(--faint); }
img { width: 100%; height: 8rem; image-rendering: auto; display: block; }
audio { width: 100%; margin-top: 0.5rem; } svg { width: 100%; height: auto; display: block; }
text { font: 11px system-ui, sans-serif; fill: var(--ink); }
.axis { fill: none; stroke: var(--faint); } .bar { fill: var(--mark); }
.line { fill: none; stroke: var(--mark); stroke-width: 2; } .exit { fill: var(--mark); }
.limit { stroke: var(--limit); stroke-dasharray: 5 4; stroke-width: 1.5; }
"""


class ExitPage:
    """Collects files and writes the page."""

    def __init__(self, path: str, rule: ExitRule, num_layers: int, files: int):
        """`files` is how many there will be: the more, the less is heard of each."""
        self._path, self._rule, self._num_layers = path, rule, num_layers
        each = AUDIO_BYTES / BYTES_PER_SECOND / max(1, min(files, MOST_FILES))
        self._heard = min(each, LONGEST_SOUND)
        self._sections: list[str] = []
        self._counts = np.zeros(num_layers, np.int64)
        self._files = 0

    def add(self, number: int, result: FileResult, saved: float) -> None:
        """As for every `Output`."""
        self._files += 1
        for window in result.windows:
            if window.exit_layer:
                self._counts[window.exit_layer - 1] += 1
        if self._files > MOST_FILES:
            return
        try:
            self._sections.append(self._section(result, saved))
        except Exception as error:  # the file has changed since it was encoded
            name = html.escape(printable(result.path))
            reason = html.escape(printable(str(error)))
            self._sections.append(f"<section><h2>{name}</h2><p>{reason}</p></section>")

    def leave_out(self, number: int) -> None:
        """As for every `Output`."""

    def finish(self, total: str) -> None:
        """As for every `Output`: writes the page, whole or not at all."""
        what = "files and windows" if int(self._counts.sum()) != self._files else "files"
        parts = [
            f"<h1>{TITLE}</h1>",
            f"<p>{html.escape(printable(total))}</p>",
            f'<figure class="summary">{bars(self._counts, "exits by layer")}'
            f"<figcaption>{what} that left at each layer</figcaption></figure>",
        ]
        if self._files > MOST_FILES:
            parts.append(f"<p>The first {MOST_FILES} of {self._files} files:</p>")
        body = "\n".join([*parts, *self._sections])
        write_text(pathlib.Path(self._path), pages.html_document(TITLE, STYLE, f"{body}\n", POLICY))

    def _section(self, result: FileResult, saved: float) -> str:
        assert result.entropy is not None  # as it has no error
        path, seconds = printable(result.path), result.seconds
        sound = first_seconds(result.path, self._heard)
        heard = len(sound) / daisy_jax.audio.SAMPLE_RATE
        forced = ", forced" if result.forced and self._rule.threshold is not None else ""
        words = f"{seconds:.2f} s, exit at layer {result.exit_layer} of {self._num_layers}{forced}"
        figures = [
            f'<figure><img alt="log-mel spectrum of {html.escape(path)}" '
            f'src="data:image/png;base64,{_base64(png(log_mel(sound)))}">'
            f'<audio controls preload="none" src="data:audio/mpeg;base64,{_base64(mp3(sound))}">'
            f"</audio><figcaption>0 to 8 kHz (mel), {heard:.1f} s"
            + (f"; the first of {seconds:.0f} s" if heard < seconds - 0.1 else "")
            + "</figcaption></figure>",
            "<figure>"
            + curve(result.entropy, self._rule.threshold, result.exit_layer, "entropy by layer")
            + "<figcaption>entropy (nats) by layer; dashed: the threshold; dot: the exit"
            + (", of the deepest window" if len(result.windows) > 1 else "")
            + "</figcaption></figure>",
        ]
        if len(result.windows) > 1:
            starts = [window.start for window in result.windows]
            layers = [window.exit_layer for window in result.windows]
            chart = steps(starts, layers, seconds, self._num_layers, "exit layer along time")
            caption = f"exit layer along time (s), {len(starts)} windows"
            figures.append(f"<figure>{chart}<figcaption>{caption}</figcaption></figure>")
        return (
            f"<section><h2>{html.escape(path)}</h2>"
            f'<p class="faint">{words}, {saved:.1%} of the multiply-adds saved</p>'
            f'<div class="side">{"".join(figures)}</div></section>'
        )


def first_seconds(path: str | os.PathLike[str], seconds: float) -> Float[np.ndarray, " samples"]:
    """The beginning of a file, float32 at 16 kHz; no more of it is decoded."""
    wanted = round(seconds * daisy_jax.audio.SAMPLE_RATE)
    parts, samples = [], 0
    with daisy_jax.audio.stream(path) as (blocks, _):
        for block in blocks:
            parts.append(block[: wanted - samples])
            samples += len(parts[-1])
            if samples >= wanted:
                break
    return np.concatenate(parts)


def mp3(sound: Float[np.ndarray, " samples"]) -> bytes:
    """Compressed as every browser plays it."""
    soundfile, stream = daisy_jax.audio.libsndfile(), io.BytesIO()
    soundfile.write(
        stream,
        np.clip(sound, -1, 1),
        daisy_jax.audio.SAMPLE_RATE,
        "MPEG_LAYER_III",
        format="MP3",
        compression_level=0.5,
    )
    return stream.getvalue()


def log_mel(sound: Float[np.ndarray, " samples"]) -> UInt8[np.ndarray, "bands columns"]:
    """A picture of a sound: time to the right, pitch upwards, dark where it is loud.

    Windows of 25 ms, every 20 ms; the power in mel bands (O'Shaughnessy's 2595 log10(1 + f / 700)).
    """
    window, hop = daisy_jax.audio.FRAME_WINDOW, daisy_jax.audio.FRAME_HOP
    if len(sound) < window:
        sound = np.pad(sound, (0, window - len(sound)))
    frames = np.lib.stride_tricks.sliding_window_view(sound, window)[::hop] * np.hanning(window)
    power = np.abs(np.fft.rfft(frames.astype(np.float32), 512)) ** 2
    top = 2595 * np.log10(1 + daisy_jax.audio.SAMPLE_RATE / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, BANDS + 2) / 2595) - 1)
    bins = np.fft.rfftfreq(512, 1 / daisy_jax.audio.SAMPLE_RATE)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    bands = power @ np.clip(np.minimum(rising, falling), 0, None)
    groups = np.array_split(bands, min(COLUMNS, len(bands)))
    level = 10 * np.log10(np.stack([group.mean(axis=0) for group in groups]) + 1e-10)
    share = np.clip((level - level.max()) / RANGE, -1, 0)  # 0: loudest
    return np.round(-255 * share).astype(np.uint8).T[::-1]


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
