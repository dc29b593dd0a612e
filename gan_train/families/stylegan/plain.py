"""The literal form of what `synthesis.py` and `resampling.py` compute in a faster one.

Nothing trains on this: tests compare the fast path with it, and the benchmark states the ratio. It
is no straw man: the filters are depthwise convolutions, PyTorch's fastest literal form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gan_train.families.stylegan import resampling, synthesis
from gan_train.families.stylegan.elementwise import Features

TAPS = (1.0, 3.0, 3.0, 1.0)


def resample(x: Tensor, up: int, down: int, padding: tuple[int, int], gain: float) -> Tensor:
    """Insert `up` - 1 zeros after every place, pad, filter, keep every `down`-th place.

    x [N, C, H, W]; `padding` before and after, in both directions.
    """
    n, c, h, w = x.shape
    y = x.new_zeros(n, c, h, up, w, up)
    y[:, :, :, 0, :, 0] = x
    y = F.pad(y.view(n, c, h * up, w * up), (*padding, *padding))
    taps = torch.tensor(TAPS, dtype=x.dtype, device=x.device)
    kernel = torch.outer(taps, taps) / 64 * gain
    with torch.autocast(x.device.type, enabled=False):  # images are summed in full
        y = F.conv2d(y, kernel.expand(c, 1, 4, 4), groups=c)
    return y[:, :, ::down, ::down]


def modulated_conv(
    x: Tensor, weight: Tensor, style: Tensor, *, demodulate: bool, up: bool
) -> Tensor:
    """Equations 1 to 3 of arXiv 1912.04958: a weight of its own for every image.

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


@contextmanager
def literal() -> Iterator[None]:
    """Within, the networks of generation 2 compute in the literal form. For one thread alone: it
    replaces functions of the modules, which are put back at the end."""
    with ExitStack() as stack:
        stack.enter_context(_replaced(synthesis, "modulated_conv", _modulated_conv))
        stack.enter_context(_replaced(resampling, "doubled", _doubled))
        stack.enter_context(_replaced(resampling, "halved", _halved))
        stack.enter_context(_replaced(resampling, "convolved_and_halved", _convolved_and_halved))
        yield


@contextmanager
def _replaced(module: ModuleType, name: str, function: Callable[..., Any]) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, function)
    try:
        yield
    finally:
        setattr(module, name, before)


def _modulated_conv(
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
    y = modulated_conv(x.multiplied(), weight, style, demodulate=True, up=up)
    if noise is not None:
        y = y + (noise * strength).to(y.dtype)
    return Features((y + bias.to(y.dtype)[:, None, None]) * gain)


def _doubled(x: Tensor) -> Tensor:
    return resample(x, 2, 1, (2, 1), gain=4.0)


def _halved(x: Tensor, gain: float = 1.0) -> Tensor:
    return resample(x, 1, 2, (1, 1), gain)


def _convolved_and_halved(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.conv2d(resample(x, 1, 1, (2, 2), gain=1.0), weight, bias, stride=2)
