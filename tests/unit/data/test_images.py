"""Every kind of picture becomes the right pixels, or is refused with the reason."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from gan_train.data.images import BadImage, Transform, decode, load_image
from tests.unit.data.pictures import encoded, noise

Pixels = NDArray[np.uint8]


def transform(resolution: int = 2, colour: str = "rgb", **changes: Any) -> Transform:
    settings = {"resize": "box", "crop": "centre", "background": "black", "max_pixels": 10_000}
    return Transform(resolution=resolution, colour=colour, **{**settings, **changes})


def pixels_of(data: bytes, wanted: Transform) -> Pixels:
    """uint8 [R, R, C] of what is stored."""
    channels = len(wanted.mode)
    return decode(load_image(data, wanted)[0], channels, wanted.resolution).transpose(1, 2, 0)


def png(
    width: int, height: int, depth: int, colour: int, rows: bytes, transparent: bytes = b""
) -> bytes:
    """A PNG of kinds that Pillow does not write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    if transparent:
        header += chunk(b"tRNS", transparent)
    body = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + body


@pytest.mark.parametrize(
    ("mode", "kind", "extension", "options"),
    [
        ("RGB", "PNG", "png", {}),
        ("L", "PNG", "png", {}),
        ("RGB", "JPEG", "jpg", {"quality": 90}),
        ("L", "JPEG", "jpg", {}),
        ("RGB", "WEBP", "webp", {"lossless": True}),
    ],
)
def test_what_is_already_right_keeps_its_bytes(
    mode: str, kind: str, extension: str, options: dict[str, Any]
) -> None:
    data = encoded(noise(0, mode=mode), kind, **options)
    wanted = transform(8, "grey" if mode == "L" else "rgb")
    assert load_image(data, wanted) == (data, extension)
    assert decode(data, len(wanted.mode), 8).shape == (len(wanted.mode), 8, 8)


@pytest.mark.parametrize(
    "data",
    [
        encoded(noise(0), "BMP"),  # not a format that shards hold
        encoded(noise(0, mode="L")),  # another colour mode
        encoded(noise(0, (8, 9))),  # another size
    ],
)
def test_what_is_not_becomes_png(data: bytes) -> None:
    stored, extension = load_image(data, transform(8))
    assert extension == "png" and stored != data
    assert Image.open(io.BytesIO(stored)).format == "PNG"


def test_grey_and_colour() -> None:
    red_green = Image.fromarray(np.array([[[255, 0, 0], [0, 255, 0]]] * 2, np.uint8))
    grey = pixels_of(encoded(red_green), transform(colour="grey"))
    assert grey[..., 0].tolist() == [[76, 150]] * 2  # ITU-R BT.601: 0.299 R, 0.587 G
    ramp = Image.fromarray(np.array([[0, 80], [160, 255]], np.uint8))
    assert pixels_of(encoded(ramp), transform())[..., 1].tolist() == [[0, 80], [160, 255]]


def test_one_bit() -> None:
    bits = Image.fromarray(np.array([[True, False], [False, True]]))
    assert bits.mode == "1"
    assert pixels_of(encoded(bits), transform())[..., 0].tolist() == [[255, 0], [0, 255]]


def palette_picture() -> Image.Image:
    image = Image.new("P", (2, 2))
    image.putpalette([10, 20, 30, 200, 100, 50, 0, 0, 255])
    image.putdata([0, 1, 2, 1])
    return image


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP"])
def test_palette(kind: str) -> None:
    assert pixels_of(encoded(palette_picture(), kind), transform()).reshape(-1, 3).tolist() == [
        [10, 20, 30],
        [200, 100, 50],
        [0, 0, 255],
        [200, 100, 50],
    ]


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
@pytest.mark.parametrize(("background", "shown"), [("black", 0), ("white", 255)])
def test_palette_with_a_transparent_colour(kind: str, background: str, shown: int) -> None:
    data = encoded(palette_picture(), kind, transparency=1)
    pixels = pixels_of(data, transform(background=background)).reshape(-1, 3)
    assert pixels.tolist() == [[10, 20, 30], [shown] * 3, [0, 0, 255], [shown] * 3]


def test_palette_with_translucent_colours() -> None:
    data = encoded(palette_picture(), transparency=bytes([255, 0, 128]))
    pixels = pixels_of(data, transform(background="white")).reshape(-1, 3)
    assert pixels[:2].tolist() == [[10, 20, 30], [255, 255, 255]]
    assert pixels[2].tolist() == [127, 127, 255]


@pytest.mark.parametrize(("background", "half"), [("black", 100), ("white", 227)])
def test_alpha_is_composited_before_anything_else(background: str, half: int) -> None:
    hidden = [255, 0, 255, 0]  # a colour that must not show, nor bleed in by resizing
    picture = np.array([[hidden, [200, 200, 200, 128]], [[9, 8, 7, 255], hidden]], np.uint8)
    pixels = pixels_of(encoded(Image.fromarray(picture)), transform(background=background))
    empty = 0 if background == "black" else 255
    assert pixels[0, 0].tolist() == [empty] * 3 and pixels[1, 0].tolist() == [9, 8, 7]
    assert abs(pixels[0, 1].astype(int) - half).max() <= 1
    wide = np.repeat(np.repeat(picture, 4, 0), 4, 1)
    wide[::2, :, 3] = 0
    small = pixels_of(encoded(Image.fromarray(wide)), transform(background=background))
    assert abs(small[0, 0].astype(int) - empty).max() == 0


def test_grey_with_alpha() -> None:
    picture = np.array([[[50, 255], [50, 0]], [[50, 128], [0, 255]]], np.uint8)
    image = Image.fromarray(picture)
    assert image.mode == "LA"
    pixels = pixels_of(encoded(image), transform(colour="grey", background="white"))[..., 0]
    assert pixels.tolist() == [[50, 255], [152, 0]]


def test_transparent_colour_of_an_opaque_picture_is_not_kept_as_it_is() -> None:
    image = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]] * 2, np.uint8))
    pixels = pixels_of(encoded(image, transparency=(4, 5, 6)), transform(background="white"))
    assert pixels[0].tolist() == [[1, 2, 3], [255, 255, 255]]


@pytest.mark.parametrize("kind", ["TIFF", "JPEG"])
def test_cmyk(kind: str) -> None:
    inks = {(0, 0, 0, 0): (255, 255, 255), (0, 255, 255, 0): (255, 0, 0), (0, 0, 0, 255): (0, 0, 0)}
    for ink, colour in inks.items():
        data = encoded(Image.new("CMYK", (8, 8), ink), kind)
        assert abs(pixels_of(data, transform(8)).astype(int) - colour).max() <= 2


SIXTEEN = np.array([[0, 257 * 100], [128, 65535]], np.uint16)  # clipping would show 255 thrice


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
@pytest.mark.parametrize("colour", ["grey", "rgb"])
def test_sixteen_bit_grey_is_scaled(kind: str, colour: str) -> None:
    data = encoded(Image.fromarray(SIXTEEN), kind)
    pixels = pixels_of(data, transform(colour=colour))
    assert pixels[..., 0].tolist() == [[0, 100], [0, 255]]
    assert (pixels == pixels[..., :1]).all()


def test_big_endian_sixteen_bit() -> None:
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in SIXTEEN)
    assert pixels_of(png(2, 2, 16, 0, rows), transform())[..., 0].tolist() == [[0, 100], [0, 255]]
    seen_through = png(2, 2, 16, 0, rows, transparent=struct.pack(">H", 257 * 100))
    on_white = pixels_of(seen_through, transform(background="white"))
    assert on_white[..., 0].tolist() == [[0, 255], [0, 255]]


def test_sixteen_bit_colour() -> None:
    row = np.array([[0, 257 * 100, 65535], [65535, 257 * 7, 0]], ">u2").tobytes()
    pixels = pixels_of(png(2, 2, 16, 2, (b"\0" + row) * 2), transform())
    assert pixels[0].tolist() == [[0, 100, 255], [255, 7, 0]]


@pytest.mark.parametrize(
    ("wide", "reason"),
    [
        (np.full((2, 2), 70_000, np.int32), "beyond 16 bits"),
        (np.full((2, 2), 0.5, np.float32), "floating-point"),
    ],
)
def test_numbers_without_a_white_are_refused(wide: NDArray[Any], reason: str) -> None:
    with pytest.raises(BadImage, match=reason):
        load_image(encoded(Image.fromarray(wide), "TIFF"), transform())


UPRIGHT = np.arange(0, 240, 20, np.uint8).reshape(3, 4)
TURNS = {  # orientation -> what a camera stored, by the EXIF 2.3 standard
    1: UPRIGHT,
    2: np.fliplr(UPRIGHT),
    3: np.rot90(UPRIGHT, 2),
    4: np.flipud(UPRIGHT),
    5: UPRIGHT.T,
    6: np.rot90(UPRIGHT, 1),  # is to be turned clockwise
    7: np.rot90(UPRIGHT, 2).T,
    8: np.rot90(UPRIGHT, -1),
}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_exif_orientation(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.ascontiguousarray(TURNS[orientation]))
    pixels = pixels_of(encoded(image, kind, exif=exif), transform(3, "grey"))[..., 0]
    assert pixels.tolist() == UPRIGHT[:, :3].tolist()  # the middle of 4 columns begins at 0


@pytest.mark.parametrize(("orientation", "kept"), [(1, True), (3, False)])
def test_a_turned_picture_is_not_kept_as_it_is(orientation: int, kept: bool) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(noise(0), "JPEG", exif=exif)
    assert (load_image(data, transform(8))[0] == data) is kept


def test_crop_policies() -> None:
    wide = Image.fromarray(np.array([[10, 20, 30, 40]] * 2, np.uint8))
    grey = transform(colour="grey")
    assert pixels_of(encoded(wide), grey)[..., 0].tolist() == [[20, 30]] * 2
    stretched = pixels_of(encoded(wide), transform(colour="grey", crop="stretch"))
    assert stretched[..., 0].tolist() == [[15, 35]] * 2
    padded = transform(4, "grey", crop="pad", background="white")
    bars, band = [255] * 4, [10, 20, 30, 40]
    assert pixels_of(encoded(wide), padded)[..., 0].tolist() == [bars, band, band, bars]


@pytest.mark.parametrize("crop", ["centre", "pad", "stretch"])
def test_extreme_shapes(crop: str) -> None:
    for size in ((1, 1), (300, 1), (1, 300)):
        assert pixels_of(encoded(noise(1, size)), transform(4, crop=crop)).shape == (4, 4, 3)


@pytest.mark.parametrize("name", ["box", "bilinear", "bicubic", "lanczos"])
def test_resize_filter(name: str) -> None:
    image = noise(2, (9, 9))
    expected = np.asarray(image.resize((4, 4), Image.Resampling[name.upper()]))
    assert (pixels_of(encoded(image), transform(4, resize=name)) == expected).all()


def test_animations_show_their_first_frame() -> None:
    first, second = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 255))
    for kind in ("GIF", "PNG", "WEBP"):
        data = encoded(first, kind, save_all=True, append_images=[second], duration=50)
        stored, _ = load_image(data, transform(8))
        assert stored != data  # the other frames are not carried along
        red = decode(stored, 3, 8)[:, 0, 0].astype(int)
        assert abs(red - [255, 0, 0]).max() <= 3, kind


def test_metadata_is_not_carried_along() -> None:
    data = encoded(noise(0, (9, 9)), icc_profile=b"profile", dpi=(300, 300))
    assert b"profile" not in load_image(data, transform(8))[0]
    assert Image.open(io.BytesIO(load_image(data, transform(8))[0])).info == {}


JPEG = encoded(noise(3, (64, 64)), "JPEG")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"# not a picture\n" * 10, "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "not an image"),
        (JPEG[: len(JPEG) // 2], "truncated"),
        (JPEG[:20], "not an image|truncated|damaged"),
        (encoded(noise(3, (64, 64)))[:2000], "truncated"),
        (encoded(noise(3, (64, 64)), "GIF")[:900], "truncated|damaged"),
        (png(101, 100, 8, 2, b""), "101x100 pixels, allowed are 10000"),  # before decoding
        (png(60_000, 60_000, 8, 2, b""), "decompression bomb"),
        (png(2, 2, 8, 2, b"\0" * 3), "truncated|damaged"),
    ],
)
def test_bad_files_are_refused(data: bytes, reason: str) -> None:
    with pytest.raises(BadImage, match=reason):
        load_image(data, transform())


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_truncated_picture_is_not_kept_as_it_is(kind: str) -> None:
    data = encoded(noise(3, (64, 64)), kind)
    assert load_image(data, transform(64))[0] == data
    with pytest.raises(BadImage):
        load_image(data[: len(data) // 2], transform(64))


def test_damage_never_escapes_as_another_error() -> None:
    """Flipped bytes give pixels or `BadImage`, nothing else, whatever the decoder raises."""
    rng = np.random.default_rng(0)
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "AVIF"):
        whole = encoded(noise(4, (16, 16)), kind)
        for _ in range(60):
            data = bytearray(whole)
            for place in rng.integers(0, len(data), 3):
                data[place] = rng.integers(256)
            try:
                assert load_image(bytes(data), transform())
            except BadImage as error:
                assert str(error)


def test_decode_takes_nothing_but_what_was_stored() -> None:
    for data in (encoded(noise(0, (9, 8))), encoded(noise(0, mode="L")), encoded(noise(0), "BMP")):
        with pytest.raises(BadImage):
            decode(data, 3, 8)
    with pytest.raises(BadImage, match="damaged"):
        decode(encoded(noise(0, (64, 64)))[:-40], 3, 64)
