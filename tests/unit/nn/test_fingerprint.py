"""The fingerprint of tensors tells every change of bits, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gan_train.nn.fingerprint import fingerprint, sums
from gan_train.rng import derive

TYPES = [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool]


@pytest.mark.parametrize("dtype", TYPES)
def test_every_bit_counts(dtype: torch.dtype) -> None:
    tensor = (torch.arange(-6, 6).reshape(3, 4) % 5).to(dtype)
    before = fingerprint({"a": tensor})
    raw = tensor.view(torch.uint8)
    bits = 1 if dtype == torch.bool else 8
    seen = {before}
    for place in range(raw.numel()):
        for bit in range(bits):
            raw.view(-1)[place] ^= 1 << bit
            seen.add(fingerprint({"a": tensor}))
            raw.view(-1)[place] ^= 1 << bit
    assert len(seen) == raw.numel() * bits + 1 and fingerprint({"a": tensor}) == before


def test_names_types_shapes_and_places_count_and_layout_does_not() -> None:
    tensor = torch.arange(120.0).reshape(2, 3, 4, 5)
    before = fingerprint({"a": tensor, "b": -tensor})
    assert fingerprint({"b": -tensor, "a": tensor}) == before
    layout = tensor.clone(memory_format=torch.channels_last)
    assert not layout.is_contiguous() and fingerprint({"a": layout, "b": -tensor}) == before
    swapped = tensor.clone()
    swapped[0, 0, 0, 1], swapped[1, 2, 3, 4] = tensor[1, 2, 3, 4], tensor[0, 0, 0, 1]
    others = [
        {"a": tensor, "c": -tensor},
        {"a": -tensor, "b": tensor},
        {"a": tensor.reshape(3, 2, 4, 5), "b": -tensor},
        {"a": tensor.view(torch.int32), "b": -tensor},
        {"a": swapped, "b": -tensor},
        {"a": tensor},
    ]
    assert len({before, *map(fingerprint, others)}) == len(others) + 1


def test_a_long_tensor_by_the_formula() -> None:
    tensor = torch.linspace(-3, 3, 200_003)
    multipliers = np.random.Philox(derive("fingerprint")).random_raw(1 << 16) | 1
    words = tensor.numpy().view(np.int32).tolist()
    expected = 0
    for number, begin in enumerate(range(0, len(words), 1 << 16)):
        factor = 2 * derive("fingerprint", number) + 1
        part = words[begin : begin + (1 << 16)]
        pairs = zip(part, multipliers.tolist(), strict=False)
        expected += factor * sum(word * multiplier for word, multiplier in pairs)
    found = int(sums([tensor]))
    assert found % (1 << 64) == expected % (1 << 64)
