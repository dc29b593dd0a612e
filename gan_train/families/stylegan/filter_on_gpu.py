"""Upsample, filter and downsample feature maps in one pass on a GPU, by a kernel in Triton.

A filter of 4x4 taps is bound by memory, so a pass that reads and writes each value once is as fast
as it gets. cuDNN's depthwise convolution takes thirty times as long on an H100, which was three
quarters of a StyleGAN2 step (`docs/decisions/0040-filters-on-a-gpu.md`).

Triton comes with PyTorch's builds for CUDA. Where it is absent, `resampling.py` convolves.
"""

from __future__ import annotations

import functools
import importlib.util

import torch
from torch import Tensor

MOST_TAPS = 4
_BLOCK = 1024  # output values of one program


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def applies_to(x: Tensor) -> bool:
    """Whether `resample` takes x: on a GPU, and in a type whose sums float32 can hold."""
    return x.is_cuda and x.dtype != torch.float64 and _installed()


def resample(
    x: Tensor, taps: tuple[float, ...], gain: float, *, up: int, down: int, padding: int, side: int
) -> Tensor:
    """Put up - 1 zeros behind each pixel of x [N, C, H, W] along both axes, convolve with the outer
    product of `taps` (symmetric, at most 4) scaled to the sum `gain`, and keep every `down`-th
    pixel. [N, C, H + side, W + side] times up / down, in the type and memory format of x.

    The first result is centred so that `padding` zeros precede the image. Sums are float32. The
    order of sums is fixed, so results have the same bits every time.
    """
    from gan_train.families.stylegan.filter_kernel import resample_rows

    n, c, h, w = x.shape
    oh, ow = (h * up + side) // down, (w * up + side) // down
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    layout = torch.channels_last if last else torch.contiguous_format
    x = x.contiguous(memory_format=layout)
    y = torch.empty((n, c, oh, ow), device=x.device, dtype=x.dtype, memory_format=layout)
    # in memory, x is so many planes of H rows of W pixels of so many values
    planes, inner = (n, c) if last else (n * c, 1)
    blocks = -(-oh * ow * inner // _BLOCK)
    tap = [*taps, *[0.0] * (MOST_TAPS - len(taps))]
    with torch.cuda.device_of(x):
        resample_rows[(planes * blocks,)](
            *(x, y, blocks, h, w, inner, oh, ow, *tap, gain / sum(taps) ** 2, padding),
            TAPS=len(taps),
            UP=up,
            DOWN=down,
            BLOCK=_BLOCK,
        )
    return y
