"""Plain PNGs have the pixels that Pillow gives; all other files are left to Pillow."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from gan_train.data.png import decode_plain
from tests.unit.data.pictures import encoded, noise


def with_chunk(data: bytes, name: bytes, content: bytes, *, broken: bool = False) -> bytes:
    """The PNG with one more chunk behind the first."""
    checksum = zlib.crc32(name + content) ^ broken
    chunk = struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)
    return data[:33] + chunk + data[33:]


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("side", [1, 8, 33])
@pytest.mark.parametrize("level", [0, 1, 9])
def test_pixels_are_those_of_pillow(mode: str, side: int, level: int) -> None:
    channels = len(mode)
    ramp = Image.linear_gradient("L").resize((side, side)).convert(mode)
    for image in (noise(side, (side, side), mode), ramp):
        data = encoded(image, compress_level=level)
        pixels = decode_plain(data, channels, side)
        assert pixels is not None and pixels.dtype == np.uint8
        assert (pixels == np.asarray(image).reshape(side, side, channels)).all()


def test_several_chunks_of_pixels_are_one_stream() -> None:
    image = noise(1, (200, 200))
    data = encoded(image, compress_level=0)
    assert data.count(b"IDAT") > 1
    pixels = decode_plain(data, 3, 200)
    assert pixels is not None and (pixels == np.asarray(image)).all()


def test_chunks_that_change_no_pixel_are_passed_over() -> None:
    image = noise(2)
    data = with_chunk(encoded(image), b"gAMA", struct.pack(">I", 45455))
    pixels = decode_plain(data, 3, 8)
    assert pixels is not None and (pixels == np.asarray(Image.open(io.BytesIO(data)))).all()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(noise(3), exif=exif)


def described() -> bytes:
    text = PngInfo()
    text.add_text("Raw profile type exif", "could turn the picture")
    return encoded(noise(3), pnginfo=text)


@pytest.mark.parametrize(
    "data",
    [
        encoded(noise(3, (8, 9))),
        encoded(noise(3, mode="L")),
        encoded(noise(3, mode="RGBA")),
        encoded(noise(3).convert("P")),
        encoded(noise(3), "JPEG"),
        encoded(noise(3), save_all=True, append_images=[noise(4)]),
        encoded(noise(3), transparency=(1, 2, 3)),
        turned(),
        described(),
        with_chunk(encoded(noise(3)), b"gAMA", struct.pack(">I", 45455), broken=True),
        with_chunk(encoded(noise(3)), b"QQQQ", b"a chunk that decoders must know"),
        b"",
    ],
)
def test_other_files_are_left_to_pillow(data: bytes) -> None:
    assert decode_plain(data, 3, 8) is None


def test_damaged_files_are_left_to_pillow() -> None:
    data = encoded(noise(5))
    assert decode_plain(data, 3, 8) is not None
    assert decode_plain(data[:-12], 3, 8) is None  # without its end
    assert decode_plain(data[:80], 3, 8) is None
    assert decode_plain(data.replace(b"IDAT", b"IDAU"), 3, 8) is None
    start = data.index(b"IDAT") + 4
    assert decode_plain(data[:start] + bytes(40) + data[start + 40 :], 3, 8) is None
    interlaced = bytearray(data)
    interlaced[28] = 1
    assert decode_plain(bytes(interlaced), 3, 8) is None
