"""Bytes, floats and Pillow's pictures become one another without loss."""

from __future__ import annotations

import pytest
import torch

from gan_train.images.pixels import from_picture, to_float, to_picture, to_uint8, to_uint8_at

EVERY_BYTE = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)


def test_floats_outside_of_the_range_are_cut_off() -> None:
    x = torch.tensor([-1.5, -1.0, 0.0, 1.0, 2.0])
    assert to_uint8(x).tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bytes_come_back_from_floats(dtype: torch.dtype) -> None:
    floats = to_float(EVERY_BYTE, dtype)
    assert floats.dtype == dtype and (floats.min(), floats.max()) == (-1, 1)
    assert torch.equal(to_uint8(floats), EVERY_BYTE)


def test_pixels_of_a_lower_resolution_are_repeated() -> None:
    small = to_float(torch.arange(4, dtype=torch.uint8).view(1, 1, 2, 2).expand(2, 3, 2, 2))
    found = to_uint8_at(small, 4)
    assert found.shape == (2, 3, 4, 4)
    assert found[1, 2].tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_bytes_come_back_from_a_picture(channels: int, mode: str) -> None:
    pixels = torch.arange(channels * 6, dtype=torch.uint8).view(channels, 2, 3)
    picture = to_picture(pixels)
    assert picture.mode == mode and picture.size == (3, 2)
    assert torch.equal(from_picture(picture), pixels)
