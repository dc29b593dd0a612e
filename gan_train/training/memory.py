"""Settings of the memory allocator, and the copy of a tensor to the device, for fast steps."""

from __future__ import annotations

import ctypes
import platform

import torch
from torch import Tensor

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGEST_THRESHOLD = 32 << 20
"""glibc refuses more: blocks above it are always given back."""


def keep_freed_memory() -> bool:
    """Let malloc keep what is freed, up to blocks of 32 MiB; returns whether it can.

    Every step frees its activations and asks for as much again. By default glibc hands large blocks
    back to the system and gets them as new pages, each with a page fault, which takes 5% of a
    StyleGAN2 step at 32 pixels on a CPU. The process's peak of memory stays the same. Other C
    libraries than glibc are left alone.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_THRESHOLD) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    )


def to_device(device: torch.device, x: Tensor) -> Tensor:
    """x on the device. To a GPU it is copied from pinned memory, and this process need not wait: a
    copy from pageable memory would begin only when the GPU has done all work before it."""
    if device.type != "cuda":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)
