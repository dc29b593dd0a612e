"""Cheaper elementwise operations on feature maps: a factor that is applied late, and the sum of
bias and noise in one pass.

A pass over feature maps is bound by memory, and in bfloat16 such passes are half of a training
step. Numbers per image and channel are far fewer, so work is moved to them where the result is the
same.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Features(NamedTuple):
    """Feature maps as a product that is not carried out: `values` [N, C, H, W] times `factor`
    [N, C] > 0; without a factor, `values` alone.

    LeakyReLU(c x) = c LeakyReLU(x) for positive c, so a rectifier works on `values` and keeps the
    factor. The next modulated convolution multiplies its input by a style [N, C] in any case;
    `modulation` multiplies the style by the factor instead, which saves a pass over the maps.
    """

    values: Tensor
    factor: Tensor | None = None

    def modulation(self, style: Tensor) -> Tensor:
        """The factor [N, C] that turns `values` into the features times a style [N, C]."""
        return style if self.factor is None else style * self.factor

    def materialise(self) -> Tensor:
        """Carry out the product: the features themselves, [N, C, H, W]."""
        if self.factor is None:
            return self.values
        return self.values * self.factor.to(self.values.dtype)[:, :, None, None]


def add_bias_and_noise_(y: Tensor, bias: Tensor, noise: Tensor | None, strength: Tensor) -> Tensor:
    """y [N, C, H, W] plus bias [N, C] plus, if any, a noise map [N, 1, H, W] or [H, W] times
    strength [N, C]; in place. `bias` and `strength` take the dtype of y."""
    n, _, h, w = y.shape
    ones = y.new_ones(n, h * w)
    if noise is None:
        of_places, of_channels = ones[:, None], bias[:, None]
    else:
        noise = noise.to(y.dtype).expand(n, 1, h, w).reshape(n, h * w)
        of_places, of_channels = torch.stack([ones, noise], 1), torch.stack([bias, strength], 1)
    shifted: Tensor = _AddProduct.apply(y, of_places, of_channels.to(y.dtype))  # type: ignore[no-untyped-call]
    return shifted


class _AddProduct(torch.autograd.Function):
    """y [N, C, H, W] += of_places [N, K, H W] times of_channels [N, K, C], summed over K; the first
    is given, the other two have gradients.

    As a product of matrices it is one pass, and so is its gradient. PyTorch's sums with a vector or
    a map take one each, which in bfloat16 on a CPU are not vectorised in channels_last.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, of_places: Tensor, of_channels: Tensor) -> Tensor:
        ctx.save_for_backward(of_places)
        places = y.view(*y.shape[:2], -1)  # [N, C, H W]
        if y.is_contiguous(memory_format=torch.channels_last):
            places.transpose(1, 2).baddbmm_(of_places.transpose(1, 2), of_channels)
        else:
            places.baddbmm_(of_channels.transpose(1, 2), of_places)
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,), (of_places,) = gradients, ctx.saved_tensors
        of_channels = None
        if ctx.needs_input_grad[2]:
            of_channels = of_places @ gradient.flatten(2).transpose(1, 2)
        return gradient, None, of_channels
