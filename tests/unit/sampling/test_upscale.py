"""Upscaled picture files: every kind of file, and mistakes told before the work.

An untrained SRGAN with a skip makes what bicubic upsampling makes, so the answers are known.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageCms

from gan_train.adversary import Clock, ImageShape
from gan_train.config import Config
from gan_train.errors import UserError
from gan_train.images.resize import bicubic_upsample
from gan_train.runs import checkpoint
from gan_train.sampling.upscale import upscale_files
from tests.training import tiny_config

Bytes = NDArray[np.uint8]


def generator(folder: Path, channels: int = 3, scale: int = 2) -> Path:
    """A checkpoint's generator files, untrained."""
    tree = tiny_config(folder, folder).model_dump(mode="json")
    sizes = {"blocks": 1, "width": 2, "high_width": 2, "kernel": 3}
    tree["family"] = {
        "name": "srgan",
        "scale": scale,
        **sizes,
        "discriminator_width": 1,
    }
    config = Config.model_validate(tree)
    shape = ImageShape(channels, 32)
    torch.manual_seed(0)
    networks = config.family.build(shape, 4)
    state = {f"generator.{k}": v for k, v in networks.generator.state_dict().items()}  # type: ignore[union-attr, operator]
    folder.mkdir(exist_ok=True)
    checkpoint.save_generator(folder, state, config, shape, Clock())
    return folder


@pytest.fixture
def rgb(tmp_path: Path) -> Path:
    return generator(tmp_path / "rgb")


@pytest.fixture
def grey(tmp_path: Path) -> Path:
    return generator(tmp_path / "grey", channels=1)


def pixels(height: int, width: int, channels: int = 3) -> Bytes:
    """Smooth, with different channels."""
    y, x, c = np.mgrid[:height, :width, :channels]
    waves = np.sin(0.5 * x + c) + np.cos(0.3 * y - 2 * c)
    found: Bytes = (waves * 60 + 128).astype(np.uint8)
    return found[..., 0] if channels == 1 else found


def bicubic(plane: Bytes) -> Bytes:
    """Twice as large, of [H, W] or [H, W, C]."""
    planes = torch.from_numpy(plane.copy()).view(*plane.shape[:2], -1).permute(2, 0, 1)
    found: Bytes = bicubic_upsample(planes, 2).permute(1, 2, 0).numpy()
    return found[..., 0] if plane.ndim == 2 else found


def save(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def upscaled(folder: Path, file: Path, **options: int) -> Image.Image:
    """The result for one file, decoded."""
    (path,) = upscale_files(folder, [file], file.parent / "out", **options)
    assert path == file.parent / "out" / f"{file.stem}-x2.png"
    with Image.open(path) as image:
        assert image.format == "PNG"
        image.load()
    return image


def assert_near(image: Image.Image, expected: Bytes, atol: int = 1) -> None:
    found = np.asarray(image)
    assert found.shape == expected.shape and found.dtype == expected.dtype
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= atol


def test_colour_and_grey_stay_what_they_are(rgb: Path, tmp_path: Path) -> None:
    for height, width in ((9, 14), (1, 1), (2, 3)):
        colour, plane = pixels(height, width), pixels(height, width, 1)
        for what, mode in ((colour, "RGB"), (plane, "L")):
            file = save(Image.fromarray(what), tmp_path / f"{mode}-{height}.png")
            found = upscaled(rgb, file)
            assert found.mode == mode
            assert_near(found, bicubic(what))


def test_large_pictures_go_in_tiles(rgb: Path, tmp_path: Path) -> None:
    file = save(Image.fromarray(pixels(40, 33)), tmp_path / "a.png")
    assert_near(upscaled(rgb, file, tile=9), bicubic(pixels(40, 33)))


def test_a_network_for_grey_upscales_the_luma_of_colour(grey: Path, tmp_path: Path) -> None:
    plane = pixels(8, 9, 1)
    found = upscaled(grey, save(Image.fromarray(plane), tmp_path / "plane.png"))
    assert found.mode == "L"
    assert_near(found, bicubic(plane))
    colour = upscaled(grey, save(Image.fromarray(pixels(8, 9)), tmp_path / "colour.png"))
    assert colour.mode == "RGB"
    assert_near(colour, bicubic(pixels(8, 9)), atol=4)  # by way of 8-bit YCbCr


def test_alpha_is_upsampled_and_kept(rgb: Path, tmp_path: Path) -> None:
    rgba = pixels(7, 6, 4)
    rgba[0, 0, 3] = 0  # transparent, with a colour underneath that stays
    found = upscaled(rgb, save(Image.fromarray(rgba), tmp_path / "rgba.png"))
    assert found.mode == "RGBA"
    assert_near(found, bicubic(rgba))
    la = pixels(7, 6, 2)
    found = upscaled(rgb, save(Image.fromarray(la), tmp_path / "la.png"))
    assert found.mode == "LA"
    assert_near(found, bicubic(la))


def test_a_palette_becomes_colours(rgb: Path, tmp_path: Path) -> None:
    indexed = Image.fromarray((pixels(6, 8, 1) // 64).astype(np.uint8))
    indexed.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    colours = np.asarray(indexed.convert("RGB"))
    found = upscaled(rgb, save(indexed, tmp_path / "opaque.png"))
    assert found.mode == "RGB"
    assert_near(found, bicubic(colours))
    found = upscaled(rgb, save(indexed, tmp_path / "clear.gif", transparency=1))
    assert found.mode == "RGBA"
    alpha = np.where(np.asarray(indexed) == 1, 0, 255).astype(np.uint8)
    assert 0 in alpha and 255 in alpha
    assert_near(found.getchannel("A"), bicubic(alpha))


def test_pictures_are_turned_upright(rgb: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    for channels in (3, 4):
        what = pixels(5, 8, channels)
        file = save(Image.fromarray(what), tmp_path / f"turned{channels}.png", exif=exif)
        found = upscaled(rgb, file)
        assert_near(found, bicubic(np.rot90(what, -1)))
        assert 0x0112 not in found.getexif()


def test_sixteen_bits_become_eight(rgb: Path, tmp_path: Path) -> None:
    plane = pixels(5, 6, 1)
    file = save(Image.fromarray(plane.astype(np.uint16) * 257), tmp_path / "wide.png")
    found = upscaled(rgb, file)
    assert found.mode == "L"
    assert_near(found, bicubic(plane))


def test_what_the_colours_mean_is_kept(rgb: Path, tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    colour = Image.fromarray(pixels(4, 5))
    found = upscaled(rgb, save(colour, tmp_path / "a.png", icc_profile=profile))
    assert found.info["icc_profile"] == profile
    assert "icc_profile" not in upscaled(rgb, save(colour, tmp_path / "b.png")).info


def test_nothing_is_replaced_unasked(rgb: Path, tmp_path: Path) -> None:
    a = save(Image.fromarray(pixels(4, 5)), tmp_path / "a.png")
    b = save(Image.fromarray(pixels(4, 5)), tmp_path / "b.png")
    out = tmp_path / "out"
    (first,) = upscale_files(rgb, [b], out)
    first.write_bytes(b"mine")
    with pytest.raises(UserError, match=r"b-x2\.png exists; use --force"):
        upscale_files(rgb, [a, b], out)
    assert not (out / "a-x2.png").exists()  # told before any work
    assert first.read_bytes() == b"mine"
    upscale_files(rgb, [a, b], out, force=True)
    assert first.read_bytes() != b"mine"
    assert sorted(path.name for path in out.iterdir()) == ["a-x2.png", "b-x2.png"]


def test_mistakes_are_named(rgb: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    picture = save(Image.fromarray(pixels(4, 5)), tmp_path / "a.png")
    twin = save(Image.fromarray(pixels(4, 5)), tmp_path / "a.bmp")
    with pytest.raises(UserError, match=r"would both become .*a-x2\.png"):
        upscale_files(rgb, [picture, twin], out)
    with pytest.raises(UserError, match=r"none\.png: no such file"):
        upscale_files(rgb, [tmp_path / "none.png"], out)
    with pytest.raises(UserError, match="not folders"):
        upscale_files(rgb, [tmp_path], out)
    with pytest.raises(UserError, match="no pictures were named"):
        upscale_files(rgb, [], out)
    with pytest.raises(UserError, match="--tile 0"):
        upscale_files(rgb, [picture], out, tile=0)
    broken = tmp_path / "broken.png"
    for data in (b"", b"text", picture.read_bytes()[:60]):
        broken.write_bytes(data)
        with pytest.raises(UserError, match=r"broken\.png is no picture that can be read"):
            upscale_files(rgb, [broken], out)
    assert not out.exists()


def test_only_generators_that_upscale(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, tmp_path)
    shape = ImageShape(1, 8, ("a", "b"))
    networks = config.family.build(shape, 4)
    state = {f"generator.{k}": v for k, v in networks.generator.state_dict().items()}  # type: ignore[union-attr, operator]
    checkpoint.save_generator(tmp_path, state, config, shape, Clock())
    picture = save(Image.fromarray(pixels(4, 5)), tmp_path / "a.png")
    with pytest.raises(UserError, match="a generator of progan, which makes no pictures larger"):
        upscale_files(tmp_path, [picture], tmp_path / "out")
