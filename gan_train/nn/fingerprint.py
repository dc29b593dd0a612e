"""Fingerprints of tensors, computed where the tensors are: 8 bytes a tensor leave the device.

The bits of a tensor are read as 32-bit words w_0, w_1, ... in the order of its elements, whatever
its layout in memory. Its sum is that of w_i m_i modulo 2^64, with an odd random multiplier m_i for
each place. The arithmetic is exact, so a CPU and a GPU, in any order of adding, get the same sum.
A word that changed always changes it. Several changes, or words that have changed places, leave it
as it was with a probability of 2^-32 or less. This finds what went wrong by itself or was edited,
and does not withstand somebody who computes weights with an equal sum.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from gan_train.rng import derive

_PART = 1 << 16
"""So many words are multiplied at once. Their multipliers and products stay in a core's cache."""
_WORDS = {8: torch.int32, 4: torch.int32, 2: torch.int16, 1: torch.uint8}


@functools.cache
def _multipliers(device: torch.device) -> Tensor:
    """int64 [_PART]: odd numbers. They are the same on every machine: Philox's raw stream is."""
    numbers = np.random.Philox(derive("fingerprint")).random_raw(_PART) | 1
    return torch.from_numpy(numbers.view(np.int64)).to(device)


@functools.cache
def _of_part(number: int) -> int:
    """The odd factor of the parts of this number, as the int64 of its bits."""
    value = 2 * derive("fingerprint", number) + 1
    return value - (1 << 64) if value >> 63 else value


@torch.no_grad()
def sums(tensors: Iterable[Tensor]) -> Tensor:
    """int64 [tensors], on the device of the tensors: the sum of each one."""
    found = []
    for tensor in tensors:
        raw = tensor.detach().contiguous().reshape(-1)
        words = raw.view(_WORDS[raw.element_size()])
        multipliers = _multipliers(words.device)
        total = torch.zeros((), dtype=torch.int64, device=words.device)
        for number, part in enumerate(words.split(_PART)):
            total += (part * multipliers[: len(part)]).sum() * _of_part(number)
        found.append(total)
    return torch.stack(found) if found else torch.zeros(0, dtype=torch.int64)


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """32 hexadecimal digits that depend on the names, types, shapes and bits of the tensors."""
    names = sorted(tensors)
    digest = hashlib.sha256()
    for name in names:
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
    digest.update(sums(tensors[name] for name in names).cpu().numpy().tobytes())
    return digest.hexdigest()[:32]
