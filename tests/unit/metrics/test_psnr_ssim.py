"""PSNR and SSIM against their formulas in float64, window by window."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from gan_train.errors import UserError
from gan_train.metrics.psnr_ssim import luma, psnr, ssim


def pictures(count: int, channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Smooth, so that neighbours are alike, as in photographs."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, channels, 5, 6, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    return (smooth * 255).round().to(torch.uint8)


def noisy(images: Tensor, deviation: float, seed: int = 9) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(images.shape, generator=generator) * deviation
    return (images + noise).round().clamp(0, 255).to(torch.uint8)


def test_luma_of_known_colours() -> None:
    """BT.601: the corners of the cube, from the standard's table for 8 bits."""
    colours = [[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]]
    found = luma(torch.tensor(colours, dtype=torch.uint8).view(5, 3, 1, 1)).flatten()
    expected = torch.tensor([16, 235, 81.481, 144.553, 40.966], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    grey = torch.arange(0, 256, 5, dtype=torch.uint8).view(1, 1, 4, 13)
    torch.testing.assert_close(luma(grey), luma(grey.expand(1, 3, 4, 13)))


def test_psnr_is_the_formula() -> None:
    a, b = pictures(2, 3, 20, 26), noisy(pictures(2, 3, 20, 26), 9)
    found = psnr(b, a, 4)
    assert found.dtype == torch.float64 and found.shape == (2,)
    for number in range(2):
        y = [
            (65.481 * p[0] + 128.553 * p[1] + 24.966 * p[2]) / 255 + 16
            for p in (x[number, :, 4:-4, 4:-4].double().numpy() for x in (a, b))
        ]
        expected = 20 * math.log10(255 / math.sqrt(np.mean((y[0] - y[1]) ** 2)))
        assert float(found[number]) == pytest.approx(expected, abs=1e-10)


def test_the_border_does_not_count() -> None:
    a = pictures(1, 3, 24, 24)
    framed = a.clone()
    framed[..., :3, :] = framed[..., -3:, :] = 0
    framed[..., :3] = framed[..., -3:] = 255
    assert torch.isinf(psnr(framed, a, 3)).all()
    assert float(ssim(framed, a, 3)) == pytest.approx(1, abs=1e-12)
    assert psnr(framed, a, 2) < 40 and ssim(framed, a, 2) < 0.999


def by_hand(a: Tensor, b: Tensor, border: int) -> float:
    """Wang et al. 2004, equations 13 to 16, window by window."""
    x = torch.arange(11, dtype=torch.float64) - 5
    bell = torch.exp(-(x**2) / (2 * 1.5**2))
    window = bell[:, None] * bell
    window /= window.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    y, z = luma(a[None])[0], luma(b[None])[0]
    values = []
    for top in range(border, y.shape[0] - border - 10):
        for left in range(border, y.shape[1] - border - 10):
            p = y[top : top + 11, left : left + 11]
            q = z[top : top + 11, left : left + 11]
            mp, mq = (window * p).sum(), (window * q).sum()
            vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
            both = (window * (p - mp) * (q - mq)).sum()
            values.append(
                (2 * mp * mq + c1) * (2 * both + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2))
            )
    return float(torch.stack(values).mean())


def test_ssim_is_the_formula() -> None:
    a = pictures(2, 3, 21, 19)
    b = noisy(a, 12)
    found = ssim(b, a, 2)
    assert found.dtype == torch.float64
    for number in range(2):
        assert float(found[number]) == pytest.approx(by_hand(a[number], b[number], 2), abs=1e-10)
    assert (found < 0.98).all()


def test_too_small_for_a_window() -> None:
    a = pictures(1, 1, 18, 30)
    assert float(ssim(a, a, 3)) == pytest.approx(1, abs=1e-12)  # 12 rows are left
    with pytest.raises(UserError, match="22x10 pixels are left inside of a border of 4"):
        ssim(a, a, 4)


def test_worse_pictures_score_worse(glyphs: Path) -> None:
    """Real pictures: more noise, less of both; a flat grey loses its structure."""
    with zipfile.ZipFile(glyphs) as archive:
        names = [name for name in archive.namelist() if name.endswith(".png")][:5]
        planes = []
        for name in names:
            with archive.open(name) as file:
                planes.append(np.array(Image.open(file).convert("L")))
    images = torch.from_numpy(np.stack(planes))[:, None]
    versions = [noisy(images, deviation) for deviation in (4, 16, 50)]
    for measure in (psnr, ssim):
        scores = torch.stack([measure(version, images, 2) for version in versions])
        assert (scores[:-1] > scores[1:]).all()
    flat = images.double().mean((2, 3), keepdim=True).round().to(torch.uint8).expand_as(images)
    assert (ssim(flat, images, 2) < 0.2).all()
