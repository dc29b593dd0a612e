"""A source with everything that is odd, broken or hostile: right pixels, or quarantine with the
reason, from a folder, a zip and a tar."""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gan_train.data.index import Index
from gan_train.data.loader import read_images
from gan_train.data.sharding import shard
from gan_train.errors import UserError
from tests.unit.data.pictures import config, encoded, write_folder, write_zip
from tests.unit.data.test_images import png
from tests.unit.data.test_sources import write_tar

SIDE = 4
PICTURE = np.arange(0, 160, 10, np.uint8).reshape(SIDE, SIDE)  # grey levels
GREY, HUGE = Image.fromarray(PICTURE), struct.pack(">HH", 65535, 65535)
NOT_UTF_8 = os.fsdecode(b"\xff\xfe.png")


def turned(orientation: int) -> bytes:
    """A file whose pixels lie as a camera of that EXIF orientation stores `PICTURE`."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    lying = PICTURE.T if orientation in (5, 7) else PICTURE
    turns = {3: 2, 6: 1, 7: 2, 8: 3}.get(orientation, 0)  # by 90 degrees to the left
    lying = np.rot90(lying, turns)
    lying = {2: np.fliplr, 4: np.flipud}.get(orientation, np.asarray)(lying)
    return encoded(Image.fromarray(np.ascontiguousarray(lying)), exif=exif)


def right() -> dict[str, bytes]:
    """Files that all show `PICTURE`, of every kind that keeps grey levels as they are."""
    rgb, wide = GREY.convert("RGB"), Image.fromarray(PICTURE.astype(np.uint16) * 257)
    ink = Image.merge("CMYK", (*[Image.new("L", GREY.size)] * 3, Image.fromarray(255 - PICTURE)))
    kinds = {
        **{f"rgb.{kind}": encoded(rgb, kind) for kind in ("png", "bmp", "tiff", "ppm")},
        "cmyk.tif": encoded(ink, "TIFF"),
        "palette.png": encoded(GREY.convert("P")),
        "palette.gif": encoded(GREY.convert("P"), "GIF"),
        "wide.png": encoded(wide),
        "wide.tif": encoded(wide, "TIFF"),
        "alpha.png": encoded(GREY.convert("RGBA")),
        "lossless.webp": encoded(rgb, "WEBP", lossless=True),
        "whole.jp2": encoded(rgb, "JPEG2000"),
        "moves.gif": encoded(GREY, "GIF", save_all=True, append_images=[Image.new("L", (4, 4))]),
        **{f"turned.{number}.png": turned(number) for number in range(1, 9)},
    }
    names = {
        "my.cat.v1.2.png": kinds["rgb.png"],
        "same.png": kinds["rgb.png"],  # the very file before, and its name in other letters,
        "SAME.png": kinds["rgb.png"],  # with another ending, and in another folder
        "same.bmp": kinds["rgb.bmp"],
        "deeper/same.png": kinds["rgb.png"],
        "spaces and ünïcödé 猫.png": kinds["rgb.png"],
        f"{'l' * 150}/{'o' * 150}.png": kinds["rgb.png"],  # 300 characters
    }
    return {**kinds, **names}


def patched(data: bytes, *after: bytes, size: bytes) -> bytes:
    """The file with its size replaced where it stands behind `after`."""
    for mark in after:
        place = data.index(mark) + len(mark)
        data = data[:place] + size + data[place + len(size) :]
    return data


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def bombs() -> dict[str, bytes]:
    """Small files that say they have millions of pixels, or unpack to millions of bytes."""
    grey, large = encoded(GREY, "JPEG2000"), struct.pack(">II", 1 << 16, 1 << 16)
    tiff = encoded(GREY, "TIFF")
    for tag in (256, 257):
        tiff = patched(tiff, struct.pack("<HHI", tag, 4, 1), size=struct.pack("<I", 1 << 16))
    words = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(16 << 20)))
    plain = encoded(GREY)
    return {
        "bomb.png": png(1 << 16, 1 << 16, 8, 2, b""),
        "words.png": plain[:33] + words + plain[33:],
        "bomb.jpg": patched(encoded(GREY, "JPEG"), b"\xff\xc0\0\x0b\x08", size=HUGE),
        "bomb.gif": patched(encoded(GREY, "GIF"), b"GIF87a", size=HUGE),
        "bomb.bmp": patched(
            encoded(GREY, "BMP"), struct.pack("<I", 40), size=struct.pack("<ii", 1 << 16, 1 << 16)
        ),
        "bomb.tif": tiff,
        "bomb.ppm": b"P6\n65536 65536\n255\n",
        "bomb.webp": patched(encoded(GREY, "WEBP"), b"\x9d\x01\x2a", size=b"\xff\x3f\xff\x3f"),
        "bomb.jp2": patched(grey, b"ihdr", size=large),
        "bomb.avif": patched(encoded(GREY, "AVIF"), b"ispe\0\0\0\0", size=large),
    }


def wrong() -> dict[str, tuple[bytes, str]]:
    """Files that give no picture, and the reason that the quarantine has."""
    cut = {
        f"cut.{kind}": (encoded(Image.effect_noise((64, 64), 50), name)[:-1500], "")
        for kind, name in (
            *(("png", "PNG"), ("jpg", "JPEG"), ("gif", "GIF"), ("tif", "TIFF"), ("bmp", "BMP")),
            *(("ppm", "PPM"), ("webp", "WEBP"), ("jp2", "JPEG2000"), ("avif", "AVIF")),
        )
    }
    return {
        **{name: (data, "") for name, data in bombs().items()},
        **cut,
        "zero.png": (b"", "empty file"),
        "page.jpg": (b"<!DOCTYPE html><html><body>404</body></html>", "not an image"),
        "script.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "not an image"),
        "float.tif": (encoded(GREY.convert("F"), "TIFF"), "floating-point"),
        "notes.txt": (b"hello", "not an image by its name"),
    }


def tree(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if not path.is_dir()}


@pytest.mark.fault(
    "a source with bombs of every format, cut, empty and HTML files, with CMYK, palette, 16-bit, "
    "alpha, EXIF 1-8, animated, tiny and long pictures, with twins and with dotted, non-UTF-8, "
    "colliding and 300-character names, as folder, zip and tar",
    "right pixels, or quarantine with the reason; no file outside of the data set's folders",
)
@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_right_pixels_or_a_reason(
    kind: str, tmp_path: Path, record_property: pytest.RecordProperty
) -> None:
    good, bad = right(), wrong()
    odd = {
        "tiny.png": encoded(Image.new("L", (1, 1), 7)),
        "long.png": encoded(Image.new("L", (900, 1), 7)),
    }
    files = {**good, **odd, **{name: data for name, (data, _) in bad.items()}}
    if kind != "zip":  # the bytes of names in a zip are characters of code page 437
        files[NOT_UTF_8] = good["rgb.png"]
        bad["\\xff\\xfe.png"] = b"", "its name is not UTF-8"
    write: Callable[[Path, dict[str, bytes]], Path]
    write = {"folder": write_folder, "zip": write_zip, "tar": write_tar}[kind]
    source = write(tmp_path / f"source.{kind}", files)
    before = tree(tmp_path)
    settings = {"resolution": SIDE, "classes": "none", "max_bad_fraction": 0.9}
    directory = shard(config(source, **settings), tmp_path / "workspace")
    assert all(path.is_relative_to(tmp_path / "workspace") for path in tree(tmp_path) - before)

    report = json.loads((directory / "quarantine.json").read_bytes())
    reasons = {entry["path"]: entry["reason"] for entry in report["quarantine"]}
    assert set(reasons) == set(bad)
    assert all(reasons[name] and reason in reasons[name] for name, (_, reason) in bad.items())
    assert (report["quarantined"], report["files"]) == (len(bad), len(files))
    index = Index.load(directory)
    assert index.samples == len(good) + len(odd)
    manifest = (directory / "manifest.jsonl").read_text().splitlines()
    paths = [json.loads(line)["path"] for line in manifest]
    images, _ = read_images(index, directory, 0, index.samples)
    for path, image in zip(paths, images.numpy(), strict=True):
        expected = np.full_like(PICTURE, 7) if path in odd else PICTURE
        assert (image == expected).all(), path
    record_property("lost", f"{len(bad)} of {len(files)} files, each with its reason")


@pytest.mark.fault(
    "links in a folder that lead in circles",
    "the source is refused, and the link named",
)
def test_links_that_lead_in_circles_are_refused(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "root", {"a/1.png": encoded(GREY)})
    (root / "loop.png").symlink_to("loop.png")
    with pytest.raises(UserError, match=r"loop\.png: a broken link"):
        shard(config(root), tmp_path / "w")
    (root / "loop.png").unlink()
    (root / "a" / "up").symlink_to(root)
    with pytest.raises(UserError, match=r"a/up: a link to a folder"):
        shard(config(root), tmp_path / "w")
