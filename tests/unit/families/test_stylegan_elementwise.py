"""Scale, bias and noise: the sums written as a product of matrices are the plain sums."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from gan_train.families.stylegan import elementwise
from gan_train.families.stylegan.elementwise import scaled_and_shifted


def operands(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """y [4, 6, 5, 7] in channels_last, bias [6], noise of `shape`."""
    torch.manual_seed(0)
    y = torch.randn(4, 6, 5, 7, dtype=dtype).contiguous(memory_format=torch.channels_last)
    return y, torch.randn(6, dtype=dtype), torch.randn(shape, dtype=dtype)


@pytest.mark.parametrize("shape", [(4, 1, 5, 7), (5, 7)])
def test_the_product_is_the_sum_with_its_derivatives(shape: tuple[int, ...]) -> None:
    given = tuple(t.requires_grad_() for t in operands(shape, torch.float64))
    y, bias, noise = given
    shifted = elementwise._Shifted.apply(*given)
    torch.testing.assert_close(shifted, y + bias[:, None, None] + noise)
    assert shifted.is_contiguous(memory_format=torch.channels_last)
    assert gradcheck(elementwise._Shifted.apply, given)
    assert gradgradcheck(elementwise._Shifted.apply, given)
    torch.testing.assert_close(elementwise._Shifted.apply(y, bias, None), y + bias[:, None, None])


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("noisy", [True, False])
def test_every_type_and_layout(
    layout: torch.memory_format, dtype: torch.dtype, noisy: bool
) -> None:
    y, bias, noise = operands((4, 1, 5, 7), dtype)
    y, scale = y.contiguous(memory_format=layout), torch.rand(4, 6, dtype=dtype)
    exact = [t.double() for t in (y, scale, bias, noise)]
    expected = exact[0] * exact[1][:, :, None, None] + exact[2][:, None, None]
    got = scaled_and_shifted(y, scale, bias, noise if noisy else None)
    torch.testing.assert_close(
        got.double(), expected + exact[3] if noisy else expected, rtol=0, atol=5e-2
    )
    assert got.dtype == dtype and got.is_contiguous(memory_format=layout)
