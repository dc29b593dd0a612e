"""Layers against their definitions, in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from gan_train.nn.layers import (
    EqualizedConv2d,
    EqualizedLinear,
    downsample,
    minibatch_stddev,
    pixel_norm,
    upsample,
)


def test_fused_upsampling_is_nearest_then_convolution() -> None:
    conv = EqualizedConv2d(3, 5, 3, resample="up").double()
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    plain = F.conv2d(upsample(x), conv.weight * conv.scale, conv.bias, padding=1)
    torch.testing.assert_close(conv(x), plain, rtol=0, atol=1e-12)


def test_fused_downsampling_is_convolution_then_mean() -> None:
    conv = EqualizedConv2d(3, 5, 3, resample="down").double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    plain = downsample(F.conv2d(x, conv.weight * conv.scale, conv.bias, padding=1))
    torch.testing.assert_close(conv(x), plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize("gain", [1.0, math.sqrt(2)])
def test_equalised_layers_have_he_variance(gain: float) -> None:
    """Weights N(0, 1); He's constant gain / sqrt(fan in) acts at run time."""
    torch.manual_seed(0)
    linear, conv = EqualizedLinear(400, 300, gain), EqualizedConv2d(40, 300, 3, gain)
    assert abs(linear.weight.std() - 1) < 0.02 and abs(conv.weight.std() - 1) < 0.02
    y = linear(torch.randn(500, 400))
    assert abs(y.std() / gain - 1) < 0.05
    z = conv(torch.randn(20, 40, 9, 9))[:, :, 1:-1, 1:-1]
    assert abs(z.std() / gain - 1) < 0.05


def test_pixel_norm_is_the_formula() -> None:
    x = torch.randn(2, 16, 3, 3, dtype=torch.float64)
    expected = x / torch.sqrt((x**2).sum(dim=1, keepdim=True) / 16 + 1e-8)
    torch.testing.assert_close(pixel_norm(x), expected, rtol=0, atol=1e-12)


def test_minibatch_stddev_is_the_formula_per_group_of_neighbours() -> None:
    x = torch.randn(8, 3, 2, 2)
    out = minibatch_stddev(x, 4)
    assert out.shape == (8, 4, 2, 2)
    for group in (0, 1):
        part = x[4 * group : 4 * group + 4]
        expected = (part.var(dim=0, unbiased=False) + 1e-8).sqrt().mean()
        torch.testing.assert_close(out[4 * group : 4 * group + 4, 3], expected.expand(4, 2, 2))
    assert minibatch_stddev(x[:1].expand(4, 3, 2, 2), 4)[:, 3].max() < 2e-4  # collapsed
