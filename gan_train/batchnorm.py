"""Batch normalisation whose statistics, where wanted, are those of the batch over all workers.

Ioffe and Szegedy 2015, arXiv 1502.03167. Families that normalise by the batch take it from here:
with statistics of each worker's share, two workers train another network than one.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from gan_train.distributed import active, all_sum

Statistics = Literal["synchronised", "per_worker"]
"""`synchronised`: mean and variance over the global batch. `per_worker`: over each worker's share
of it, without messages; the training then depends on the number of workers, by design."""

MOMENTUM = 0.1
"""Share of the newest batch in the running statistics."""
EPSILON = 1e-5


class BatchNorm(nn.Module):
    """x [N, C, *] to (x - mean) / sqrt(variance + 1e-5) * weight + bias, channel by channel.

    In training mode, mean and variance are those of the batch (of the micro-batch, where steps
    accumulate), and the running ones follow; every worker must then call it, with as many samples.
    In evaluation mode they are the running ones, so an image does not depend on its neighbours.

    Synchronised statistics have first derivatives alone: a gradient penalty raises RuntimeError.
    Running statistics belong to the weights that they were gathered with, not to an average of
    weights: `schedule.check` refuses the two together.
    """

    running_mean: Tensor
    running_variance: Tensor

    def __init__(self, channels: int, statistics: Statistics = "synchronised") -> None:
        super().__init__()
        self.synchronised = statistics == "synchronised"
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_variance", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.synchronised and active():
            y, mean, variance = _OverAllWorkers.apply(x, self.weight, self.bias)  # type: ignore[no-untyped-call]
            self.running_mean.lerp_(mean, MOMENTUM)
            self.running_variance.lerp_(variance, MOMENTUM)
            normalised: Tensor = y
            return normalised
        running = self.running_mean, self.running_variance
        return F.batch_norm(x, *running, self.weight, self.bias, self.training, MOMENTUM, EPSILON)


class _OverAllWorkers(torch.autograd.Function):
    """y, mean and unbiased variance of x [N, C, *] over all workers' samples.

    Every worker backpropagates the mean loss of its own share, and the trainer averages the
    gradients. As the gradient is linear in the incoming one, sums over the workers of what each
    worker got give each the gradient of all losses, before that average.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        wide = x if x.dtype == torch.float64 else x.float()
        variance, mean = torch.var_mean(wide, dim=_all_but_channels(x), correction=0)  # [C]
        # one message: E[x] and E[x^2], in float64 so that their difference is exact enough
        mean, variance = mean.double(), variance.double()
        count = torch.full_like(mean[:1], x.numel() // x.shape[1])
        sums = all_sum(torch.cat([count, mean * count, (variance + mean.square()) * count]))
        total = sums[:1]
        mean, square = (sums[1:] / total).chunk(2)
        variance = square - mean.square()
        scale = (variance + EPSILON).rsqrt()  # [C]
        ctx.save_for_backward(x, weight, mean, scale, total)
        y = F.batch_norm(x, mean.to(weight), variance.to(weight), weight, bias, False, 0.0, EPSILON)
        unbiased = variance * total / (total - 1)
        mean, unbiased = mean.to(weight), unbiased.to(weight)
        ctx.mark_non_differentiable(mean, unbiased)
        return y, mean, unbiased

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight, mean, scale, total = ctx.saved_tensors
        kind, dims = weight.dtype, _all_but_channels(x)
        mean, scale = _per_channel(mean.to(kind), x), _per_channel(scale.to(kind), x)
        normal = (x.to(kind) - mean) * scale
        dy = dy.to(kind)
        d_bias, d_weight = dy.sum(dims), (dy * normal).sum(dims)  # [C], of this worker's share
        sums = all_sum(torch.cat([d_bias, d_weight]).double()) / total
        along_one, along_normal = (_per_channel(part.to(kind), x) for part in sums.chunk(2))
        # dL/dx = weight / sqrt(variance) (dy - mean(dy) - normal mean(dy normal))
        dx = (dy - along_one - normal * along_normal) * (_per_channel(weight, x) * scale)
        return dx.to(x.dtype), d_weight, d_bias


def _all_but_channels(x: Tensor) -> list[int]:
    return [0, *range(2, x.ndim)]


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    """values [C] in the shape [1, C, 1, ...] of x [N, C, *]."""
    return values.view(1, -1, *[1] * (x.ndim - 2))
