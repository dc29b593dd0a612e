"""What follows a modulated convolution, place by place: a scale, a bias and a noise map."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def scaled_and_shifted(y: Tensor, scale: Tensor, bias: Tensor, noise: Tensor | None) -> Tensor:
    """y [N, C, H, W] times scale [N, C], plus bias [C] and, if any, a noise map [N, 1, H, W] or
    [H, W]; all of one dtype."""
    if _sums_are_slow(y):
        shifted: Tensor = _Shifted.apply(y * scale[:, :, None, None], bias, noise)  # type: ignore[no-untyped-call]
        return shifted
    y = torch.addcmul(bias[:, None, None], y, scale[:, :, None, None])
    return y if noise is None else y.add_(noise)


def _sums_are_slow(y: Tensor) -> bool:
    """In channels_last the channels are innermost, and there PyTorch's sums with a vector or a map
    are not vectorised in bfloat16 on a CPU: with 16 channels they take four times as long."""
    last = y.is_contiguous(memory_format=torch.channels_last) and not y.is_contiguous()
    return last and y.dtype == torch.bfloat16 and y.device.type == "cpu"


class _Shifted(torch.autograd.Function):
    """y plus bias and noise, as one product of matrices: [1, noise] of every place by
    [bias, 1] of every channel."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, bias: Tensor, noise: Tensor | None) -> Tensor:
        n, c, h, w = y.shape
        of_places, of_channels = [y.new_ones(n * h * w)], [bias]
        if noise is not None:
            of_places.append(noise.expand(n, 1, h, w).flatten())
            of_channels.append(y.new_ones(c))
        ctx.like = None if noise is None else noise.shape
        shifted = torch.empty_like(y)
        torch.addmm(
            _places(y),
            torch.stack(of_places, dim=1),
            torch.stack(of_channels),
            out=_places(shifted),
        )
        return shifted

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        of_bias = gradient.sum((0, 2, 3)) if ctx.needs_input_grad[1] else None
        of_noise = None
        if ctx.needs_input_grad[2]:
            of_noise = gradient.sum(1, keepdim=True).sum_to_size(ctx.like)
        return gradient, of_bias, of_noise


def _places(y: Tensor) -> Tensor:
    """The memory of y [N, C, H, W] in channels_last as [N H W, C]."""
    return y.permute(0, 2, 3, 1).view(-1, y.shape[1])
