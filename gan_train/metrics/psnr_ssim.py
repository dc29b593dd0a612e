"""PSNR and SSIM, which compare an image with the true one pixel by pixel.

As papers on super-resolution do, both are taken on luma, with a border of `scale` pixels cut off,
and averaged over the images of a set. PSNR is averaged in dB, image by image, and not computed from
the mean error.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gan_train.errors import UserError

_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def luma(images: Tensor) -> Tensor:
    """Luma float64 [n, H, W], 16 (black) to 235 (white), of images uint8 [n, C, H, W], C 1 or 3.

    ITU-R BT.601 for 8-bit video, not rounded. Grey counts as R = G = B.
    """
    assert images.dtype == torch.uint8 and images.ndim == 4 and images.shape[1] in (1, 3)
    share = torch.tensor([65.481, 128.553, 24.966], dtype=torch.float64, device=images.device)
    weights = share if images.shape[1] == 3 else share.sum()[None]
    return 16 + torch.einsum("nchw,c->nhw", images.double(), weights) / 255


def psnr(images: Tensor, truth: Tensor, border: int) -> Tensor:
    """float64 [n]: 10 log10(255^2 / mean squared error of luma) in dB; infinite for equal images.

    `images` and `truth` are uint8 [n, C, H, W]; `border` pixels are left out on every side.
    """
    a, b = _inner(images, truth, border)
    return 10 * torch.log10(255**2 / (a - b).square().mean((1, 2)))


def ssim(images: Tensor, truth: Tensor, border: int) -> Tensor:
    """float64 [n], at most 1: structural similarity of luma, averaged over the image.

    Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity",
    equation 13 with K1 = .01, K2 = .03, L = 255, in Gaussian windows of 11x11 (sigma 1.5) that lie
    wholly inside. `images` and `truth` are uint8 [n, C, H, W]; `border` pixels are left out on
    every side. Raises UserError when fewer pixels than a window are left.
    """
    a, b = _inner(images, truth, border)
    if min(a.shape[1:]) < _WINDOW:
        raise UserError(
            f"ssim: {a.shape[2]}x{a.shape[1]} pixels are left inside of a border of {border}, "
            f"at least {_WINDOW}x{_WINDOW} are needed: use larger pictures"
        )
    moments = torch.stack([a, b, a * a, b * b, a * b], dim=1)  # [n, 5, H, W]
    mean_a, mean_b, square_a, square_b, product = _smooth(moments).unbind(1)
    variances = (square_a - mean_a**2) + (square_b - mean_b**2)
    covariance = product - mean_a * mean_b
    similarity = (2 * mean_a * mean_b + _C1) * (2 * covariance + _C2)
    similarity /= (mean_a**2 + mean_b**2 + _C1) * (variances + _C2)
    return similarity.mean((1, 2))


def _inner(images: Tensor, truth: Tensor, border: int) -> tuple[Tensor, Tensor]:
    """The luma of both without the border: float64 [n, H - 2 border, W - 2 border]."""
    assert images.shape == truth.shape and 0 <= 2 * border < min(images.shape[2:])
    height, width = images.shape[2:]
    inside = (slice(None), slice(border, height - border), slice(border, width - border))
    return luma(images)[inside], luma(truth)[inside]


def _smooth(maps: Tensor) -> Tensor:
    """The Gaussian means [n, k, H - 10, W - 10] of maps [n, k, H, W]."""
    x = torch.arange(_WINDOW, dtype=maps.dtype, device=maps.device) - _WINDOW // 2
    bell = torch.exp(-x.square() / (2 * _SIGMA**2))
    bell = (bell / bell.sum()).view(1, 1, _WINDOW, 1)
    n, k, height, width = maps.shape
    flat = maps.reshape(n * k, 1, height, width)
    smooth = F.conv2d(F.conv2d(flat, bell), bell.mT)
    return smooth.view(n, k, *smooth.shape[2:])
