"""Convolutions of frozen networks, each with the cheap operation that follows it.

ReLU6 and the addition of a residual read and write whole maps, which on a CPU takes a quarter of a
feature network's time. oneDNN can do them while a convolution's results are still in registers.
PyTorch has operators for that, but uses them in compiled programs only. Here they are called
directly where no derivative is wanted; elsewhere, the same is computed step by step. Both ways
agree to float32 rounding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FrozenConv2d(nn.Conv2d):
    """A convolution of maps [N, I, H, W] whose weights no longer change."""

    def forward(self, x: Tensor) -> Tensor:
        if not _fusible(x):
            return super().forward(x)
        # also without a fusion: by itself PyTorch uses oneDNN only on several threads or images
        y: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, self.weight, self.bias, *self._geometry(), "none", [], ""
        )
        return y

    def relu6(self, x: Tensor) -> Tensor:
        """min(max(convolution(x), 0), 6)."""
        if not _fusible(x):
            return F.relu6(super().forward(x), inplace=True)
        y: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, self.weight, self.bias, *self._geometry(), "hardtanh", [0.0, 6.0], ""
        )
        return y

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        """convolution(x) + residual."""
        if not _fusible(x):
            return super().forward(x) + residual
        y: Tensor = torch.ops.mkldnn._convolution_pointwise.binary(
            *(x, residual, self.weight, self.bias, *self._geometry(), "add", 1.0, None, [], None)
        )
        return y

    def _geometry(self) -> tuple[list[int], list[int], list[int], int]:
        assert isinstance(self.padding, tuple)
        return list(self.padding), list(self.stride), list(self.dilation), self.groups


def _fusible(x: Tensor) -> bool:
    """Whether oneDNN's fused convolutions can compute this: in float32 on a CPU, without gradients,
    in a build of PyTorch that has them."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
    )
