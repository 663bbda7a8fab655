"""Small charts for pages, as SVG that follows the page's colours, and grey pictures as PNG.

Nothing is drawn by a library: a plain installation has none.
"""

import html
import struct
import zlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, UInt8

WIDTH, HEIGHT = 480, 150
LEFT, RIGHT, TOP, BOTTOM = 40, 10, 8, 24
"""Room around what is drawn, for the axes' numbers."""


def png(pixels: UInt8[np.ndarray, "rows columns"]) -> bytes:
    """A grey picture; the first row is on top. Source: RFC 2083."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    rows, columns = pixels.shape
    header = struct.pack(">IIBBBBB", columns, rows, 8, 0, 0, 0, 0)  # 8 bits, grey
    lines = np.insert(pixels, 0, 0, axis=1)  # each begins with the filter "none"
    data = zlib.compress(lines.astype(np.uint8).tobytes(), 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def bars(counts: Int[np.ndarray, " layers"], title: str) -> str:
    """How many left at each layer."""
    highest = max(int(counts.max()), 1)
    axes = _Axes(0.5, len(counts) + 0.5, 0, highest)
    drawn = []
    for layer, count in enumerate(counts.tolist(), 1):
        left, right = axes.x(layer - 0.4), axes.x(layer + 0.4)
        top, bottom = axes.y(count), axes.y(0)
        drawn.append(
            f'<rect class="bar" x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" '
            f'height="{bottom - top:.1f}"><title>layer {layer}: {count}</title></rect>'
        )
    return axes.svg(drawn, title, _layers(len(counts)), [0, highest])


def curve(
    values: Float[np.ndarray, " layers"], threshold: float | None, exit_layer: int, title: str
) -> str:
    """Entropy over layers, as far as it is known, with the threshold and the exit."""
    known = np.isfinite(values)
    shown = [0.0, *values[known].tolist()]
    if threshold is not None and np.isfinite(threshold):
        shown.append(threshold)
    highest = max(1.1 * max(shown), 0.1)
    lowest = min(0.0, *shown)
    axes = _Axes(0.5, len(values) + 0.5, lowest, highest)
    points = [
        f"{axes.x(layer):.1f},{axes.y(float(value)):.1f}"
        for layer, value in enumerate(values, 1)
        if np.isfinite(value)
    ]
    drawn = [f'<polyline class="line" points="{" ".join(points)}"/>'] if points else []
    if threshold is not None and np.isfinite(threshold):
        y = axes.y(threshold)
        drawn.append(
            f'<line class="limit" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
    if 1 <= exit_layer <= len(values) and known[exit_layer - 1]:
        at = axes.x(exit_layer), axes.y(float(values[exit_layer - 1]))
        drawn.append(f'<circle class="exit" cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="5"/>')
    return axes.svg(drawn, title, _layers(len(values)), [round(lowest, 2), round(highest, 2)])


def steps(
    starts: Sequence[float], layers: Sequence[int], end: float, num_layers: int, title: str
) -> str:
    """The exit layer along time: windows that begin at `starts`, the last until `end`, seconds."""
    axes = _Axes(0, end, 0, num_layers)
    corners = []
    for start, stop, layer in zip(starts, [*starts[1:], end], layers, strict=True):
        y = axes.y(layer)
        corners += [f"{axes.x(start):.1f},{y:.1f}", f"{axes.x(stop):.1f},{y:.1f}"]
    drawn = [f'<polyline class="line" points="{" ".join(corners)}"/>']
    return axes.svg(drawn, title, [0, round(end)], [1, num_layers])


class _Axes:
    """From values to places, and the frame around what is drawn."""

    def __init__(self, left: float, right: float, bottom: float, top: float):
        self._left, self._width = left, (right - left) or 1
        self._bottom, self._height = bottom, (top - bottom) or 1

    def x(self, value: float) -> float:
        """Where a value of the horizontal axis lies."""
        return LEFT + (value - self._left) / self._width * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        """Where a value of the vertical axis lies."""
        return HEIGHT - BOTTOM - (value - self._bottom) / self._height * (HEIGHT - TOP - BOTTOM)

    def svg(
        self,
        drawn: Sequence[str],
        title: str,
        across: Sequence[float],
        upwards: Sequence[float],
    ) -> str:
        """A whole chart: `title` for who cannot see it, and the numbers at the axes."""
        base = HEIGHT - BOTTOM
        numbers = [
            f'<text x="{self.x(at):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{at:g}</text>'
            for at in across
        ]
        numbers += [
            f'<text x="{LEFT - 6}" y="{self.y(at) + 4:.1f}" text-anchor="end">{at:g}</text>'
            for at in upwards
        ]
        frame = f'<path class="axis" d="M{LEFT} {TOP}V{base}H{WIDTH - RIGHT}"/>'
        return (
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}">'
            f"{frame}{''.join(drawn)}{''.join(numbers)}</svg>"
        )


def _layers(count: int) -> list[float]:
    """Layers whose numbers stand at an axis: up to a dozen of them, the last one always."""
    every = -(-count // 12)
    return [float(layer) for layer in range(count, 0, -every)][::-1]
