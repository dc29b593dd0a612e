"""Translates picture files: each becomes a PNG file of the other domain."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from gan_train.adversary import Domain, Translates
from gan_train.data.images import BadImage, open_picture
from gan_train.errors import UserError
from gan_train.files.atomic import aside
from gan_train.files.digests import sha256_of
from gan_train.images.origin import encoded
from gan_train.images.pixels import from_picture, to_float, to_picture, to_uint8
from gan_train.inference import Generator
from gan_train.sampling.picture_files import targets_of
from gan_train.sampling.progress import progress_bar

MOST_PIXELS = 1 << 22
"""The most pixels of a picture. It is translated whole, because instance normalisation needs all
pixels, and the paper's generator takes about 1.2 KiB of memory per pixel."""


def translate_files(
    generator_folder: Path,
    files: Sequence[Path],
    to: Domain,
    out_folder: Path,
    *,
    side: int | None = None,
    background: Literal["black", "white"] = "black",
    force: bool = False,
    device: str = "cpu",
) -> list[Path]:
    """Translate pictures by the generator in `generator_folder`; returns the files written.

    For `to` = B, `a.jpg` becomes `a-to-B.png` in `out_folder`. The size stays, or, with `side`, the
    picture is first scaled so that its shorter side has so many pixels. EXIF orientation is
    applied, transparent pixels show `background`, and pictures become grey or RGB as in training.

    Raises UserError, before anything is written, for a generator that does not translate, and as
    `targets_of` does. Raises it later, when earlier pictures are written, for a file that is no
    picture, or too large or too small to be translated.
    """
    generator = Generator.load(generator_folder, device)
    if not isinstance(generator.adversary, Translates):
        raise UserError(
            f"{generator_folder} holds a {generator.family}, which cannot translate pictures: "
            "name a checkpoint of a family that does, such as cyclegan"
        )
    if side is not None and side < 1:
        raise UserError(f"--side {side}: allowed: at least 1 pixel")
    targets = targets_of(files, out_folder, f"-to-{to}.png", force=force)
    with progress_bar("translating", "img", len(targets)) as bar:
        for file, target in targets.items():
            picture = _read(file, generator.shape.channels, background, side)
            translated = to_picture(_translate(generator, picture, to, file))
            origin = generator.origin("translate", to=to, source_sha256=sha256_of(file))
            with aside(target) as png:
                png.write(encoded(translated, origin))
            bar.update()
    return list(targets.values())


def _read(
    file: Path, channels: int, background: Literal["black", "white"], side: int | None
) -> Tensor:
    """The picture in a file, uint8 [C, H, W], upright and opaque, with the shorter side scaled to
    `side` if given. Raises UserError if it cannot be read or is too large."""
    try:
        picture = open_picture(file.read_bytes(), channels, background)
    except (OSError, BadImage) as error:
        raise UserError(f"{file} is no picture that can be read: {error}") from error
    height, width = picture.shape[1:]
    if side is not None:
        scale = side / min(height, width)
        height, width = (max(side, round(length * scale)) for length in (height, width))
    if height * width > MOST_PIXELS:
        raise UserError(
            f"{file}: {width}x{height} pixels are more than the {MOST_PIXELS} that are translated "
            "at once: give a smaller --side, at best that of the training images"
        )
    if picture.shape[1:] == (height, width):
        return picture
    return from_picture(to_picture(picture).resize((width, height), Image.Resampling.LANCZOS))


@torch.inference_mode()
def _translate(generator: Generator, picture: Tensor, to: Domain, file: Path) -> Tensor:
    """The translation of a picture, both uint8 [C, H, W]. Raises UserError, which names the file,
    for a picture that is too small."""
    image, translator = to_float(picture.to(generator.device)[None]), generator.adversary
    assert isinstance(translator, Translates)
    try:
        translated = translator.translate(image, to)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    return to_uint8(translated)[0].cpu()
