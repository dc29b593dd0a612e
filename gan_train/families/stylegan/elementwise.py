"""Cheaper elementwise operations on feature maps: a factor that is applied late, and the sum of
bias and noise in one pass.

A pass over feature maps is bound by memory, and in bfloat16 these passes take half of a training
step. A tensor [N, C] is far smaller than the maps, so a factor is multiplied into it where the
result is the same.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Features(NamedTuple):
    """Feature maps as a product that is not yet carried out: `values` [N, C, H, W] times `factor`
    [N, C] > 0, or `values` alone where the factor is None.

    LeakyReLU(c x) = c LeakyReLU(x) for positive c, so a rectifier works on `values` and keeps the
    factor. The next modulated convolution multiplies its input by a style [N, C] in any case;
    `modulation` multiplies the style by the factor instead, which saves a pass over the maps.
    """

    values: Tensor
    factor: Tensor | None = None

    def modulation(self, style: Tensor) -> Tensor:
        """The factor [N, C] by which `values` become the features multiplied by a style [N, C]."""
        return style if self.factor is None else style * self.factor

    def materialise(self) -> Tensor:
        """Carry out the product, and return the features [N, C, H, W]."""
        if self.factor is None:
            return self.values
        return self.values * self.factor.to(self.values.dtype)[:, :, None, None]


def add_bias_and_noise_(y: Tensor, bias: Tensor, noise: Tensor | None, strength: Tensor) -> Tensor:
    """Add to y [N, C, H, W], in place, bias [N, C] and, unless it is None, a noise map [N, 1, H, W]
    or [H, W] times strength [N, C]. `bias` and `strength` are converted to the dtype of y."""
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
    """y [N, C, H, W] += of_places [N, K, H W] times of_channels [N, K, C], summed over K. y and
    of_channels get gradients, of_places does not.

    As a product of matrices this is one pass over y, and so is its gradient. PyTorch needs one pass
    to add a vector and one to add a map; in bfloat16 on a CPU, neither is vectorised in
    channels_last.
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
