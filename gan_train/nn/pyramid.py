"""The Laplacian pyramid: Burt and Adelson 1983, "The Laplacian Pyramid as a Compact Image Code".

Pure functions of images: they downsample and upsample, split an image into bands an octave apart,
and put it together again. There are no weights, ranks or clocks here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def downsample(image: Tensor) -> Tensor:
    """Blur, then keep every second pixel: REDUCE, equation 1. [N, C, 2H, 2W] -> [N, C, H, W].

    The filter is the binomial (1, 4, 6, 4, 1) / 16 along either axis (the paper's a = 3/8), with
    the outermost pixels repeated beyond the border. Its weights are positive and sum to 1: values
    stay in their range.
    """
    assert image.shape[-1] % 2 == 0 and image.shape[-2] % 2 == 0, image.shape
    return _downsample_rows(_downsample_rows(image).mT).mT


def upsample(image: Tensor) -> Tensor:
    """Put zeros between the pixels, then blur: EXPAND, equation 2. [N, C, H, W] -> [N, C, 2H, 2W].

    The filter is the one of `downsample`, times 2 along either axis. An old pixel becomes the mean
    of itself and its neighbours with weights (1, 6, 1) / 8, and a new pixel the mean of its two
    neighbours. Values stay in their range.
    """
    return _upsample_rows(_upsample_rows(image).mT).mT


def laplacian_pyramid(image: Tensor, coarsest: int) -> list[Tensor]:
    """The low-frequency residual and the bands of square images [N, C, R, R], coarse to fine.

    The first tensor is the image downsampled to `coarsest` pixels a side, in the image's range.
    Each other tensor has twice the side of the one before. It is the difference between the image
    of that size and the upsampled image of half the size, in [-2, 2] for images in [-1, 1].
    """
    bands = []
    while image.shape[-1] > coarsest:
        coarse = downsample(image)
        bands.append(image - upsample(coarse))
        image = coarse
    assert image.shape[-1] == coarsest, f"{coarsest} is not R, R / 2, R / 4 ..."
    return [image, *reversed(bands)]


def reconstruct(pyramid: Sequence[Tensor]) -> Tensor:
    """The images [N, C, R, R] that `laplacian_pyramid` split into this pyramid, up to rounding."""
    image = pyramid[0]
    for band in pyramid[1:]:
        image = upsample(image) + band
    return image


def _downsample_rows(x: Tensor) -> Tensor:
    """[N, C, H, 2W] -> [N, C, H, W]."""
    x = F.pad(x, (2, 2, 0, 0), mode="replicate")
    far = x[..., :-4:2] + x[..., 4::2]
    near = x[..., 1:-3:2] + x[..., 3:-1:2]
    return (far + 4 * near + 6 * x[..., 2:-2:2]) / 16


def _upsample_rows(x: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, C, H, 2W]."""
    x = F.pad(x, (1, 1, 0, 0), mode="replicate")
    before, here, after = x[..., :-2], x[..., 1:-1], x[..., 2:]
    old, new = (before + 6 * here + after) / 8, (here + after) / 2
    return torch.stack([old, new], dim=-1).flatten(-2)
