"""Bicubic resizing: against the formula written out, pixel by pixel, and exact in any batch.

All 19 low-resolution pictures (x4) that Set5 and Set14 are published with come out to the byte:
largest and mean difference 0. (Checked by hand: their licence does not let them be shipped.)
"""

from __future__ import annotations

import math
import zipfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from gan_train.images.resize import (
    _upsampled_by_phases,
    bicubic_downsample,
    bicubic_upsample,
    bicubic_upsample_float,
)


def pictures(count: int, channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    """uint8, with blacks and whites, so that cubic overshoot must be cut off."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, channels, height, width)
    noise = torch.randint(-80, 336, shape, generator=generator)
    return noise.clamp(0, 255).to(torch.uint8)


def kernel(x: Fraction) -> Fraction:
    """Keys 1981, equation 4, with a = -1/2."""
    x, a = abs(x), Fraction(-1, 2)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else Fraction(0)


def resampled(line: list[Fraction], out: int, stretch: int) -> list[Fraction]:
    """A line of pixels at `out` places, by the kernel `stretch` times as wide; edges repeated."""
    step = Fraction(len(line), out)
    found = []
    for number in range(out):
        centre = (number + Fraction(1, 2)) * step - Fraction(1, 2)
        near = range(math.floor(centre) - 2 * stretch, math.ceil(centre) + 2 * stretch + 1)
        found.append(
            sum(
                (
                    kernel((centre - p) / stretch) / stretch * line[min(max(p, 0), len(line) - 1)]
                    for p in near
                ),
                Fraction(0),
            )
        )
    return found


def byte(value: Fraction) -> Fraction:
    return Fraction(min(max(math.floor(value + Fraction(1, 2)), 0), 255))


def columns(plane: list[list[Fraction]]) -> list[list[Fraction]]:
    return [list(column) for column in zip(*plane, strict=True)]


def fractions(plane: Tensor) -> list[list[Fraction]]:
    return [[Fraction(value) for value in row] for row in plane.tolist()]


def downsampled_by_hand(plane: Tensor, scale: int) -> Tensor:
    height, width = plane.shape
    narrow = [resampled(column, height // scale, scale) for column in columns(fractions(plane))]
    rows = columns([[byte(value) for value in column] for column in narrow])
    small = [[byte(v) for v in resampled(row, width // scale, scale)] for row in rows]
    return torch.tensor([[int(value) for value in row] for row in small], dtype=torch.uint8)


def upsampled_by_hand(plane: Tensor, scale: int) -> list[list[Fraction]]:
    height, width = plane.shape
    tall = columns([resampled(c, height * scale, 1) for c in columns(fractions(plane))])
    return [resampled(row, width * scale, 1) for row in tall]


@pytest.mark.parametrize(("scale", "height", "width"), [(4, 12, 20), (2, 6, 14), (4, 4, 4)])
def test_downsampling_is_the_formula(scale: int, height: int, width: int) -> None:
    images = pictures(2, 3, height, width)
    small = bicubic_downsample(images, scale)
    assert small.shape == (2, 3, height // scale, width // scale)
    for found, plane in zip(small.flatten(0, 1), images.flatten(0, 1), strict=True):
        assert torch.equal(found, downsampled_by_hand(plane, scale))


@pytest.mark.parametrize(("scale", "height", "width"), [(4, 3, 5), (2, 6, 1), (4, 1, 1), (2, 2, 3)])
def test_upsampling_is_the_formula(scale: int, height: int, width: int) -> None:
    images = pictures(2, 3, height, width)
    large = bicubic_upsample(images, scale)
    exact = bicubic_upsample_float(images.double(), scale)
    assert large.shape == (2, 3, scale * height, scale * width)
    for bytes_, floats, plane in zip(
        large.flatten(0, 1), exact.flatten(0, 1), images.flatten(0, 1), strict=True
    ):
        expected = upsampled_by_hand(plane, scale)
        assert [[Fraction(v) for v in row] for row in floats.tolist()] == expected  # no rounding
        assert fractions(bytes_) == [[byte(value) for value in row] for row in expected]


def test_a_picture_is_the_same_alone_and_in_any_batch() -> None:
    images = pictures(16, 3, 128, 128)
    together = bicubic_downsample(images, 4)
    for part in (images[5:6], images[:7], images.contiguous(memory_format=torch.channels_last)):
        place = 5 if len(part) == 1 else 0
        assert torch.equal(bicubic_downsample(part, 4), together[place : place + len(part)])
    assert torch.equal(bicubic_downsample(images[5], 4), together[5])  # without a batch, too
    assert torch.equal(bicubic_upsample(together[:3], 4)[1], bicubic_upsample(together[1], 4))


def test_near_to_pillow_on_a_real_picture(glyphs: Path) -> None:
    """Another implementation: it repeats no edges, and rounds rows before columns. In half the
    contrast, as what overshoots is cut off in between, in another order."""
    with zipfile.ZipFile(glyphs) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".png"))
        with archive.open(name) as file:
            whole = np.array(Image.open(file).convert("L"))
    picture = Image.fromarray(whole // 2 + 64)
    pixels = torch.from_numpy(np.array(picture))[None]
    for scale in (2, 4):
        for found, edge in (
            (bicubic_downsample(pixels, scale), 2),
            (bicubic_upsample(pixels, scale), 2 * scale),
        ):
            size = found.shape[-1]
            other = np.array(picture.resize((size, size), Image.Resampling.BICUBIC))
            apart = (found[0].int() - torch.from_numpy(other).int()).abs()
            inner = apart[edge:-edge, edge:-edge]
            assert inner.max() <= 1, (scale, size)


def test_floats_keep_their_type_and_meet_gradients() -> None:
    low = pictures(2, 1, 3, 4).float() / 127.5 - 1
    with torch.inference_mode():
        bicubic_upsample_float(low, 2)  # what is remembered of this must be of use below
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = bicubic_upsample_float(low, 2)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, bicubic_upsample_float(low.double(), 2).float())
    low.requires_grad_(True)
    bicubic_upsample_float(low, 2).sum().backward()
    assert low.grad is not None
    # every pixel is shared out whole, but at the edges, which count for what lies beyond them
    torch.testing.assert_close(low.grad.sum(), torch.tensor(2 * 4 * 3.0 * 4))


@pytest.mark.parametrize("scale", [2, 4])
def test_a_traced_program_upsamples_alike(scale: int) -> None:
    images = pictures(2, 3, 5, 8).double()
    torch.testing.assert_close(
        _upsampled_by_phases(images, scale), bicubic_upsample_float(images, scale)
    )
