"""Bicubic resizing by whole factors: it makes super-resolution's inputs, and is its baseline.

Cubic convolution is due to Keys 1981, "Cubic convolution interpolation for digital image
processing", equation 4, here with a = -1/2. To downsample, the kernel is widened by the factor.
Beyond the border the outermost pixels are repeated. All functions are pure, and every image of a
batch is resized on its own.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor


def bicubic_downsample(images: Tensor, scale: int) -> Tensor:
    """uint8 [..., H, W] to [..., H / scale, W / scale], antialiased; `scale` divides both sides.

    Columns are filtered first and rounded to bytes, halves up; then rows are. This gives exactly
    the low-resolution images that Set5 and Set14 are published with. Where `scale` is a power of
    two, all sums are exact, so the result is the same on every machine and in any batch.
    """
    assert images.dtype == torch.uint8 and not images.shape[-2] % scale
    rows, columns = (_downsampling_matrix(side, scale) for side in images.shape[-2:])
    return _to_bytes(_to_bytes(rows @ images.double()).double() @ columns.mT)


def bicubic_upsample(images: Tensor, scale: int) -> Tensor:
    """uint8 [..., H, W] to [..., scale H, scale W], rounded once, halves up.

    Sums are exact where `scale` is a power of two. This is the classical baseline of
    super-resolution: x4 gives 28.43 dB on Set5 (`psnr` on luma, border 4).
    """
    assert images.dtype == torch.uint8
    return _to_bytes(bicubic_upsample_float(images.double(), scale))


def bicubic_upsample_float(images: Tensor, scale: int) -> Tensor:
    """float [..., H, W] to [..., scale H, scale W] in the same type, also under autocast."""
    assert images.is_floating_point()
    if torch.compiler.is_exporting():  # a program for images of any size has no matrix of one size
        return _upsampled_by_phases(images, scale)
    height, width = images.shape[-2:]
    rows = _upsampling_matrix(height, scale, images.dtype, images.device)
    columns = _upsampling_matrix(width, scale, images.dtype, images.device)
    with torch.autocast(images.device.type, enabled=False):  # bfloat16's 8 bits are too few
        return rows @ images @ columns.mT


def _upsampled_by_phases(images: Tensor, scale: int) -> Tensor:
    """`bicubic_upsample_float` of [N, C, H, W] as one convolution that makes the scale x scale new
    pixels of each old one."""
    shifts = (torch.arange(scale, dtype=torch.float64) + 0.5) / scale - 0.5
    taps = _cubic(shifts[:, None] - torch.arange(-2, 3))  # [scale, 5]
    kernel = torch.einsum("ik,jl->ijkl", taps, taps).reshape(scale**2, 1, 5, 5).to(images)
    n, c, h, w = images.shape
    padded = F.pad(images.reshape(n * c, 1, h, w), (2, 2, 2, 2), mode="replicate")
    return F.pixel_shuffle(F.conv2d(padded, kernel), scale).reshape(n, c, scale * h, scale * w)


def _to_bytes(values: Tensor) -> Tensor:
    """uint8 of values from 0 to 255, halves rounded up."""
    return (values + 0.5).floor().clamp(0, 255).to(torch.uint8)


def _cubic(x: Tensor) -> Tensor:
    """The kernel's values at distances x, in pixels."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x <= 1, near, torch.where(x < 2, far, 0.0))


def _weights(size: int, centres: Tensor, stretch: int) -> Tensor:
    """float64 [len(centres), size]: the weights of pixels 0 to size-1 at each of the centres, which
    are given in pixels, by a kernel that is `stretch` times as wide."""
    first = (centres - 2 * stretch).floor().long()  # [n]
    places = first[:, None] + torch.arange(4 * stretch + 2)  # [n, taps]
    taps = _cubic((centres[:, None] - places) / stretch) / stretch
    found = torch.zeros(len(centres), size, dtype=torch.float64)
    return found.scatter_add_(1, places.clamp(0, size - 1), taps)


@functools.lru_cache(maxsize=32)
def _downsampling_matrix(size: int, scale: int) -> Tensor:
    """The matrix float64 [size / scale, size] that downsamples a line of pixels."""
    assert size % scale == 0
    with torch.inference_mode(False):
        centres = (torch.arange(size // scale, dtype=torch.float64) + 0.5) * scale - 0.5
        return _weights(size, centres, scale)


@functools.lru_cache(maxsize=32)
def _upsampling_matrix(size: int, scale: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The matrix [scale * size, size] that upsamples a line of pixels."""
    with torch.inference_mode(False):  # the cached tensor must be usable with gradients later
        centres = (torch.arange(scale * size, dtype=torch.float64) + 0.5) / scale - 0.5
        return _weights(size, centres, 1).to(device, dtype)
