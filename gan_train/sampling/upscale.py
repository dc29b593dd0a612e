"""Upscales picture files by a generator for super-resolution, and writes them as PNG."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor

from gan_train.adversary import Adversary, Upscales
from gan_train.data.images import FORMATS, BadImage, open_picture
from gan_train.errors import UserError
from gan_train.files.atomic import aside
from gan_train.files.digests import sha256_of
from gan_train.images.origin import Origin, encoded
from gan_train.images.pixels import from_picture, to_picture
from gan_train.images.resize import bicubic_upsample
from gan_train.images.tiles import upscale_picture
from gan_train.inference import Generator
from gan_train.sampling.picture_files import targets_of
from gan_train.sampling.progress import ProgressBar, progress_bar

MAX_PIXELS = 100_000_000
"""Pictures with more pixels are refused before they are decoded."""
_PROFILED = ("RGB", "RGBA", "L", "LA", "P")
"""Pillow's modes whose ICC profile still holds after conversion to RGB or grey."""


@dataclass(frozen=True)
class Picture:
    """A picture in parts: `colour` uint8 [C, H, W], C 1 or 3; `alpha` uint8 [1, H, W], or None if
    all is opaque; the ICC `profile` of the colours, or None if the file has none that holds."""

    colour: Tensor
    alpha: Tensor | None
    profile: bytes | None


def upscale_files(
    generator_folder: Path,
    files: Sequence[Path],
    out_folder: Path,
    *,
    force: bool = False,
    tile: int = 192,
    device: str = "cpu",
) -> list[Path]:
    """Upscale pictures by the generator in `generator_folder`; returns the files written.

    `a.jpg` becomes `a-x4.png` in `out_folder`, written under another name and renamed. An animation
    gives its first frame. Tiles of `tile` x `tile` pixels are upscaled one by one; larger tiles
    need more memory. Raises UserError, before anything is written, for a generator that does not
    upscale, and as `targets_of` does. Raises it later, when earlier pictures are written, for a
    file that is no picture.
    """
    generator = Generator.load(generator_folder, device)
    adversary = generator.adversary
    if not isinstance(adversary, Upscales):
        raise UserError(
            f"{generator_folder} holds a generator of {generator.family}, which makes no pictures "
            "larger; name a checkpoint of srgan"
        )
    if tile < 1:
        raise UserError(f"--tile {tile}: allowed: a whole number at least 1")
    targets = targets_of(files, out_folder, f"-x{adversary.scale}.png", force=force)
    for file, target in targets.items():
        picture = open_any(file)
        with progress_bar(file.name, "tile") as bar:
            large = upscale_colours(adversary, picture, tile, device, bar)
        _save(large, target, generator.origin("upscale", source_sha256=sha256_of(file)))
    return list(targets.values())


def open_any(file: Path) -> Picture:
    """The picture in a file of any format of `data/images.py`, turned upright. Raises UserError if
    it cannot be read."""
    try:
        data = file.read_bytes()
        opaque = open_picture(data, 3, max_pixels=MAX_PIXELS)
    except (OSError, BadImage) as error:
        raise UserError(f"{file} is no picture that can be read: {error}") from error
    with warnings.catch_warnings(), Image.open(io.BytesIO(data), formats=FORMATS) as image:
        warnings.simplefilter("ignore")  # about odd metadata; `open_picture` checks what matters
        grey = image.mode in ("1", "L", "LA") or image.mode.startswith("I")
        profile = image.info.get("icc_profile") if image.mode in _PROFILED else None
        alpha = None
        # 16-bit grey has no alpha channel; `open_picture` fills a grey level that means transparent
        if image.has_transparency_data and not image.mode.startswith("I"):
            colours = from_picture(ImageOps.exif_transpose(image).convert("RGBA"))
            opaque, alpha = colours.split([3, 1])
    colour = opaque[:1] if grey else opaque  # grey: R = G = B
    return Picture(colour, alpha, profile)


def upscale_colours(
    adversary: Adversary, picture: Picture, tile: int, device: str, bar: ProgressBar
) -> Picture:
    """The picture, upscaled by a network on `device`.

    A network for RGB takes grey as R = G = B, and its result is turned into grey. A network for
    grey takes the luma of a colour picture; chroma is upsampled bicubically, because eyes are less
    sensitive to its detail. Alpha is upsampled bicubically, too.
    """
    assert isinstance(adversary, Upscales)
    scale, channels = adversary.scale, adversary.shape.channels

    def on_device(low: Tensor) -> Tensor:
        return adversary.upscale(low.to(device)).cpu()

    def progress(done: int, count: int) -> None:
        bar.total = count
        bar.update(done - bar.n)

    def upscale_planes(colour: Tensor) -> Tensor:
        return upscale_picture(on_device, colour, scale, tile, adversary.reach, progress)

    colour = picture.colour
    if len(colour) == channels:
        large = upscale_planes(colour)
    elif channels == 3:
        large = _convert_mode(upscale_planes(colour.expand(3, -1, -1)), "RGB", "L")
    else:
        luma, chroma = _convert_mode(colour, "RGB", "YCbCr").split([1, 2])
        parts = torch.cat([upscale_planes(luma), bicubic_upsample(chroma, scale)])
        large = _convert_mode(parts, "YCbCr", "RGB")
    alpha = None if picture.alpha is None else bicubic_upsample(picture.alpha, scale)
    return Picture(large, alpha, picture.profile)


def _convert_mode(colour: Tensor, old: str, new: str) -> Tensor:
    """Convert uint8 [C, H, W] from one of Pillow's colour modes to another."""
    planes = [to_picture(plane[None]) for plane in colour]
    image = Image.merge(old, planes).convert(new)
    return from_picture(image)


def _save(picture: Picture, path: Path, origin: Origin) -> None:
    planes = picture.colour if picture.alpha is None else torch.cat([picture.colour, picture.alpha])
    with aside(path) as file:
        file.write(encoded(to_picture(planes), origin, picture.profile))
