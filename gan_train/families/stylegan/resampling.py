"""Upsampling and downsampling with the binomial filter [1, 3, 3, 1], differentiable to every order.

StyleGAN2 filters wherever it changes the size (Karras et al. 2019, arXiv 1912.04958, appendix B;
Zhang 2019, arXiv 1904.11486). Images count as zero beyond their border. `plain.py` has the literal
form of every function here.

The three maps here (filter, downsample, upsample) are linear, and the derivative of each is one of
the three, so each derivative calls that map. PyTorch's own derivative of a strided depthwise
convolution takes up to ten times as long on a CPU (bfloat16). A GPU has a kernel for all three maps
(`filter_on_gpu.py`).
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gan_train.families.stylegan import filter_on_gpu
from gan_train.nn.convolution import conv2d, conv_transpose2d

Taps = tuple[float, ...]
TAPS: Taps = (1.0, 3.0, 3.0, 1.0)
BLUR: Taps = (1.0, 2.0, 1.0)
"""The first StyleGAN's filter: after nearest-neighbour upsampling it interpolates bilinearly."""


def _kernel(x: Tensor, gain: float, of: Taps = TAPS) -> Tensor:
    """Filter [C, 1, k, k] that sums to `gain`, one copy for every channel of x."""
    return _kernel_of(of, gain, x.device, x.dtype).expand(x.shape[1], 1, len(of), len(of))


@functools.cache
@torch.inference_mode(False)
def _kernel_of(of: Taps, gain: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    taps = torch.tensor(of, device=device, dtype=dtype)
    return torch.outer(taps, taps) * (gain / sum(of) ** 2)


def _by_channel(x: Tensor, kernel: Tensor, stride: int, padding: int) -> Tensor:
    """Convolve each channel of x [N, C, H, W] with its filter [C, 1, k, k], in the type of x also
    under autocast."""
    with torch.autocast(x.device.type, enabled=False):
        if x.dtype == torch.float64:  # for verification: depthwise convolutions are very slow
            y = F.conv2d(x.flatten(0, 1)[:, None], kernel[:1], stride=stride, padding=padding)
            return y.view(*x.shape[:2], *y.shape[2:]).clone()  # not a view: callers write into it
        return F.conv2d(x, kernel, stride=stride, padding=padding, groups=x.shape[1])


class _ApplyFilter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, padding: int, gain: float, taps: Taps) -> Tensor:
        ctx.padding, ctx.gain, ctx.taps = padding, gain, taps
        if filter_on_gpu.applies_to(x):
            wider = 2 * padding - len(taps) + 1
            return filter_on_gpu.resample(x, taps, gain, up=1, down=1, padding=padding, side=wider)
        return _by_channel(x, _kernel(x, gain, taps), 1, padding)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        # the filter is symmetric; the gradient is padded by what the forward pass cut off
        padding = len(ctx.taps) - 1 - ctx.padding
        return apply_filter(gradients[0], padding, ctx.gain, ctx.taps), None, None, None


class _Downsample(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: float) -> Tensor:
        ctx.gain = gain
        if filter_on_gpu.applies_to(x):
            return filter_on_gpu.resample(x, TAPS, gain, up=1, down=2, padding=1, side=0)
        return _by_channel(x, _kernel(x, gain), 2, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        return upsample(gradient if ctx.gain == 4 else gradient * (ctx.gain / 4)), None


class _Upsample(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        if filter_on_gpu.applies_to(x):
            return filter_on_gpu.resample(x, TAPS, 4.0, up=2, down=1, padding=2, side=0)
        # Bilinear interpolation has the weights [1, 3] / 4 and [3, 1] / 4, the filter's two halves.
        # It differs at the border alone, where it repeats x and the filter meets zeros.
        y = F.interpolate(x, scale_factor=2.0, mode="bilinear")
        for edge in (y[:, :, 0], y[:, :, -1], y[:, :, :, 0], y[:, :, :, -1]):
            edge.mul_(0.75)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return downsample(gradients[0], 4.0)


def apply_filter(x: Tensor, padding: int, gain: float = 1.0, taps: Taps = TAPS) -> Tensor:
    """Convolve x with the filter of k taps, times `gain`. [N, C, H, W] -> [N, C, H + d, W + d] for
    d = 2 padding - k + 1."""
    y: Tensor = _ApplyFilter.apply(x, padding, gain, taps)  # type: ignore[no-untyped-call]
    return y


def downsample(x: Tensor, gain: float = 1.0) -> Tensor:
    """Filter times `gain`, then keep every second pixel. [N, C, 2H, 2W] -> [N, C, H, W]."""
    y: Tensor = _Downsample.apply(x, gain)  # type: ignore[no-untyped-call]
    return y


def upsample(x: Tensor) -> Tensor:
    """Put zeros between the pixels, then filter times 4. [N, C, H, W] -> [N, C, 2H, 2W]."""
    y: Tensor = _Upsample.apply(x)  # type: ignore[no-untyped-call]
    return y


def convolve_downsample(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Filter, then convolve with stride 2. x [N, I, 2H, 2W], weight [O, I, 3, 3], bias [O] ->
    [N, O, H, W]."""
    return conv2d(apply_filter(x, padding=2), weight, bias, stride=2)


def upsample_convolve(x: Tensor, weight: Tensor) -> Tensor:
    """Put zeros between the pixels, convolve, then filter. [N, I, H, W] -> [N, O, 2H, 2W].

    The weight [O, I, 3, 3] enters unflipped, as in the published networks: the convolution is the
    transposed one.
    """
    y = conv_transpose2d(x, weight.transpose(0, 1), stride=2)  # [N, O, 2H+1, 2W+1]
    return apply_filter(y, padding=1, gain=4.0)
