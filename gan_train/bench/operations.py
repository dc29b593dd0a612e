"""Counts the operations that code executes, and measures how many the machine can do per second.

Operations are the multiplications and additions of convolutions and matrix products, as hardware
vendors count them. They are counted as they are executed, so backward and double backward are
included.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


def seconds(device: torch.device) -> float:
    """A clock whose differences are times: CPU seconds of this process, or, for a GPU, elapsed
    seconds, read when the GPU's work is done.

    CPU seconds leave out the time of other processes; with one thread they are the time of this
    code alone.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


def _matrix_product(args: tuple[Any, ...], result: Any) -> int:
    return 2 * result.numel() * args[0].shape[-1]


def _matrix_product_added(args: tuple[Any, ...], result: Any) -> int:
    return 2 * result.numel() * args[1].shape[-1]


def _convolution(args: tuple[Any, ...], result: Any) -> int:
    x, weight, transposed = args[0], args[1], args[6]
    # every pixel of the output is a sum over a filter; where transposed, a filter spreads every
    # pixel of the input
    return 2 * (x if transposed else result).numel() * weight[0].numel()


def _convolution_backward(args: tuple[Any, ...], result: Any) -> int:
    gradient, x, weight, transposed, wanted = args[0], args[1], args[2], args[7], args[10]
    once = 2 * (x if transposed else gradient).numel() * weight[0].numel()
    return once * (int(wanted[0]) + int(wanted[1]))  # input and weight; the bias costs little


_COUNTED: dict[Any, Callable[[tuple[Any, ...], Any], int]] = {
    aten.mm: _matrix_product,
    aten.bmm: _matrix_product,
    aten.addmm: _matrix_product_added,
    aten.baddbmm: _matrix_product_added,
    aten.baddbmm_: _matrix_product_added,
    aten.convolution: _convolution,
    aten.convolution_backward: _convolution_backward,
}


class Arithmetic(TorchDispatchMode):
    """Counts the `operations` of convolutions and matrix products in its block, and times them.

    It works below autograd, so backward and double backward are counted as they are executed.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations, self._device, self._seconds = 0, device, 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        count = _COUNTED.get(func.overloadpacket)
        if count is None:
            return func(*args, **(kwargs or {}))
        if self._device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            result = func(*args, **(kwargs or {}))
            end.record()
            self._events.append((begin, end))
        else:
            start = time.process_time()
            result = func(*args, **(kwargs or {}))
            self._seconds += time.process_time() - start
        self.operations += count(args, result)
        return result

    @property
    def seconds(self) -> float:
        """The seconds in the counted operations. They are too many on a GPU that waits for the CPU,
        because they include the launches of kernels."""
        if self._events:
            torch.cuda.synchronize(self._device)
        return self._seconds + sum(a.elapsed_time(b) for a, b in self._events) / 1000


def attainable(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """The operations per second of a large matrix product and of a large channels_last convolution,
    by name. Each is the best of several tries, which end after a second."""
    gpu = device.type == "cuda"
    side, images, channels, resolution = (8192, 64, 512, 64) if gpu else (1024, 16, 128, 32)
    matrix = torch.randn(side, side, device=device, dtype=dtype)
    x = torch.randn(images, channels, resolution, resolution, device=device, dtype=dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    weight = torch.randn(channels, channels, 3, 3, device=device, dtype=dtype)
    weight = weight.contiguous(memory_format=torch.channels_last)
    return {
        "matrix product": _rate(device, lambda: matrix @ matrix),
        "convolution": _rate(device, lambda: F.conv2d(x, weight, padding=1)),
    }


@torch.no_grad()
def _rate(
    device: torch.device, work: Callable[[], Tensor], repeats: int = 8, limit_s: float = 1.0
) -> float:
    """The operations per second of the fastest try. There is only one try if it takes longer than
    `limit_s`, as on a processor without bfloat16."""
    start = seconds(device)
    with Arithmetic(device) as counted:
        work()
    best = spent = seconds(device) - start
    for _ in range(repeats):
        if spent > limit_s:
            break
        start = seconds(device)
        work()
        took = seconds(device) - start
        best, spent = min(best, took), spent + took
    return counted.operations / best
