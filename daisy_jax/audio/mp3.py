"""MPEG layer III: the true length of a file, which its decoder takes from a header or estimates.

Encoders write a first frame without sound, "Xing" or "Info", that tells how many frames follow.
Those that write into a pipe cannot know it; in joined files it speaks of the first part alone. The
decoder believes the number, or estimates one from the bit rate of the beginning, and serves no
sample more. Walking from frame to frame needs no decoding, and counts.

Sources: ISO/IEC 11172-3 and 13818-3, section 2.4 (headers of frames); id3.org (tags).
"""

import io
import pathlib
from typing import NamedTuple

from daisy_jax.errors import InputError

KILOBITS = {
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
"""Bit rates of layer III by their index; of MPEG 1, and of 2 and 2.5."""
RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
"""Hz, by the bits that tell MPEG 1, 2 and 2.5."""
LENGTH_FRAME_RATE = 9
"""Index of a bit rate whose frames hold the length at every sampling rate."""


class Frame(NamedTuple):
    """What a frame's header says."""

    size: int
    """Bytes."""
    side: int
    """Where a frame without sound holds its name."""


class Walk(NamedTuple):
    """A file's frames."""

    audio: list[tuple[int, int]]
    """Where those with sound begin and end."""
    first: bytes
    """The first frame without sound, if there is one."""
    counts: list[int]
    """Frames that each frame without sound promises."""
    cut: bool
    """The last frame is not there as a whole."""


def frame_at(data: bytes, position: int) -> Frame | None:
    """The header at a position; None if there is none of layer III."""
    head = data[position : position + 4]
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2:  # sync, and the layer
        return None
    version, index, rate = head[1] >> 3 & 3, head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or rate == 3 or not 0 < index < 15:
        return None
    first, mono = version == 3, head[3] >> 6 == 3
    size = (144 if first else 72) * 1000 * KILOBITS[first][index] // RATES[version][rate]
    side = {(True, True): 17, (True, False): 32, (False, True): 9, (False, False): 17}[first, mono]
    return Frame(size + (head[2] >> 1 & 1), 4 + side)


def walk(data: bytes) -> Walk:
    """All frames of a file, with the tags and the rubbish between them passed over."""
    audio, first, counts, position, cut = [], b"", [], 0, False
    while position < len(data):
        frame = frame_at(data, position)
        if frame is None:
            position = _behind_rubbish(data, position)
            continue
        end = position + frame.size
        if end > len(data):
            cut = bool(audio)
            break
        count = _frames_promised(data[position:end], frame.side)
        if count is None:
            audio.append((position, end))
        else:
            first = first or data[position:end]
            counts.append(count)
        position = end
    return Walk(audio, first, counts, cut)


def _frames_promised(frame: bytes, side: int) -> int | None:
    """What a frame without sound promises, 0 if it does not say; None for a frame of sound."""
    if frame[side : side + 4] in (b"Xing", b"Info"):
        flags, count = frame[side + 4 : side + 8], frame[side + 8 : side + 12]
        return int.from_bytes(count, "big") if int.from_bytes(flags, "big") & 1 else 0
    if frame[36:40] == b"VBRI":
        return int.from_bytes(frame[50:54], "big")
    return None


def _behind_rubbish(data: bytes, position: int) -> int:
    """Where the next frame begins: behind a tag, or where two headers follow each other."""
    tag = _tag_size(data[position : position + 10])
    if tag:
        return position + tag
    while (position := data.find(b"\xff", position + 1)) >= 0:
        frame = frame_at(data, position)
        if frame and (frame_at(data, position + frame.size) or position + frame.size == len(data)):
            return position
    return len(data)


def _tag_size(head: bytes) -> int:
    """Bytes of the ID3 tag that begins so; 0 if none does."""
    if not head.startswith(b"ID3"):
        return 0
    size = 0
    for byte in head[6:10]:
        size = size << 7 | byte & 0x7F
    return 10 + size


def frames_of(path: pathlib.Path) -> io.BytesIO | None:
    """What the decoder shall read of a file of layer III; None for another file.

    Its frames alone, behind one that tells their number.

    Raises:
      InputError: the file is cut off.
      OSError: it cannot be opened.
    """
    with open(path, "rb") as stream:
        head = stream.read(10)
        start = _tag_size(head)
        stream.seek(start)
        if frame_at(stream.read(4), 0) is None:
            return None
        stream.seek(0)
        data = stream.read()
    found = walk(data)
    count, promised = len(found.audio), sum(found.counts)
    # Some encoders count the frame that holds the number, too.
    if found.cut or promised > count + 1:
        raise InputError(f"{path}: the file is cut off; record or copy it again")
    if not found.audio:
        return None
    if found.counts == [count]:  # and what else it says, such as what the encoder put in front
        length = found.first
    else:
        length = _length_frame(data[found.audio[0][0] :][:4], count)
    return io.BytesIO(length + b"".join(data[start:end] for start, end in found.audio))


def _length_frame(head: bytes, count: int) -> bytes:
    """A frame without sound that promises `count` frames like the one with this header."""
    # Without a checksum, at a bit rate that leaves room, unpadded.
    header = bytes(
        [head[0], head[1] | 1, LENGTH_FRAME_RATE << 4 | head[2] & 0x0C | head[2] & 1, head[3]]
    )
    frame = frame_at(header, 0)
    assert frame is not None  # as the one it was made from
    content = header + bytes(frame.side - 4) + b"Info" + bytes([0, 0, 0, 1])
    return (content + count.to_bytes(4, "big")).ljust(frame.size, b"\0")
