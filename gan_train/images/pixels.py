"""Bytes, floats and Pillow's pictures: the one place that turns one into another.

Networks see float images in [-1, 1]; files and scores hold bytes. Pure functions.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor


def to_float(pixels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Floats in [-1, 1] of bytes uint8, of any shape: 0 becomes -1 and 255 becomes 1."""
    return pixels.to(dtype) / 127.5 - 1


def to_uint8(image: Tensor) -> Tensor:
    """Bytes uint8 of floats in [-1, 1], of any shape: rounded, and cut off outside of the range."""
    return (image.float() * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def to_uint8_at(image: Tensor, resolution: int) -> Tensor:
    """uint8 [N, C, resolution, resolution] of floats in [-1, 1] whose side is this resolution, or a
    lower power of two, as that of a generator which still grows: its pixels are repeated."""
    factor = resolution // image.shape[-1]
    if factor > 1:
        image = F.interpolate(image, scale_factor=factor, mode="nearest")
    return to_uint8(image)


def to_picture(pixels: Tensor) -> Image.Image:
    """Pillow's picture of bytes uint8 [C, H, W]: C 1 is grey, 3 RGB and 4 RGB with alpha."""
    plane = pixels[0] if len(pixels) == 1 else pixels.permute(1, 2, 0)
    return Image.fromarray(plane.contiguous().numpy())


def from_picture(picture: Image.Image) -> Tensor:
    """Bytes uint8 [C, H, W] of a picture with 8 bits a channel; the memory is its own."""
    pixels = torch.from_numpy(np.array(picture))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
