"""Mutated pictures of every format: pixels, or `BadImage`; and what is stored can be read again."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, features

from gan_train.data.images import BadImage, Transform, decode, load_image, open_picture
from tests.fuzz.runner import Target, main
from tests.unit.data.pictures import encoded, noise

SIDE, MOST = 16, 100_000
_RGB = Transform(SIDE, "rgb", "box", "pad", "white", MOST)
_GREY = Transform(SIDE, "grey", "box", "centre", "black", MOST)


def _exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    return exif


def seeds() -> list[bytes]:
    """Small files of every format and mode that sources have."""
    grey, rgb, alpha = (noise(number, (SIDE, SIDE), mode) for number, mode in enumerate(MODES))
    wide = Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16) * 257)
    kinds: list[tuple[Image.Image, str, dict[str, Any]]] = [
        *((rgb, kind, {}) for kind in KINDS),
        *((grey, kind, {}) for kind in ("PNG", "JPEG", "TIFF", "PPM", "BMP")),
        *((alpha, kind, {}) for kind in ("PNG", "WEBP", "TIFF", "GIF", "JPEG2000", "AVIF")),
        *((wide, kind, {}) for kind in ("PNG", "TIFF", "PPM")),
        *((rgb.convert("P"), kind, {"transparency": 3}) for kind in ("PNG", "GIF")),
        *((rgb.convert("CMYK"), kind, {}) for kind in ("JPEG", "TIFF")),
        *((rgb.convert("1"), kind, {}) for kind in ("PNG", "TIFF", "PPM", "BMP")),
        *((rgb, kind, {"exif": _exif()}) for kind in ("PNG", "JPEG", "TIFF", "WEBP", "AVIF")),
        *((rgb, "TIFF", {"compression": packed}) for packed in PACKED),
        (rgb, "JPEG", {"progressive": True, "icc_profile": b"profile" * 9}),
        (rgb, "WEBP", {"lossless": True}),
        (grey.resize((40, 3)), "PNG", {}),
    ]
    for kind in ("GIF", "PNG", "WEBP", "TIFF", "AVIF"):
        kinds.append((rgb, kind, {"save_all": True, "append_images": [noise(7, (SIDE, SIDE))]}))
    return [encoded(image, kind, **options) for image, kind, options in kinds]


MODES = ("L", "RGB", "RGBA")
KINDS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
PACKED = ("tiff_lzw", "tiff_deflate", "packbits", "jpeg")
TOKENS = (
    *(b"IHDR", b"IDAT", b"IEND", b"tRNS", b"PLTE", b"iCCP", b"zTXt", b"eXIf", b"acTL", b"fdAT"),
    *(b"\xff\xd8", b"\xff\xe1", b"\xff\xe2", b"\xff\xc0", b"\xff\xc2", b"\xff\xda", b"\xff\xd9"),
    *(b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANMF", b"RIFF", b"WEBP", b"Exif\0\0MM\0*", b"II*\0"),
    *(b"jP  ", b"ihdr", b"colr", b"jp2c", b"ftyp", b"avif", b"meta", b"ispe", b"iloc", b"mdat"),
    *(b"GIF89a", b"!\xf9\x04", b"!\xff\x0bNETSCAPE2.0", b"P6 99999 99999 255 ", b"P7 ", b"BM"),
    *(b"MPF\0", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"MM\0*", b"II+\0\x08\0\0\0"),
)


ALLOWED = (BadImage,)


def target(_: Path) -> Target:
    """The target, for which no folder is needed."""
    return read


def read(data: bytes) -> None:
    """Everything that is done with a picture of a user's or of a shard."""
    with suppress(BadImage):
        assert open_picture(data, 3, max_pixels=MOST).numel() <= 3 * MOST
    with suppress(BadImage):
        assert decode(data, 3, SIDE).shape == (3, SIDE, SIDE)
    for transform in (_GREY, _RGB):
        stored, _ = load_image(data, transform)
        try:
            decode(stored, len(transform.mode), SIDE)
        except BadImage as error:
            raise AssertionError("what is stored cannot be read") from error


if __name__ == "__main__":
    assert features.check("avif") and features.check("webp") and features.check("jpg_2000")
    sys.exit(main("pictures", read, seeds(), ALLOWED, TOKENS))
