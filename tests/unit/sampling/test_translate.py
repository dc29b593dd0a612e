"""Picture files through a translator: sizes, colours, names, and what is refused."""

from __future__ import annotations

import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from gan_train.adversary import Clock, ImageShape
from gan_train.config import Config
from gan_train.errors import UserError
from gan_train.inference import Generator
from gan_train.runs.checkpoint import save_generator
from gan_train.sampling import translate
from gan_train.sampling.translate import translate_files
from tests.training import tiny_config

CYCLEGAN = {
    "name": "cyclegan",
    "width": 4,
    "blocks": 1,
    "discriminator_width": 4,
    "discriminator_layers": 1,
    "halvings": 1,
}


def saved(folder: Path, family: dict[str, object], channels: int = 3) -> Path:
    """A generator with random weights, as a checkpoint holds it."""
    tree = tiny_config(Path("none"), folder).model_dump(mode="json")
    config = Config.model_validate(tree | {"family": family})
    shape = ImageShape(channels, 16)
    torch.manual_seed(4)
    adversary = config.family.build(shape, 4)
    folder.mkdir(parents=True)
    averaged = {
        f"{name}.{key}": value
        for name in adversary.averaged
        for key, value in getattr(adversary, name).state_dict().items()
    }
    save_generator(folder, averaged, config, shape, Clock())
    return folder


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    return saved(tmp_path / "colours", CYCLEGAN)


@pytest.fixture
def glyph(glyphs: Path, tmp_path: Path) -> Path:
    """A real grey picture of 32x32 pixels."""
    with zipfile.ZipFile(glyphs) as archive:
        name = min(name for name in archive.namelist() if name.endswith(".png"))
        (tmp_path / "glyph.png").write_bytes(archive.read(name))
    return tmp_path / "glyph.png"


def picture(path: Path, width: int, height: int, mode: str = "RGB") -> Path:
    """A smooth picture with a bright corner, so that turning it shows."""
    y, x = np.mgrid[:height, :width]
    planes = [x * 255 // width, y * 255 // height, (x + y) % 256]
    image = Image.fromarray(np.stack(planes, axis=-1).astype(np.uint8))
    image.paste((255, 255, 255), (0, 0, 4, 3))
    image.convert(mode).save(path)
    return path


def expected(folder: Path, pixels: Tensor, to: str) -> Tensor:
    """uint8 [C, H, W] by the network itself, from uint8 [C, H, W]."""
    adversary = Generator.load(folder).adversary
    network = adversary.generator_ab if to == "B" else adversary.generator_ba
    image = network(pixels[None].float() / 127.5 - 1)[0]
    return (image * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def read(path: Path) -> Tensor:
    with Image.open(path) as image:
        assert image.format == "PNG"
        pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


@pytest.mark.parametrize("to", ["A", "B"])
def test_pictures_are_translated_at_their_own_size(colours: Path, tmp_path: Path, to: str) -> None:
    wide, tall = picture(tmp_path / "wide.bmp", 40, 18), picture(tmp_path / "tall.png", 12, 30)
    out = tmp_path / "deep" / "out"
    written = translate_files(colours, [wide, tall], to, out)
    assert written == [out / f"wide-to-{to}.png", out / f"tall-to-{to}.png"]
    assert sorted(out.iterdir()) == sorted(written)  # nothing is left aside
    for source, result in zip((wide, tall), written, strict=True):
        pixels = torch.from_numpy(np.array(Image.open(source))).permute(2, 0, 1)
        torch.testing.assert_close(read(result), expected(colours, pixels, to), rtol=0, atol=1)


def test_grey_pictures_and_grey_generators(colours: Path, glyph: Path, tmp_path: Path) -> None:
    """A grey picture is repeated for a generator of colours; a colour picture becomes grey for one
    of grey ones."""
    pixels = torch.from_numpy(np.array(Image.open(glyph)))
    (result,) = translate_files(colours, [glyph], "B", tmp_path / "out")
    tripled = expected(colours, pixels.expand(3, 32, 32), "B")
    torch.testing.assert_close(read(result), tripled, rtol=0, atol=1)
    grey = saved(tmp_path / "grey", CYCLEGAN, channels=1)
    coloured = picture(tmp_path / "coloured.png", 20, 16)
    results = translate_files(grey, [glyph, coloured], "B", tmp_path / "out2")
    own = expected(grey, pixels[None], "B")
    torch.testing.assert_close(read(results[0]), own, rtol=0, atol=1)
    assert read(results[1]).shape == (1, 16, 20)


def test_a_turned_picture_is_set_upright(colours: Path, tmp_path: Path) -> None:
    upright = picture(tmp_path / "upright.png", 30, 20)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    image = Image.open(upright).transpose(Image.Transpose.ROTATE_90)
    image.save(tmp_path / "turned.png", exif=exif)
    files = [upright, tmp_path / "turned.png"]
    first, second = map(read, translate_files(colours, files, "B", tmp_path / "out"))
    assert torch.equal(first, second)


def test_transparency_shows_the_background(colours: Path, tmp_path: Path) -> None:
    Image.new("RGBA", (16, 16), (200, 0, 0, 0)).save(tmp_path / "clear.png")
    for background, level in (("black", 0), ("white", 255)):
        out = tmp_path / background
        (result,) = translate_files(
            colours, [tmp_path / "clear.png"], "B", out, background=background
        )
        flat = torch.full((3, 16, 16), level, dtype=torch.uint8)
        torch.testing.assert_close(read(result), expected(colours, flat, "B"), rtol=0, atol=1)


@pytest.mark.parametrize(
    ("size", "side", "found"), [((60, 30), 16, (32, 16)), ((9, 27), 18, (18, 54))]
)
def test_the_shorter_side_is_scaled(
    colours: Path, tmp_path: Path, size: tuple[int, int], side: int, found: tuple[int, int]
) -> None:
    file = picture(tmp_path / "a.png", *size)
    (result,) = translate_files(colours, [file], "B", tmp_path / "out", side=side)
    scaled = Image.open(file).resize(found, Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(scaled)).permute(2, 0, 1)
    torch.testing.assert_close(read(result), expected(colours, pixels, "B"), rtol=0, atol=1)


def test_nothing_is_overwritten_unless_told(colours: Path, tmp_path: Path) -> None:
    first, second = picture(tmp_path / "a.png", 16, 16), picture(tmp_path / "b.png", 18, 16)
    out = tmp_path / "out"
    (written,) = translate_files(colours, [second], "B", out)
    written.write_bytes(b"mine")
    with pytest.raises(UserError, match=r"b-to-B\.png exists; use --force"):
        translate_files(colours, [first, second], "B", out)
    assert [path.name for path in out.iterdir()] == ["b-to-B.png"]  # nor is anything begun
    assert written.read_bytes() == b"mine"
    translate_files(colours, [first, second], "B", out, force=True)
    assert read(written).shape == (3, 16, 18) and len(list(out.iterdir())) == 2


def test_what_cannot_be_translated(
    colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusal(*files: Path, **changes: int) -> str:
        with pytest.raises(UserError) as caught:
            translate_files(colours, files, "B", tmp_path / "out", **changes)
        return str(caught.value)

    good = picture(tmp_path / "good.png", 16, 16)
    (tmp_path / "text.png").write_text("no picture", encoding="utf-8")
    file = BytesIO()
    Image.open(good).save(file, "PNG")
    (tmp_path / "cut.png").write_bytes(file.getvalue()[:-30])
    for name in ("text.png", "cut.png"):
        assert f"{name} is no picture that can be read" in refusal(tmp_path / name)
    for missing in (tmp_path / "absent.png", tmp_path):
        assert f"{missing}: no such file" in refusal(good, missing)  # before anything is written
    assert "no pictures were named" in refusal()
    twin = tmp_path / "twin" / "good.jpg"
    twin.parent.mkdir()
    assert "would both become" in refusal(good, picture(twin, 16, 16))
    assert "small.png: a picture of 9x3 pixels is too small" in refusal(
        picture(tmp_path / "small.png", 9, 3)
    )
    assert "--side 0: allowed: at least 1" in refusal(good, side=0)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(translate, "MOST_PIXELS", 400)
    assert "30x20 pixels are more than the 400" in refusal(picture(tmp_path / "l.png", 30, 20))
    assert "48x48 pixels are more" in refusal(good, side=48)
    assert translate_files(colours, [tmp_path / "l.png"], "B", tmp_path / "out", side=16)


def test_another_family_is_refused(tmp_path: Path) -> None:
    family = tiny_config(Path("none"), tmp_path).family.model_dump() | {"conditional": False}
    progan = saved(tmp_path / "progan", family)
    with pytest.raises(UserError, match="holds a progan, which cannot translate pictures"):
        translate_files(progan, [picture(tmp_path / "a.png", 16, 16)], "B", tmp_path / "out")
