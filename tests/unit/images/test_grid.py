"""Grids: every image at its place, in its colours, large enough to be seen."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from gan_train.images.grid import make_grid, save_grid


def test_a_grid_fills_rows() -> None:
    images = torch.arange(3, dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 1, 2, 2)
    grid = make_grid(images, 2)
    assert grid.size == (4, 4) and grid.mode == "L"
    assert [grid.getpixel(p) for p in ((0, 0), (2, 0), (0, 2), (2, 2))] == [0, 1, 2, 0]


def test_images_keep_their_rows_columns_and_colours() -> None:
    images = torch.arange(2 * 3 * 2 * 4, dtype=torch.uint8).view(2, 3, 2, 4)
    grid = make_grid(images, 2)
    assert grid.size == (8, 2) and grid.mode == "RGB"
    assert grid.getpixel((3, 1)) == tuple(images[0, :, 1, 3].tolist())
    assert grid.getpixel((4, 0)) == tuple(images[1, :, 0, 0].tolist())


def test_small_images_are_repeated_pixel_by_pixel(tmp_path: Path) -> None:
    images = torch.arange(4, dtype=torch.uint8).view(1, 1, 2, 2)
    file = save_grid(images, 1, tmp_path / "new" / "grid.png")
    with Image.open(file) as picture:
        assert picture.size == (64, 64)
        corners = [picture.getpixel(p) for p in ((0, 0), (63, 0), (31, 63), (32, 32))]
    assert corners == [0, 1, 2, 3]
    assert [path.name for path in file.parent.iterdir()] == ["grid.png"]
