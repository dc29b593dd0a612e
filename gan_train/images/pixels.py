"""Conversions between bytes, floats and Pillow's pictures, for all other files.

Networks see float images in [-1, 1]; files and scores hold bytes. All functions are pure.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor


def to_float(pixels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Turn bytes uint8 of any shape into floats in [-1, 1]: 0 becomes -1 and 255 becomes 1."""
    return pixels.to(dtype) / 127.5 - 1


def to_uint8(image: Tensor) -> Tensor:
    """Turn floats of any shape into bytes uint8: values are rounded, and clamped to [-1, 1]."""
    return (image.float() * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def to_uint8_at(image: Tensor, resolution: int) -> Tensor:
    """Turn floats [N, C, r, r] in [-1, 1] into bytes uint8 [N, C, resolution, resolution].

    A generator that still grows makes images of a lower resolution r: their pixels are repeated.
    """
    return to_uint8(at_resolution(image, resolution))


def at_resolution(image: Tensor, resolution: int) -> Tensor:
    """Repeat the pixels of images [N, C, r, r] where r is lower than the resolution, which is a
    multiple of it."""
    factor = resolution // image.shape[-1]
    return F.interpolate(image, scale_factor=factor, mode="nearest") if factor > 1 else image


def to_picture(pixels: Tensor) -> Image.Image:
    """Turn bytes uint8 [C, H, W] into Pillow's picture: C 1 is grey, 3 RGB and 4 RGB with alpha."""
    plane = pixels[0] if len(pixels) == 1 else pixels.permute(1, 2, 0)
    return Image.fromarray(plane.contiguous().numpy())


def from_picture(picture: Image.Image) -> Tensor:
    """Copy a picture with 8 bits a channel into bytes uint8 [C, H, W]."""
    pixels = torch.from_numpy(np.array(picture))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
