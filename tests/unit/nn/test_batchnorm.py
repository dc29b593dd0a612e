"""Batch normalisation over all workers: the same numbers and gradients as in one process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from gan_train.nn.batchnorm import BatchNorm, Statistics
from gan_train.training.averaging import GradientAverage
from tests.training import run_workers


def _images(dtype: torch.dtype = torch.float64) -> Tensor:
    """[12, 3, 5, 4], with channels far from 0 and of unlike spread, and unlike halves."""
    x = torch.randn(12, 3, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = x * torch.tensor([1.0, 0.1, 30.0]).view(3, 1, 1) + torch.tensor([0.0, 50.0, -9.0]).view(
        3, 1, 1
    )
    x[7:] *= 1.5
    return x.to(dtype)


def _layer(statistics: Statistics, dtype: torch.dtype) -> BatchNorm:
    layer = BatchNorm(3, statistics).to(dtype)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([0.5, -2.0, 3.0]))
        layer.bias.copy_(torch.tensor([0.1, 0.0, -1.0]))
    return layer


def _loss(y: Tensor) -> Tensor:
    """A mean over the samples in which no gradient cancels."""
    return (y * torch.arange(20.0, dtype=y.dtype).view(5, 4).sin() + y.square().sin()).mean()


def _trained(statistics: Statistics, dtype: torch.dtype, share: slice) -> dict[str, Tensor]:
    """Two steps on these samples: outputs, gradients as the trainer averages them, statistics."""
    layer = _layer(statistics, dtype)
    x = _images(dtype)[share].requires_grad_(True)
    _loss(layer(x * 2 + 1)).backward()
    layer.zero_grad()
    x.grad = None
    y = layer(x)
    with GradientAverage().of_backward("", list(layer.parameters())):
        _loss(y).backward()
    return {
        "y": y.detach(),
        "x": x.grad,
        "weight": layer.weight.grad,
        "bias": layer.bias.grad,
        **dict(layer.named_buffers()),
    }


def _difference(one: dict[str, Tensor], statistics: Statistics) -> float:
    """The largest one between this worker's numbers and one process's, relative to their size."""
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    share = slice(rank, None, world)
    mine = _trained(statistics, one["y"].dtype, share)
    one = {**one, "y": one["y"][share], "x": one["x"][share] * world}  # of a mean over its share
    found = [float((mine[name] - one[name]).abs().max() / one[name].abs().max()) for name in one]
    return max(found)


def _half_precision() -> None:
    x = _images(torch.float32)[torch.distributed.get_rank() :: 2]
    layer = _layer("synchronised", torch.float32)
    wide = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrow = layer(x.bfloat16().requires_grad_(True))
        narrow.float().square().mean().backward()
    assert narrow.dtype == torch.bfloat16 and layer.weight.grad is not None
    torch.testing.assert_close(narrow.float()[:, ::2], wide[:, ::2], rtol=0.05, atol=0.1)


def _second_derivative() -> None:
    x = _images().requires_grad_(True)
    y = _layer("synchronised", torch.float64)(x)
    (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.square().sum().backward()


def _compare(wide: dict[str, Tensor], narrow: dict[str, Tensor]) -> None:
    assert _difference(wide, "synchronised") < 1e-12
    assert _difference(narrow, "synchronised") < 1e-4
    assert _difference(wide, "per_worker") > 1e-2  # by design
    _half_precision()
    _second_derivative()


def test_workers_normalise_and_differentiate_like_one(tmp_path: Path) -> None:
    one = [_trained("synchronised", dtype, slice(None)) for dtype in (torch.float64, torch.float32)]
    run_workers(2, tmp_path, _compare, *one)


@pytest.mark.parametrize("statistics", ["synchronised", "per_worker"])
def test_one_process_is_the_formula(statistics: Statistics) -> None:
    layer, x = _layer(statistics, torch.float64), _images()
    mean = x.mean(dim=(0, 2, 3), keepdim=True)
    variance = x.var(dim=(0, 2, 3), correction=0, keepdim=True)
    expected = (x - mean) / (variance + 1e-5).sqrt()
    expected = expected * layer.weight.view(3, 1, 1) + layer.bias.view(3, 1, 1)
    torch.testing.assert_close(layer(x), expected)
    unbiased = variance.flatten() * 240 / 239
    torch.testing.assert_close(layer.running_mean, 0.1 * mean.flatten())
    torch.testing.assert_close(layer.running_variance, 0.9 + 0.1 * unbiased)
    # in evaluation mode a sample does not depend on the others, and nothing moves
    layer.eval()
    torch.testing.assert_close(layer(x)[:1], layer(x[:1]), rtol=0, atol=0)
    torch.testing.assert_close(layer.running_mean, 0.1 * mean.flatten())
