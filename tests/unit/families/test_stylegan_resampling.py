"""The fast changes of size against their literal form in float64, to the second derivative."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gan_train.families.stylegan.plain import resample
from gan_train.families.stylegan.resampling import (
    BLUR,
    TAPS,
    apply_filter,
    convolve_downsample,
    downsample,
    upsample,
    upsample_convolve,
)
from tests.unit.families.small import normal

Map = Callable[[Tensor, Tensor], Tensor]
"""From x [N, 3, H, W] and a weight [5, 3, 3, 3], which may be left unused."""


def stuffed_convolution(x: Tensor, weight: Tensor) -> Tensor:
    """Zeros after every place, every tap spread forward, filter: written as a plain correlation."""
    n, c, h, w = x.shape
    y = x.new_zeros(n, c, 2 * h - 1, 2 * w - 1)
    y[:, :, ::2, ::2] = x
    y = F.conv2d(F.pad(y, (2, 2, 2, 2)), weight.flip(2, 3))  # [N, O, 2H+1, 2W+1]
    return resample(y, 1, 1, (1, 1), gain=4.0)


def blurred(x: Tensor) -> Tensor:
    """Each pixel's mean with the weights 1, 2, 1 in both directions; zero outside."""
    y = F.pad(x, (1, 1, 1, 1))
    y = (y[:, :, :-2] + 2 * y[:, :, 1:-1] + y[:, :, 2:]) / 4
    return (y[..., :-2] + 2 * y[..., 1:-1] + y[..., 2:]) / 4


PAIRS: dict[str, tuple[Map, Map]] = {
    "downsample": (lambda x, w: downsample(x), lambda x, w: resample(x, 1, 2, (1, 1), 1.0)),
    "upsample": (lambda x, w: upsample(x), lambda x, w: resample(x, 2, 1, (2, 1), 4.0)),
    "filtered 1": (
        lambda x, w: apply_filter(x, padding=1, gain=4.0),
        lambda x, w: resample(x, 1, 1, (1, 1), 4.0),
    ),
    "filtered 2": (
        lambda x, w: apply_filter(x, padding=2),
        lambda x, w: resample(x, 1, 1, (2, 2), 1.0),
    ),
    "blurred": (lambda x, w: apply_filter(x, padding=1, taps=BLUR), lambda x, w: blurred(x)),
    "convolved and downsampled": (
        convolve_downsample,
        lambda x, w: F.conv2d(resample(x, 1, 1, (2, 2), 1.0), w, stride=2),
    ),
    "upsampled and convolved": (upsample_convolve, stuffed_convolution),
}
BY_NAME = pytest.mark.parametrize(("fast", "literal"), PAIRS.values(), ids=PAIRS.keys())


def outcomes(of: Map, x: Tensor, weight: Tensor) -> list[Tensor]:
    """Value, both gradients of a loss that is not linear, and both gradients of a penalty on the
    first of them, as R1 and the path length take them."""
    x, weight = x.detach().requires_grad_(True), weight.detach().requires_grad_(True)
    y = of(x, weight)
    (by_x,) = torch.autograd.grad(F.softplus(y).sum(), x, create_graph=True)
    penalty = by_x.square().sum() + F.softplus(y).sum()
    found = torch.autograd.grad(penalty, [x, weight], allow_unused=True)
    return [y, by_x, *(g for g in found if g is not None)]


@BY_NAME
@pytest.mark.parametrize("size", [(4, 4), (8, 6)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_values_and_derivatives(
    fast: Map, literal: Map, size: tuple[int, int], layout: torch.memory_format
) -> None:
    x, weight = normal(2, 3, *size), normal(5, 3, 3, 3, seed=2)
    expected = outcomes(literal, x, weight)
    found = outcomes(fast, x.contiguous(memory_format=layout), weight)
    assert len(expected) == len(found) >= 3
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


@BY_NAME
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)], ids=["f32", "bf16"]
)
def test_lower_precision(fast: Map, literal: Map, dtype: torch.dtype, tolerance: float) -> None:
    """Within the precision's rounding of float64; the type stays."""
    x, weight = normal(2, 3, 8, 8), normal(5, 3, 3, 3, seed=2)
    for layout in (torch.contiguous_format, torch.channels_last):
        low = x.to(dtype).contiguous(memory_format=layout)
        found = outcomes(fast, low, weight.to(dtype))
        assert all(a.dtype == dtype for a in found)
        for a, b in zip(found, outcomes(literal, x, weight), strict=True):
            largest = float(b.detach().abs().max())
            torch.testing.assert_close(a.double(), b, rtol=0, atol=tolerance * largest)


@pytest.mark.parametrize(
    "of",
    [
        downsample,
        upsample,
        lambda x: apply_filter(x, padding=1, gain=4.0),
        lambda x: apply_filter(x, padding=2),
        lambda x: apply_filter(x, padding=1, taps=BLUR),
    ],
    ids=["downsample", "upsample", "filtered 1", "filtered 2", "blurred"],
)
def test_every_derivative_is_right(of: Callable[[Tensor], Tensor]) -> None:
    """Against finite differences, first and second order; the cube makes the second one matter."""
    x = normal(1, 3, 4, 4).requires_grad_(True)
    assert torch.autograd.gradcheck(of, (x,))
    assert torch.autograd.gradgradcheck(lambda x: of(x**3), (x,))


def inner(x: Tensor, border: int = 3) -> Tensor:
    return x[:, :, border:-border, border:-border]


def test_translation() -> None:
    """Away from the border a shift before is a shift after: of 2 pixels by 1 in downsampling, of 2
    by 4 in upsampling."""
    x = normal(2, 3, 24, 24)
    shifted = x.roll((2, -2), dims=(2, 3))
    torch.testing.assert_close(
        inner(downsample(shifted)), inner(downsample(x).roll((1, -1), dims=(2, 3)))
    )
    twice = upsample(x).roll((4, -4), dims=(2, 3))
    torch.testing.assert_close(inner(upsample(shifted), 8), inner(twice, 8))


def test_a_constant_stays_inside() -> None:
    x = torch.ones(1, 2, 8, 8, dtype=torch.float64)
    for y in (
        downsample(x),
        upsample(x),
        apply_filter(x, 2, taps=TAPS),
        apply_filter(x, 1, taps=BLUR),
    ):
        torch.testing.assert_close(inner(y, 2), torch.ones_like(inner(y, 2)))
        assert (y[:, :, 0] < 0.9).all()  # outside is zero


def test_downsampling_undoes_upsampling_of_what_is_smooth() -> None:
    """No shift is left over: the two filters' phases cancel."""
    row = torch.arange(32, dtype=torch.float64) * 2 * math.pi / 16
    x = torch.sin(row)[:, None] + torch.cos(row + 1)[None]
    x = x[None, None]
    error = inner(downsample(upsample(x)) - x).abs().max() / x.abs().max()
    assert error < 0.1
    for shift in (-1, 1):
        assert inner(downsample(upsample(x)).roll(shift, 2) - x).abs().max() > 0.3
