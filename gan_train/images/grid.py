"""Sample grids as PNG files."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from torch import Tensor

from gan_train.files.atomic import aside
from gan_train.images.pixels import to_picture

_PAGE_WIDTH = 900  # pixels


def make_grid(images: Tensor, columns: int) -> Image.Image:
    """A picture of uint8 images [N, C, H, W], `columns` a row; missing ones stay black."""
    n, c, h, w = images.shape
    rows = -(-n // columns)
    sheet = images.new_zeros((rows * columns, c, h, w))
    sheet[:n] = images
    sheet = sheet.view(rows, columns, c, h, w).permute(2, 0, 3, 1, 4)  # [C, rows, H, columns, W]
    return to_picture(sheet.reshape(c, rows * h, columns * w).cpu())


def save_grid(images: Tensor, columns: int, path: Path) -> Path:
    """Write `make_grid` as a PNG, aside and renamed; small images are enlarged to be seen."""
    picture = make_grid(images, columns)
    # small images are enlarged, as far as the picture still fits into a page
    factor = min(64 // images.shape[-1], _PAGE_WIDTH // picture.width)
    if factor > 1:
        size = (picture.width * factor, picture.height * factor)
        picture = picture.resize(size, Image.Resampling.NEAREST)
    with aside(path) as file:
        picture.save(file, format="PNG")
    return path
