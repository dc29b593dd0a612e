"""Convolutions whose second derivatives are right in bfloat16 on a CPU, for losses that contain
gradients, such as R1 and path lengths.

PyTorch computes the second derivative by a forward convolution whose filters are as large as the
image. Processors with AMX compute it wrongly in bfloat16, without an error (torch 2.13: padding 1,
some sizes from 8 pixels on; with ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 it is right). R1's gradients
of whole layers were noise because of this.

A convolution is linear in its input and in its filters, so every second derivative is one of three
maps: a convolution, a gradient of the input, or a gradient of the filters. This file computes each
of them by that map.
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
        """The gradients of input, filters and bias, as far as wanted. The input's gradient
        uses only the shape of x, and the filters' gradient only the shape of the weight."""
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
        if not torch.is_grad_enabled():  # no further derivative follows
            return *ctx.form.backward(gradient, x, weight, wanted), None
        grad_x = grad_weight = None
        if wanted[0]:
            grad_x = _apply(_InputGradient, gradient, weight, x.detach(), ctx.form)
        if wanted[1]:
            grad_weight = _apply(_WeightGradient, x, gradient, weight.detach(), ctx.form)
        grad_bias = gradient.sum(dim=(0, 2, 3)) if wanted[2] else None
        return grad_x, grad_weight, grad_bias, None


class _InputGradient(torch.autograd.Function):
    """The input's gradient, which is linear in the output's gradient and in the filters."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, weight: Tensor, x: Tensor, form: _Form) -> Tensor:
        ctx.save_for_backward(gradient, weight)
        ctx.form = form
        grad_x: Tensor = form.backward(gradient, x, weight, (True, False, False))[0]
        return grad_x

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (second,), (gradient, weight) = gradients, ctx.saved_tensors
        grad_gradient = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_gradient = _apply(_Convolve, second, weight, None, ctx.form)
        if ctx.needs_input_grad[1]:
            grad_weight = _apply(_WeightGradient, second, gradient, weight.detach(), ctx.form)
        return grad_gradient, grad_weight, None, None


class _WeightGradient(torch.autograd.Function):
    """The filters' gradient, which is linear in the input and in the output's gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gradient: Tensor, weight: Tensor, form: _Form) -> Tensor:
        ctx.save_for_backward(x, gradient)
        ctx.form = form
        grad_weight: Tensor = form.backward(gradient, x, weight, (False, True, False))[1]
        return grad_weight

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (second,), (x, gradient) = gradients, ctx.saved_tensors
        grad_x = grad_gradient = None
        if ctx.needs_input_grad[0]:
            grad_x = _apply(_InputGradient, gradient, second, x.detach(), ctx.form)
        if ctx.needs_input_grad[1]:
            grad_gradient = _apply(_Convolve, x, second, None, ctx.form)
        return grad_x, grad_gradient, None, None


def _apply(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    return function.apply(*arguments)


def compute_dtype(x: Tensor) -> torch.dtype:
    """The type in which convolutions run: bfloat16 under autocast, else the type of x."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def uses_own_derivatives(x: Tensor) -> bool:
    """Whether convolutions of x use this file's derivatives: in bfloat16 on a CPU. Elsewhere
    PyTorch's are right, and up to 5% faster where a loss contains no gradient."""
    return x.dtype == torch.bfloat16 and x.device.type == "cpu"


def conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: int = 1, padding: int = 0
) -> Tensor:
    """`F.conv2d` of x [N, I, H, W], weight [O, I, k, k] and bias [O], all of one dtype."""
    if not uses_own_derivatives(x):
        return F.conv2d(x, weight, bias, stride, padding)
    y: Tensor = _apply(_Convolve, x, weight, bias, _Form(stride, padding, transposed=False))
    return y


def conv_transpose2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: int, padding: int = 0
) -> Tensor:
    """`F.conv_transpose2d` of x [N, I, H, W], weight [I, O, k, k] and bias [O], all of one
    dtype."""
    if not uses_own_derivatives(x):
        return F.conv_transpose2d(x, weight, bias, stride, padding)
    y: Tensor = _apply(_Convolve, x, weight, bias, _Form(stride, padding, transposed=True))
    return y
