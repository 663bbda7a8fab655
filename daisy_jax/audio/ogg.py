"""Ogg: whether a file ends where its last page says that it does.

libsndfile's decoders differ in what they say of a stream that ends too early, and some say the same
of rubbish behind a whole one.

Source: RFC 3533, section 6 (the header of a page).
"""

import mmap
import pathlib

HEADER = 27
"""Bytes of a page's header, whose last one counts the segments."""
LAST_PAGE = 4
"""The flag of a stream's end."""


def is_cut_off(path: pathlib.Path) -> bool:
    """Whether a page is not there as a whole, or the last one is not the end of its stream.

    False for other files than Ogg.
    """
    with open(path, "rb") as stream:
        if stream.read(4) != b"OggS":
            return False
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            position, ended = 0, False
            while content[position : position + 4] == b"OggS":
                header = content[position : position + HEADER]
                if len(header) < HEADER:
                    return True
                body = position + HEADER + header[-1]
                position = body + sum(content[position + HEADER : body])
                if position > len(content):
                    return True
                ended = bool(header[5] & LAST_PAGE)
            return not ended
