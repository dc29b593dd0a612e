"""The filters' kernel for GPUs against the literal form in float64, to the second derivative."""

from __future__ import annotations

import pytest
import torch

from gan_train.families.stylegan import filter_on_gpu
from gan_train.families.stylegan.resampling import apply_filter, downsample
from tests.unit.families.test_stylegan_resampling import PAIRS, outcomes

pytestmark = pytest.mark.gpu
FILTERS = [pair for name, pair in PAIRS.items() if "convolved" not in name]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-7)])
@pytest.mark.parametrize("size", [(4, 4), (8, 6), (66, 130)])
def test_the_kernel_filters_as_the_literal_form(
    size: tuple[int, int], dtype: torch.dtype, error: float, layout: torch.memory_format
) -> None:
    random = torch.Generator().manual_seed(1)
    x = torch.randn(2, 5, *size, generator=random).to("cuda", dtype)
    weight = torch.zeros(1, dtype=dtype, device="cuda")
    given = x.contiguous(memory_format=layout)
    assert filter_on_gpu.applies_to(given) and not filter_on_gpu.applies_to(given.double())
    for fast, literal in FILTERS:
        assert fast(given, weight).is_contiguous(memory_format=layout)
        expected = outcomes(literal, x.double(), weight.double())
        for mine, right in zip(outcomes(fast, given, weight), expected, strict=True):
            assert mine.dtype == dtype
            largest = (mine - right).abs().max() / right.abs().max()
            assert largest <= 8 * error


def test_the_kernel_reads_what_lies_scattered_in_memory() -> None:
    """Views of a larger tensor, and more than one block of a plane."""
    x = torch.arange(2 * 3 * 80 * 80.0, device="cuda").view(2, 3, 80, 80).sin()
    part = x[:, :, 3:70:2, 1:-1]
    for of in (downsample, lambda view: apply_filter(view, padding=2)):
        even = part[:, :, :32]
        assert torch.equal(of(even), of(even.contiguous()))
