"""Grids of images: they are put together here and written as PNG files."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from torch import Tensor

from gan_train.files.atomic import aside
from gan_train.images.origin import Origin, encoded
from gan_train.images.pixels import to_picture

_PAGE_WIDTH = 900  # pixels


def make_grid(images: Tensor, columns: int) -> Image.Image:
    """One picture that shows uint8 images [N, C, H, W], `columns` in each row. Places of the last
    row that have no image are black."""
    n, c, h, w = images.shape
    rows = -(-n // columns)
    sheet = images.new_zeros((rows * columns, c, h, w))
    sheet[:n] = images
    sheet = sheet.view(rows, columns, c, h, w).permute(2, 0, 3, 1, 4)  # [C, rows, H, columns, W]
    return to_picture(sheet.reshape(c, rows * h, columns * w).cpu())


def visible_grid(images: Tensor, columns: int) -> Image.Image:
    """The picture of `make_grid`; small images are enlarged so that they can be seen, as far as the
    grid fits the page."""
    picture = make_grid(images, columns)
    factor = min(64 // images.shape[-1], _PAGE_WIDTH // picture.width)
    if factor > 1:
        size = (picture.width * factor, picture.height * factor)
        picture = picture.resize(size, Image.Resampling.NEAREST)
    return picture


def save_grid(images: Tensor, columns: int, path: Path, origin: Origin | None = None) -> Path:
    """Write the picture of `visible_grid` as a PNG file, which says where it comes from; returns
    `path`."""
    with aside(path) as file:
        picture = visible_grid(images, columns)
        if origin is None:
            picture.save(file, format="PNG")
        else:
            file.write(encoded(picture, origin))
    return path
