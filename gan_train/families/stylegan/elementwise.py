"""Features that carry a factor for every channel, and the sum of bias and noise in one pass.

Passes over feature maps are bound by memory, and half of a step in bfloat16: what can be done to
numbers per image and channel instead is done to those.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Features(NamedTuple):
    """The features `values` [N, C, H, W] times `factor` [N, C] > 0, where there is one.

    The factor passes a LeakyReLU unchanged and waits for the next style, into which it goes for
    nothing.
    """

    values: Tensor
    factor: Tensor | None = None

    def styled(self, style: Tensor) -> Tensor:
        """What `values` are to be multiplied by for features times style [N, C]."""
        return style if self.factor is None else style * self.factor

    def multiplied(self) -> Tensor:
        """The features themselves, [N, C, H, W]."""
        if self.factor is None:
            return self.values
        return self.values * self.factor.to(self.values.dtype)[:, :, None, None]


def shifted_(y: Tensor, bias: Tensor, noise: Tensor | None, strength: Tensor) -> Tensor:
    """y [N, C, H, W] plus bias [N, C] plus, if any, a noise map [N, 1, H, W] or [H, W] times
    strength [N, C]; in place. `bias` and `strength` take the dtype of y."""
    n, _, h, w = y.shape
    ones = y.new_ones(n, h * w)
    if noise is None:
        of_places, of_channels = ones[:, None], bias[:, None]
    else:
        noise = noise.to(y.dtype).expand(n, 1, h, w).reshape(n, h * w)
        of_places, of_channels = torch.stack([ones, noise], 1), torch.stack([bias, strength], 1)
    shifted: Tensor = _Shifted.apply(y, of_places, of_channels.to(y.dtype))  # type: ignore[no-untyped-call]
    return shifted


class _Shifted(torch.autograd.Function):
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
