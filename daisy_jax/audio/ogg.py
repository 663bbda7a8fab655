"""Ogg: whether a file ends where its last page says that it does.

libsndfile's decoders differ in what they say of a stream that ends too early, and some say the same
of rubbish behind a whole one.

Source: RFC 3533, section 6 (the header of a page).
"""

import os
import pathlib

HEADER = 27
"""Bytes of a page's header, whose last one counts the segments."""
LAST_PAGE = 4
"""The flag of a stream's end."""


def is_cut_off(path: pathlib.Path) -> bool:
    """Whether a page is not there as a whole, or the last one is not the end of its stream.

    False for other files than Ogg.
    """
    size, ended = path.stat().st_size, None
    with open(path, "rb") as stream:
        while (header := stream.read(HEADER)).startswith(b"OggS"):
            if len(header) < HEADER:
                return True
            table = stream.read(header[-1])
            if len(table) < header[-1] or stream.seek(sum(table), os.SEEK_CUR) > size:
                return True
            ended = bool(header[5] & LAST_PAGE)
    return ended is False
