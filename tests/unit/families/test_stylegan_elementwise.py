"""Features with a factor, and the sums written as a product of matrices: against the plain form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from gan_train.families.stylegan.elementwise import Features, add_bias_and_noise_


def operands(
    shape: tuple[int, ...] | None, dtype: torch.dtype, size: tuple[int, ...] = (4, 6, 5, 7)
) -> tuple[Tensor, ...]:
    """y [N, C, H, W] of `size`, bias and strength [N, C], noise of `shape` if any."""
    torch.manual_seed(0)
    sizes = [size, size[:2], size[:2]] + ([] if shape is None else [shape])
    return tuple(torch.randn(size, dtype=dtype) for size in sizes)


def summed(y: Tensor, bias: Tensor, strength: Tensor, noise: Tensor | None) -> Tensor:
    y = y + bias[:, :, None, None]
    return y if noise is None else y + noise * strength[:, :, None, None]


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("shape", [(4, 1, 5, 7), (5, 7), None])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_every_type_and_layout(
    dtype: torch.dtype, shape: tuple[int, ...] | None, layout: torch.memory_format
) -> None:
    y, bias, strength, *noise = operands(shape, dtype)
    y, given = y.contiguous(memory_format=layout), noise[0] if noise else None
    exact = None if given is None else given.double()
    expected = summed(*(t.double() for t in (y, bias, strength)), exact)
    found = add_bias_and_noise_(y, bias, given, strength)
    tolerance = {torch.bfloat16: 5e-2, torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance)
    assert found.data_ptr() == y.data_ptr()
    assert found.dtype == dtype and found.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("shape", [(2, 1, 2, 3), (2, 3), None])
def test_both_derivatives(shape: tuple[int, ...] | None, layout: torch.memory_format) -> None:
    y, bias, strength, *noise = operands(shape, torch.float64, (2, 3, 2, 3))
    given = [t.requires_grad_() for t in (y, bias, strength)]

    def function(y: Tensor, bias: Tensor, strength: Tensor) -> Tensor:
        fresh = (1 * y).contiguous(memory_format=layout)
        return add_bias_and_noise_(fresh, bias, noise[0] if noise else None, strength).tanh()

    assert gradcheck(function, given)
    assert gradgradcheck(function, given)


def test_the_factor_passes_a_rectifier_and_joins_the_next_style() -> None:
    y, style, factor = operands(None, torch.float64)
    factor = factor.exp()
    whole = Features(y, factor).materialise()
    torch.testing.assert_close(whole, y * factor[:, :, None, None])
    leaky = torch.nn.functional.leaky_relu
    rectified = Features(leaky(y, 0.2), factor)
    torch.testing.assert_close(rectified.materialise(), leaky(whole, 0.2))
    torch.testing.assert_close(
        rectified.values * rectified.modulation(style)[:, :, None, None],
        leaky(whole, 0.2) * style[:, :, None, None],
    )
    assert Features(y).materialise() is y and Features(y).modulation(style) is style
