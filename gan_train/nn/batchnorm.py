"""Batch normalisation with statistics over the batch of all workers, or of each worker alone.

Ioffe and Szegedy 2015, arXiv 1502.03167. Families that normalise by the batch take it from here.
With statistics of each worker alone, the result depends on the number of workers.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from gan_train.nn.collectives import active, all_sum

Statistics = Literal["synchronised", "per_worker"]
"""`synchronised` takes mean and variance over the global batch. `per_worker` takes them over each
worker's share of it, which needs no messages; training then depends on the number of workers."""

MOMENTUM = 0.1
"""The weight of the newest batch in the running statistics."""
EPSILON = 1e-5


class BatchNorm(nn.Module):
    """Maps x [N, C, *] to (x - mean) / sqrt(variance + 1e-5) * weight + bias, channel by channel.

    In training mode, mean and variance are those of the batch (of the micro-batch, where steps
    accumulate), and the running statistics follow them. Every worker must call the layer, with the
    same number of samples. In evaluation mode the running statistics are used, so that an image
    does not depend on its neighbours.

    With synchronised statistics only first derivatives exist: a gradient penalty raises
    RuntimeError. Running statistics fit the weights that they were measured with, and not a moving
    average of weights: `schedule.check` refuses a moving average beside this layer.
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
    workers' gradients afterwards. A gradient is linear in the incoming gradient, so the sums over
    all workers that `backward` takes give every worker the gradient of the sum of all losses.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        wide = x if x.dtype == torch.float64 else x.float()
        # both [C]; `var_mean` takes twenty times as long on a CPU
        mean, variance = torch.ops.aten.batch_norm_update_stats(wide, None, None, MOMENTUM)
        # one message carries E[x] and E[x^2], in float64 so that their difference is exact enough
        mean, variance = mean.double(), variance.double()
        count = torch.full_like(mean[:1], x.numel() // x.shape[1])
        sums = all_sum(torch.cat([count, mean * count, (variance + mean.square()) * count]))
        total = sums[:1]
        mean, square = (sums[1:] / total).chunk(2)
        variance = square - mean.square()
        kind = weight.dtype
        unbiased = variance * total / (total - 1)
        mean, variance, unbiased = mean.to(kind), variance.to(kind), unbiased.to(kind)
        ctx.save_for_backward(x, weight, mean, variance, total)
        y = F.batch_norm(x, mean, variance, weight, bias, False, 0.0, EPSILON)
        ctx.mark_non_differentiable(mean, unbiased)
        return y, mean, unbiased

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight, mean, variance, total = ctx.saved_tensors
        kind = weight.dtype
        wide, dy = x.to(kind), dy.to(kind)
        # one pass gives dy weight / sqrt(variance), as if the statistics were constants, and the
        # sums over this worker's share
        dx, d_weight, d_bias = torch.ops.aten.native_batch_norm_backward(
            dy, wide, weight, mean, variance, None, None, False, EPSILON, [True, True, True]
        )
        sums = all_sum(torch.cat([d_bias, d_weight]).double()) / total
        along_one, along_normal = sums.to(kind).chunk(2)
        # dL/dx = weight / sqrt(variance) (dy - mean(dy) - normal mean(dy normal)); the part that is
        # subtracted is linear in x, channel by channel, so a normalisation can compute it
        factor = weight * (variance + EPSILON).rsqrt()  # [C]
        dx -= F.batch_norm(
            wide, mean, variance, factor * along_normal, factor * along_one, False, 0.0, EPSILON
        )
        return dx.to(x.dtype), d_weight, d_bias
