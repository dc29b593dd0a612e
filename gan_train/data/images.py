"""Turns an image file into the square image that is stored, or refuses it with a reason.

All functions are pure, from bytes to bytes or arrays. They work in this order: a file that is too
large is refused; the image is decoded, turned upright (EXIF), laid over the background where it is
transparent, and converted to 8 bits and to the colours asked for; then it is made square and
resized.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from gan_train.config import DataConfig, Resize
from gan_train.data.png import decode_plain
from gan_train.images.pixels import from_picture

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
"""The formats that are decoded. Pillow knows others, but some (EPS) make it start programs."""

_STORED = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}
_FILTERS: dict[Resize, Image.Resampling] = {
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
DAMAGE = (
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, ArithmeticError),
    *(struct.error, zlib.error, RuntimeError),  # the last from AVIF
    Image.DecompressionBombError,  # a plain Exception
    Warning,  # of odd metadata, where a process has made warnings errors
)
"""The errors that Pillow's decoders raise on damaged and hostile files."""
_UPRIGHT = 1
_ORIENTATION = 0x0112


class BadImage(Exception):
    """A file that gives no image; the text is the reason, for the quarantine report."""


@dataclass(frozen=True)
class Transform:
    """The settings on which the stored pixels depend, named like the keys of `DataConfig`."""

    resolution: int
    colour: Literal["grey", "rgb"]
    resize: Resize
    crop: Literal["centre", "pad", "stretch"]
    background: Literal["black", "white"]
    max_pixels: int

    @staticmethod
    def of(config: DataConfig) -> Transform:
        """The transform that a configuration asks for."""
        return Transform(
            config.resolution,
            config.colour,
            config.resize,
            config.crop,
            config.background,
            config.max_pixels,
        )

    @property
    def mode(self) -> Literal["L", "RGB"]:
        """Pillow's name for the colours."""
        return "L" if self.colour == "grey" else "RGB"

    @property
    def max_bytes(self) -> int:
        """The largest size of a file that is opened, in bytes: 4 uncompressed channels of 16 bits,
        and a header."""
        return 8 * self.max_pixels + (1 << 20)


def load_image(data: bytes, transform: Transform) -> tuple[bytes, str]:
    """The file to store and its extension (png, jpg or webp).

    An image that already fits the transform keeps its original bytes; any other becomes a PNG. An
    animation gives its first frame. Raises `BadImage` for a file that is empty, no image, larger
    than `max_pixels` (before it is decoded), truncated or damaged, and for pixels without a defined
    white (floats, and integers beyond 16 bits).
    """
    side = transform.resolution
    plain = side * side <= transform.max_pixels and len(data) <= transform.max_bytes
    if plain and decode_plain(data, len(transform.mode), side) is not None:
        return data, "png"
    with _damage_named():
        image = _opened(data, transform)
        kept = _kept_as_it_is(image, transform)
        square = None if kept else _square(_flat(image, transform), transform)
    if kept:
        return data, kept
    assert square is not None and square.size == (transform.resolution,) * 2
    file = io.BytesIO()
    Image.fromarray(np.asarray(square)).save(file, "PNG", compress_level=1)  # no metadata
    return file.getvalue(), "png"


def decode(data: bytes, channels: int, resolution: int) -> NDArray[np.uint8]:
    """The image uint8 [C, R, R] in a stored file. Raises `BadImage` if it has any other shape or
    type."""
    plain = decode_plain(data, channels, resolution)
    if plain is not None:
        return plain.transpose(2, 0, 1)
    try:
        with Image.open(io.BytesIO(data), formats=tuple(_STORED)) as image:
            if image.size != (resolution, resolution):  # before its pixels take memory
                raise BadImage(f"{image.size} pixels where {resolution} squared were stored")
            pixels = np.asarray(image)
    except DAMAGE as error:
        raise BadImage(f"damaged: {error}") from error
    expected = (resolution, resolution) if channels == 1 else (resolution, resolution, channels)
    if pixels.shape != expected or pixels.dtype != np.uint8:
        raise BadImage(f"{pixels.dtype} {pixels.shape} where uint8 {expected} was stored")
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _kept_as_it_is(image: Image.Image, transform: Transform) -> str | None:
    """The extension under which the original bytes can be stored; None if they cannot."""
    fits = (
        image.format in _STORED
        and image.size == (transform.resolution, transform.resolution)
        and image.mode == transform.mode
        and not image.has_transparency_data
        and getattr(image, "n_frames", 1) == 1
        and image.getexif().get(_ORIENTATION, _UPRIGHT) == _UPRIGHT
    )
    return _STORED[image.format] if fits and image.format else None


def open_picture(
    data: bytes,
    channels: int,
    background: Literal["black", "white"] = "white",
    max_pixels: int = 100_000_000,
) -> Tensor:
    """A user's picture file at its own size as uint8 [C, H, W]: upright, opaque, grey or RGB.

    Raises `BadImage` for a file that is no image, damaged, or larger than `max_pixels`.
    """
    colour: Literal["grey", "rgb"] = "grey" if channels == 1 else "rgb"
    transform = Transform(1, colour, "lanczos", "centre", background, max_pixels)
    with _damage_named():
        return from_picture(_flat(_opened(data, transform), transform)).contiguous()


@contextmanager
def _damage_named() -> Iterator[None]:
    """Turn whatever a decoder raises into a `BadImage` that says what is wrong."""
    with warnings.catch_warnings():
        # Pillow warns of large images, whose size is checked here, and of odd metadata
        warnings.simplefilter("ignore")
        try:
            yield
        except UnidentifiedImageError as error:
            raise BadImage("not an image") from error
        except Image.DecompressionBombError as error:
            raise BadImage(str(error)) from error
        except DAMAGE as error:
            raise BadImage(f"damaged: {error}") from error


def _opened(data: bytes, transform: Transform) -> Image.Image:
    """The decoded image. Raises `BadImage` before decoding if the image is too large."""
    if not data:
        raise BadImage("empty file")
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    if image.width * image.height > transform.max_pixels:
        size = f"{image.width}x{image.height}"
        raise BadImage(f"{size} pixels, allowed are {transform.max_pixels}")
    image.load()
    return image


def _flat(image: Image.Image, transform: Transform) -> Image.Image:
    """The image upright, opaque and with 8 bits, in the colours asked for."""
    turned = image.getexif().get(_ORIENTATION, _UPRIGHT) != _UPRIGHT
    upright = ImageOps.exif_transpose(image) if turned else image
    if upright.mode.startswith(("I", "F")):
        grey = _eight_bits(upright, transform)
        return grey.convert(transform.mode)
    if upright.has_transparency_data:
        colour = upright.convert("RGBA")
        canvas = Image.new("RGBA", colour.size, transform.background)
        return Image.alpha_composite(canvas, colour).convert("RGB").convert(transform.mode)
    # palette, CMYK and YCbCr images become RGB first, so that their grey is made of true colours
    opaque = upright if upright.mode in ("1", "L") else _in_mode(upright, "RGB")
    return _in_mode(opaque, transform.mode)


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    return image if image.mode == mode else image.convert(mode)


def _eight_bits(image: Image.Image, transform: Transform) -> Image.Image:
    """Convert 16-bit grey, whose white is 65535, to 8 bits. (Pillow's own conversion would clip it
    at 255.)"""
    wide = np.asarray(image)
    if wide.dtype.kind == "f":
        raise BadImage("floating-point pixels have no defined white")
    if wide.min() < 0 or wide.max() > 0xFFFF:
        raise BadImage("integer pixels beyond 16 bits have no defined white")
    grey = ((wide.astype(np.uint32) * 255 + 0x7FFF) // 0xFFFF).astype(np.uint8)
    if (transparent := image.info.get("transparency")) is not None:
        grey[wide == transparent] = 0 if transform.background == "black" else 255
    return Image.fromarray(grey)


def _square(image: Image.Image, transform: Transform) -> Image.Image:
    """The image at R x R pixels, made square by cropping, padding or stretching. Pixels that need
    no resize stay as they are."""
    side, method = transform.resolution, _FILTERS[transform.resize]
    width, height = image.size
    if transform.crop == "stretch":
        return _resized(image, (side, side), method)
    if transform.crop == "centre":
        edge = min(width, height)
        if width == height:
            return _resized(image, (side, side), method)
        left, top = (width - edge) // 2, (height - edge) // 2
        middle = image.crop((left, top, left + edge, top + edge))
        return _resized(middle, (side, side), method)
    scale = side / max(width, height)
    inner = max(1, round(width * scale)), max(1, round(height * scale))
    canvas = Image.new(image.mode, (side, side), transform.background)
    canvas.paste(_resized(image, inner, method), ((side - inner[0]) // 2, (side - inner[1]) // 2))
    return canvas


def _resized(image: Image.Image, size: tuple[int, int], method: Image.Resampling) -> Image.Image:
    return image if image.size == size else image.resize(size, method)
