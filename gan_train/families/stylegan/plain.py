"""Reference forms, slow and as in the papers, of operations that StyleGAN's other files speed up.

They stand for functions of `synthesis.py`, `elementwise.py` and `resampling.py`, which their
docstrings name. Training does not use this file. Tests compare the fast forms with these, and the
benchmark measures how much longer these take. The comparison is fair: filters are depthwise
convolutions, which is PyTorch's fastest literal form.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from gan_train.families.stylegan.elementwise import Features
from gan_train.nn.convolution import compute_dtype

TAPS = (1.0, 3.0, 3.0, 1.0)


def resample(x: Tensor, up: int, down: int, padding: tuple[int, int], gain: float) -> Tensor:
    """Insert `up` - 1 zeros after every pixel of x [N, C, H, W], pad, filter, and keep every
    `down`-th pixel. `padding` is how many zeros come before and after, in both directions."""
    n, c, h, w = x.shape
    y = x.new_zeros(n, c, h, up, w, up)
    y[:, :, :, 0, :, 0] = x
    y = F.pad(y.view(n, c, h * up, w * up), (*padding, *padding))
    taps = torch.tensor(TAPS, dtype=x.dtype, device=x.device)
    kernel = torch.outer(taps, taps) / 64 * gain
    with torch.autocast(x.device.type, enabled=False):  # the filter keeps the type of x
        y = F.conv2d(y, kernel.expand(c, 1, 4, 4), groups=c)
    return y if down == 1 else y[:, :, ::down, ::down]  # in-place operations are slower on views


def modulated_conv(
    x: Tensor, weight: Tensor, style: Tensor, *, demodulate: bool, up: bool
) -> Tensor:
    """Equations 1 to 3 of arXiv 1912.04958, with a weight of its own for every image.

    x [N, I, H, W], weight [O, I, k, k], style [N, I] -> [N, O, H, W], or [N, O, 2H, 2W] with `up`.
    """
    n, inputs, h, w = x.shape
    outputs, _, k, _ = weight.shape
    own = weight[None] * style[:, None, :, None, None]  # [N, O, I, k, k]
    if demodulate:
        own = own * torch.rsqrt(own.square().sum(dim=(2, 3, 4), keepdim=True) + 1e-8)
    x = x.reshape(1, n * inputs, h, w)
    if up:
        own = own.transpose(1, 2).reshape(n * inputs, outputs, k, k)
        y = F.conv_transpose2d(x, own, stride=2, groups=n)
        return resample(y.view(n, outputs, *y.shape[2:]), 1, 1, (1, 1), gain=4.0)
    y = F.conv2d(x, own.flatten(0, 1), padding=k // 2, groups=n)
    return y.view(n, outputs, h, w)


Convolve = Callable[[Tensor, Tensor, Tensor, Tensor | None, bool], Tensor]
"""Computes the modulated convolution plus noise from x, weight, style, noise and `up`."""


def literal_modulated_conv(
    convolve: Convolve,
    x: Features,
    weight: Tensor,
    style: Tensor,
    bias: Tensor,
    noise: Tensor | None,
    strength: Tensor,
    *,
    gain: float,
    up: bool,
) -> Features:
    """`synthesis.modulated_conv`, with `convolve_grouped` or `convolve_scaled` as `convolve`."""
    features = x.materialise()
    if noise is not None:
        noise = (noise * strength).to(compute_dtype(features))
    y = convolve(features, weight, style, noise, up)
    return Features((y + bias.to(y.dtype)[:, None, None]) * gain)


def convolve_grouped(
    x: Tensor, weight: Tensor, style: Tensor, noise: Tensor | None, up: bool
) -> Tensor:
    """The modulated convolution as the paper writes it: every image has a weight of its own."""
    y = modulated_conv(x, weight, style, demodulate=True, up=up)
    return y if noise is None else y + noise


def convolve_scaled(
    x: Tensor, weight: Tensor, style: Tensor, noise: Tensor | None, up: bool
) -> Tensor:
    """The modulated convolution in a widely used form: one weight serves all images, and features
    are scaled before and after. The scale after it comes from a weight for every image."""
    factor = demodulation_deviations(weight, style).reciprocal()
    weight = weight.to(compute_dtype(x))
    y = x * style.to(x.dtype)[:, :, None, None]
    y = upsample_convolve(y, weight) if up else F.conv2d(y, weight, padding=1)
    factor = factor.to(y.dtype)[:, :, None, None]
    return y * factor if noise is None else torch.addcmul(noise, y, factor)


def demodulation_deviations(weight: Tensor, style: Tensor) -> Tensor:
    """`synthesis.demodulation_deviations`, computed from a weight for every image (equation 3)."""
    own = weight[None] * style[:, None, :, None, None]  # [N, O, I, k, k]
    return (own.square().sum(dim=(2, 3, 4)) + 1e-8).sqrt()


def add_bias_and_noise(y: Tensor, bias: Tensor, noise: Tensor | None, strength: Tensor) -> Tensor:
    """`elementwise.add_bias_and_noise_`, one sum after the other."""
    y = y + bias.to(y.dtype)[:, :, None, None]
    if noise is None:
        return y
    return torch.addcmul(y, noise.to(y.dtype), strength.to(y.dtype)[:, :, None, None])


def upsample(x: Tensor) -> Tensor:
    """`resampling.upsample`."""
    return resample(x, 2, 1, (2, 1), gain=4.0)


def downsample(x: Tensor, gain: float = 1.0) -> Tensor:
    """`resampling.downsample`."""
    return resample(x, 1, 2, (1, 1), gain)


def convolve_downsample(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`resampling.convolve_downsample`."""
    return F.conv2d(resample(x, 1, 1, (2, 2), gain=1.0), weight, bias, stride=2)


def upsample_convolve(x: Tensor, weight: Tensor) -> Tensor:
    """`resampling.upsample_convolve`."""
    y = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)
    return resample(y, 1, 1, (1, 1), gain=4.0)
