"""Convolutions for losses that hold gradients, such as R1 and path lengths: right in bfloat16, too.

PyTorch's own second derivative takes the gradient for a forward convolution with filters as large
as the picture, which processors with AMX compute wrongly in bfloat16, without a word (torch 2.13:
padding 1, some sizes from 8 pixels on; with ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 it is right). R1's
gradients of whole layers were noise.

A convolution is linear in its input and in its filters, so the derivatives of its derivatives are
again one of three: a convolution, a gradient of the input, a gradient of the filters. They are
written down as such.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

aten = torch.ops.aten


@dataclass(frozen=True)
class _Form:
    stride: int
    padding: int
    transposed: bool

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        stride, padding = [self.stride] * 2, [self.padding] * 2
        y: Tensor = aten.convolution(
            x, weight, bias, stride, padding, [1, 1], self.transposed, [0, 0], 1
        )
        return y

    def backward(
        self, gradient: Tensor, x: Tensor, weight: Tensor, wanted: Sequence[bool]
    ) -> tuple[Any, Any, Any]:
        """The gradients of input, filters and bias, as far as wanted. For that of the input the
        shape alone of x counts, for that of the filters the shape alone of the weight."""
        stride, padding, outputs = [self.stride] * 2, [self.padding] * 2, [gradient.shape[1]]
        found: tuple[Any, Any, Any] = aten.convolution_backward(
            gradient,
            x,
            weight,
            outputs,
            stride,
            padding,
            [1, 1],
            self.transposed,
            [0, 0],
            1,
            wanted,
        )
        return found


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, form: _Form) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.form = form
        return form.forward(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,), (x, weight), wanted = gradients, ctx.saved_tensors, ctx.needs_input_grad[:3]
        if not torch.is_grad_enabled():  # the last derivative: all at once
            return *ctx.form.backward(gradient, x, weight, wanted), None
        of_x = _apply(_InputGradient, gradient, weight, x.detach(), ctx.form) if wanted[0] else None
        of_weight = (
            _apply(_WeightGradient, x, gradient, weight.detach(), ctx.form) if wanted[1] else None
        )
        of_bias = gradient.sum(dim=(0, 2, 3)) if wanted[2] else None
        return of_x, of_weight, of_bias, None


class _InputGradient(torch.autograd.Function):
    """The gradient of the input, which is linear in that of the output and in the filters."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, weight: Tensor, x: Tensor, form: _Form) -> Tensor:
        ctx.save_for_backward(gradient, weight)
        ctx.form = form
        of_x: Tensor = form.backward(gradient, x, weight, (True, False, False))[0]
        return of_x

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (second,), (gradient, weight) = gradients, ctx.saved_tensors
        of_gradient = of_weight = None
        if ctx.needs_input_grad[0]:
            of_gradient = _apply(_Convolve, second, weight, None, ctx.form)
        if ctx.needs_input_grad[1]:
            of_weight = _apply(_WeightGradient, second, gradient, weight.detach(), ctx.form)
        return of_gradient, of_weight, None, None


class _WeightGradient(torch.autograd.Function):
    """The gradient of the filters, which is linear in the input and in that of the output."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gradient: Tensor, weight: Tensor, form: _Form) -> Tensor:
        ctx.save_for_backward(x, gradient)
        ctx.form = form
        of_weight: Tensor = form.backward(gradient, x, weight, (False, True, False))[1]
        return of_weight

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (second,), (x, gradient) = gradients, ctx.saved_tensors
        of_x = of_gradient = None
        if ctx.needs_input_grad[0]:
            of_x = _apply(_InputGradient, gradient, second, x.detach(), ctx.form)
        if ctx.needs_input_grad[1]:
            of_gradient = _apply(_Convolve, x, second, None, ctx.form)
        return of_x, of_gradient, None, None


def _apply(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    return function.apply(*arguments)


def compute_dtype(x: Tensor) -> torch.dtype:
    """What convolutions run in: bfloat16 under autocast, else the type of x."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def uses_own_derivatives(x: Tensor) -> bool:
    """Whether convolutions of x take ours. Elsewhere PyTorch's form is right, and up to 5% faster
    where no gradient is held."""
    return x.dtype == torch.bfloat16 and x.device.type == "cpu"


def conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: int = 1, padding: int = 0
) -> Tensor:
    """`F.conv2d`. x [N, I, H, W], weight [O, I, k, k], bias [O], all of one dtype."""
    if not uses_own_derivatives(x):
        return F.conv2d(x, weight, bias, stride, padding)
    y: Tensor = _apply(_Convolve, x, weight, bias, _Form(stride, padding, transposed=False))
    return y


def conv_transpose2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: int, padding: int = 0
) -> Tensor:
    """`F.conv_transpose2d`. x [N, I, H, W], weight [I, O, k, k], bias [O], all of one dtype."""
    if not uses_own_derivatives(x):
        return F.conv_transpose2d(x, weight, bias, stride, padding)
    y: Tensor = _apply(_Convolve, x, weight, bias, _Form(stride, padding, transposed=True))
    return y
