"""Layers that two or more families share. Nothing here knows of workers or clocks."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gan_train.nn.convolution import compute_dtype, conv2d, conv_transpose2d
from gan_train.rng import BatchRandom


class EqualizedLinear(nn.Module):
    """Linear layer whose weights are N(0, 1) and scaled by He's constant at run time.

    Equalised learning rate: Karras et al. 2017 (arXiv 1710.10196), section 4.1. `gain` is He's
    gain, sqrt(2) before a rectifier and 1 before a linear output. [N, inputs] -> [N, outputs].
    """

    def __init__(self, inputs: int, outputs: int, gain: float = math.sqrt(2), bias: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.scale = gain / math.sqrt(inputs)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):  # cheap, so it keeps full precision
            # scaling x is cheaper than scaling the weight, which is larger
            return F.linear(x.to(self.weight.dtype) * self.scale, self.weight, self.bias)


class EqualizedConv2d(nn.Module):
    """Convolution with equalised learning rate (see `EqualizedLinear`) and "same" padding.

    `resample` fuses a change of size into the convolution: "up" equals `upsample` followed by the
    3x3 convolution, "down" equals the convolution followed by `downsample`. Either is one 4x4
    convolution of stride 2 whose kernel is the 3x3 kernel summed over 2x2 shifts: the same function
    for 16/36 of the arithmetic. The sums are one matrix product: adding shifted kernels, with its
    derivative, takes four to six times as long.
    """

    spread: Tensor

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        gain: float = math.sqrt(2),
        resample: str | None = None,
    ):
        super().__init__()
        assert resample in (None, "up", "down") and (resample is None or kernel == 3)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.scale = gain / math.sqrt(inputs * kernel * kernel)
        self.resample = resample
        if resample is not None:
            self.register_buffer("spread", _spread(resample), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        kind = compute_dtype(x)
        x, bias = x.to(kind), self.bias.to(kind)
        if self.resample is None:
            weight = (self.weight * self.scale).to(kind)
            return conv2d(x, weight, bias, padding=weight.shape[-1] // 2)
        if self.resample == "down":
            return conv2d(x, self._kernel(kind, (0, 1)), bias, stride=2, padding=1)
        return conv_transpose2d(x, self._kernel(kind, (1, 0)), bias, stride=2, padding=1)

    def _kernel(self, kind: torch.dtype, order: tuple[int, int]) -> Tensor:
        """The kernel [O, I, 4, 4] that also resamples, or [I, O, 4, 4] for the order (1, 0)."""
        weight = self.weight.permute(2, 3, *order)  # [3, 3, O, I]
        with torch.autocast(weight.device.type, enabled=False):  # cheap, and weights are float32
            kernel = (self.spread * self.scale) @ weight.flatten(0, 1).flatten(1)  # [16, O * I]
        kernel = kernel.view(4, 4, *weight.shape[2:]).permute(2, 3, 0, 1).to(kind)
        # in the layout of the weights, or every convolution and derivative would convert it
        if self.weight.is_contiguous():
            return kernel.contiguous()
        return kernel.contiguous(memory_format=torch.channels_last)


def _spread(resample: str) -> Tensor:
    """The matrix [16, 9] that turns 3x3 kernels into those of 4x4 which also resample."""
    shifts = [[1.0, 0, 0], [1, 1, 0], [0, 1, 1], [0, 0, 1]]  # two of them, summed
    line = torch.tensor(shifts, device="cpu")  # on "meta", PyTorch would import for seconds
    if resample == "down":
        return torch.kron(line / 2, line / 2)
    # a transposed convolution correlates with the flipped kernel
    return torch.kron(line.flip(0), line.flip(0))


class Maxout(nn.Module):
    """Each unit is the largest of several linear functions. [N, inputs] -> [N, units].

    Goodfellow et al. 2013, arXiv 1302.4389, section 2.
    """

    def __init__(self, inputs: int, units: int, pieces: int):
        super().__init__()
        self.linear = nn.Linear(inputs, units * pieces)
        self.pieces = pieces

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).unflatten(1, (-1, self.pieces)).amax(dim=2)


def he_start(module: nn.Module) -> None:
    """Give a linear layer weights ~ N(0, 2 / inputs) and biases 0; for `Module.apply`.

    He et al. 2015 (arXiv 1502.01852), equation 10: rectifiers then keep the size of a signal. With
    smaller weights a generator's images hardly depend on z, and training collapses.
    """
    if isinstance(module, nn.Linear):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.zeros_(module.bias)


def dropout(x: Tensor, rate: float, random: BatchRandom) -> Tensor:
    """Set a share `rate` of the values of x [N, D] to zero and divide the others by 1 - rate.

    Srivastava et al. 2014, JMLR 15. The zeros of a sample depend neither on the number of workers
    nor on the micro-batches, because `random` draws for each sample.
    """
    if rate == 0:
        return x
    kept = random.uniform(x.shape[1]) >= rate
    return x * kept.to(x.dtype) / (1 - rate)


def pixel_norm(x: Tensor) -> Tensor:
    """Scale every pixel's feature vector to unit mean square, over dim 1.

    Karras et al. 2017, section 4.2: b = a / sqrt(mean_j a_j^2 + 1e-8).
    """
    return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + 1e-8)


def minibatch_stddev(x: Tensor, group: int) -> Tensor:
    """Append a channel with the standard deviation across groups of neighbouring samples.

    Karras et al. 2017, section 3: the deviation of each feature at each place over the group,
    averaged over features and places to one number. [N, C, H, W] -> [N, C+1, H, W]. N must be a
    multiple of `group`. A group consists of neighbours, so that groups do not depend on how the
    global batch is split over workers.
    """
    n, c, h, w = x.shape
    assert n % group == 0, f"batch {n} is no multiple of the group {group}"
    y = x.to(torch.promote_types(x.dtype, torch.float32)).reshape(n // group, group, c, h, w)
    y = y - y.mean(dim=1, keepdim=True)
    y = (y.square().mean(dim=1) + 1e-8).sqrt()  # [N/group, C, H, W]
    y = y.mean(dim=(1, 2, 3))  # [N/group]
    y = y.repeat_interleave(group).to(x.dtype).view(n, 1, 1, 1).expand(n, 1, h, w)
    return torch.cat([x, y], dim=1)


def upsample(x: Tensor) -> Tensor:
    """Repeat every pixel in both directions. [N, C, H, W] -> [N, C, 2H, 2W]."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


def downsample(x: Tensor) -> Tensor:
    """Take the mean of every 2x2 pixels. [N, C, 2H, 2W] -> [N, C, H, W]."""
    return F.avg_pool2d(x, 2)
