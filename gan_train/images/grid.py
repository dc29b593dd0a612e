"""Sample grids as PNG files."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from torch import Tensor

_PAGE_WIDTH = 900  # pixels


def make_grid(images: Tensor, columns: int) -> Image.Image:
    """A picture of uint8 images [N, C, H, W], `columns` a row; missing ones stay black."""
    n, c, h, w = images.shape
    rows = -(-n // columns)
    sheet = images.new_zeros((rows * columns, c, h, w))
    sheet[:n] = images
    sheet = sheet.view(rows, columns, c, h, w).permute(0, 3, 1, 4, 2)  # [rows, H, columns, W, C]
    pixels = sheet.reshape(rows * h, columns * w, c).cpu().numpy()
    return Image.fromarray(pixels[:, :, 0] if c == 1 else pixels)


def save_grid(images: Tensor, columns: int, path: Path) -> Path:
    """Write `make_grid` as a PNG, aside and renamed; small images are enlarged to be seen."""
    picture = make_grid(images, columns)
    # small images are enlarged, as far as the picture still fits into a page
    factor = min(64 // images.shape[-1], _PAGE_WIDTH // picture.width)
    if factor > 1:
        size = (picture.width * factor, picture.height * factor)
        picture = picture.resize(size, Image.Resampling.NEAREST)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".tmp")
    picture.save(aside, format="PNG")
    aside.replace(path)
    return path
