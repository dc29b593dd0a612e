"""Second derivatives of convolutions, by finite differences and against float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from gan_train.nn import convolution
from gan_train.nn.convolution import conv2d, conv_transpose2d
from gan_train.nn.layers import EqualizedConv2d

FORMS = {
    "same": (partial(conv2d, padding=1), (4, 3, 3, 3)),
    "one pixel": (conv2d, (4, 3, 1, 1)),
    "downsampling": (partial(conv2d, stride=2), (4, 3, 3, 3)),
    "upsampling": (partial(conv_transpose2d, stride=2), (3, 4, 3, 3)),
}


@pytest.fixture
def always_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64, which finite differences need, PyTorch's form would run."""
    monkeypatch.setattr(convolution, "uses_own_derivatives", lambda x: True)


@pytest.mark.usefixtures("always_own")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_derivatives_are_those_of_finite_differences(
    form: str, layout: torch.memory_format
) -> None:
    function, shape = FORMS[form]
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64).contiguous(memory_format=layout)
    weight = torch.randn(shape, dtype=torch.float64).contiguous(memory_format=layout)
    operands: tuple[Tensor, ...] = (x.requires_grad_(), weight.requires_grad_())
    if form != "upsampling":
        operands += (torch.randn(4, dtype=torch.float64, requires_grad=True),)
    assert torch.autograd.gradcheck(function, operands)
    assert torch.autograd.gradgradcheck(function, operands)


def penalty_gradients(
    function: Callable[..., Tensor], x: Tensor, weight: Tensor, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """What R1 moves the filters by: the gradient of |dL/dx|^2, and dL/dw."""
    x, weight = x.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()
    y = torch.nn.functional.softplus(function(x, weight).to(dtype)).square()
    of_x, of_weight = torch.autograd.grad(y.sum(), (x, weight), create_graph=True)
    (second,) = torch.autograd.grad(of_x.square().sum(), weight)
    return of_weight.detach().double(), second.double()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("side", [8, 16, 32])
def test_a_gradient_penalty_in_bfloat16(form: str, side: int) -> None:
    """Within rounding of float64, at sizes at which PyTorch's own derivative is not."""
    function, shape = FORMS[form]
    torch.manual_seed(0)
    inputs, outputs = 24, 24
    x = torch.randn(8, inputs, side, side).bfloat16()
    weight = (torch.randn(inputs, outputs, *shape[2:]) / 15).bfloat16()
    expected = penalty_gradients(function, x, weight, torch.float64)
    found = penalty_gradients(function, x, weight, torch.bfloat16)
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() < 0.03 * b.norm()


@pytest.mark.parametrize("resample", [None, "up", "down"])
def test_the_layers_of_all_families_have_right_second_derivatives(resample: str | None) -> None:
    """A gradient penalty through EqualizedConv2d in bfloat16, against float32."""
    torch.manual_seed(0)
    layer = EqualizedConv2d(16, 16, 3, resample=resample).to(memory_format=torch.channels_last)
    image = torch.randn(4, 16, 16, 16).contiguous(memory_format=torch.channels_last)
    found = {}
    for bf16 in (False, True):
        x = image.clone().requires_grad_(True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            y = layer(torch.tanh(x)).square()
            (gradient,) = torch.autograd.grad(y.sum(), x, create_graph=True)
            (found[bf16],) = torch.autograd.grad(gradient.square().sum(), layer.weight)
    assert torch.cosine_similarity(found[True].flatten(), found[False].flatten(), dim=0) > 0.99
