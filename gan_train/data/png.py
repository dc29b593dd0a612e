"""Decodes the plain PNGs that make up most data sets, without what Pillow does to recognise a file.

For a small image Pillow's `Image.open` and what follows it take as long as the pixels. A PNG of 8
bits in grey or RGB, not interlaced, needs only its compressed data, which Pillow's decoder takes
without a file around them. Any other file is left to Pillow as a whole.
"""

from __future__ import annotations

import struct
import zlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MODES = {1: ("L", 0), 3: ("RGB", 2)}  # Pillow's name, and PNG's number, for the colours
_HARMLESS = {b"gAMA", b"cHRM", b"sRGB", b"sBIT", b"pHYs", b"tIME", b"bKGD"}
"""Chunks on which neither pixels nor the way up depend, and which make no animation."""


@lru_cache(maxsize=8)
def _beginning(channels: int, resolution: int) -> bytes:
    """The first 33 bytes of a plain PNG of this shape: the signature and the first chunk."""
    shape = struct.pack(">IIBBBBB", resolution, resolution, 8, _MODES[channels][1], 0, 0, 0)
    chunk = b"IHDR" + shape
    return _SIGNATURE + struct.pack(">I", len(shape)) + chunk + struct.pack(">I", zlib.crc32(chunk))


def decode_plain(data: bytes, channels: int, resolution: int) -> NDArray[np.uint8] | None:
    """The pixels uint8 [R, R, C] of a plain PNG of that shape, as Pillow decodes them. None for any
    other file, and for one that is damaged."""
    beginning = _beginning(channels, resolution)
    if not data.startswith(beginning):
        return None
    parts, at = [], len(beginning)
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"IDAT":
            parts.append(data[at + 8 : at + 8 + length])
        elif kind == b"IEND":
            break
        elif kind not in _HARMLESS or not _whole(data, at, length):
            return None
        at += 12 + length
    else:
        return None
    mode, side = _MODES[channels][0], resolution
    try:
        image = Image.frombytes(mode, (side, side), b"".join(parts), "zip", mode)
    except (ValueError, OSError):
        return None
    return np.frombuffer(image.tobytes(), np.uint8).reshape(side, side, channels)


def _whole(data: bytes, at: int, length: int) -> bool:
    """Whether the chunk at byte `at` has the checksum that stands behind it."""
    end = at + 8 + length
    return data[end : end + 4] == struct.pack(">I", zlib.crc32(data[at + 4 : end]))
