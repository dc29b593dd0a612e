"""Perceptual distances: EfficientNet's against the formula, LPIPS's file by a small stand-in with
the published file's calling convention (the file itself is too large to ship)."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gan_train.config import DataConfig
from gan_train.data.index import Index
from gan_train.data.loader import read_images
from gan_train.data.sharding import shard
from gan_train.errors import UserError
from gan_train.metrics import perceptual
from gan_train.metrics.perceptual import EfficientNetPerceptual, build_perceptual, distance
from tests.unit.pretrained.test_efficientnet import published_weights, textbook_maps

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def efficient() -> EfficientNetPerceptual:
    return EfficientNetPerceptual(CPU)


@pytest.fixture(scope="module")
def efficient64() -> EfficientNetPerceptual:
    return EfficientNetPerceptual(CPU, torch.float64)


def _images(count: int, channels: int, side: int, seed: int = 0) -> Tensor:
    """float64 in [-1, 1], smooth."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, channels, 6, 6, generator=generator, dtype=torch.float64) * 2 - 1
    return F.interpolate(coarse, size=side, mode="bicubic").clamp(-1, 1)


def _formula(a: Tensor, b: Tensor) -> Tensor:
    """LPIPS without weights, level by level: the mean over places of squared distances between
    unit vectors. a and b [n, 3, 128, 128] in [-1, 1], blocks 0, 2, 4, 10 and 15."""
    total = torch.zeros(len(a), dtype=torch.float64)
    maps = [textbook_maps(published_weights(), (x + 1 / 255) * 255 / 256) for x in (a, b)]
    for block, (first, second) in enumerate(zip(*maps, strict=True)):
        if block in (0, 2, 4, 10, 15):
            u = first / first.norm(dim=1, keepdim=True)
            v = second / second.norm(dim=1, keepdim=True)
            total += (u - v).square().sum(1).mean((1, 2))
    return total


def test_distance_is_the_formula(
    efficient: EfficientNetPerceptual, efficient64: EfficientNetPerceptual
) -> None:
    a, b = _images(3, 3, 128), _images(3, 3, 128, seed=1)
    expected = _formula(a, b)
    assert expected.min() > 0.5
    # weights are folded with their normalisation and kept as float32
    torch.testing.assert_close(distance(efficient64, a, b), expected, rtol=1e-6, atol=0)
    found = distance(efficient, a.float(), b.float())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)


def test_other_sizes_are_resized_and_grey_is_repeated(efficient64: EfficientNetPerceptual) -> None:
    small, large = _images(2, 1, 32), _images(2, 1, 256, seed=1)
    enlarged = F.interpolate(small, size=128, mode="bilinear")
    shrunk = F.interpolate(large, size=128, mode="bilinear", antialias=True)
    for images, same in ((small, enlarged), (large, shrunk)):
        found = efficient64.embed(images)
        torch.testing.assert_close(found, efficient64.embed(same.expand(-1, 3, -1, -1)))
    board = (torch.arange(256)[:, None] + torch.arange(256)) % 2 * 2.0 - 1  # averages to mid-grey
    assert efficient64._prepared(board[None, None])[..., 4:-4, 4:-4].abs().max() < 0.01


def test_equal_pictures_and_either_order(efficient64: EfficientNetPerceptual) -> None:
    a, b = _images(3, 3, 48), _images(3, 3, 48, seed=1)
    assert (distance(efficient64, a, a) == 0).all()
    torch.testing.assert_close(distance(efficient64, a, b), distance(efficient64, b, a))
    single = torch.cat([distance(efficient64, x[None], y[None]) for x, y in zip(a, b, strict=True)])
    torch.testing.assert_close(distance(efficient64, a, b), single)


def test_gradient_is_the_slope(efficient64: EfficientNetPerceptual) -> None:
    """In both pictures, against the difference quotient along a direction."""
    a, b, way = (_images(1, 1, 32, seed=seed) for seed in range(3))
    a.requires_grad_(True)
    b.requires_grad_(True)
    distance(efficient64, a, b).sum().backward()
    for picture, other in ((a, b), (b, a)):
        assert picture.grad is not None
        with torch.no_grad():
            step = 1e-6 * way
            ends = [distance(efficient64, picture + s * step, other) for s in (1, -1)]
        slope = float(ends[0] - ends[1]) / 2e-6
        assert float((picture.grad * way).sum()) == pytest.approx(slope, rel=1e-3)  # kinks


def test_letters_look_like_letters_of_their_kind(
    efficient: EfficientNetPerceptual, glyphs: Path, tmp_path: Path
) -> None:
    config = DataConfig(
        source=str(glyphs), resolution=32, colour="grey", classes="folder", only_classes=("I", "O")
    )
    shards = shard(config, tmp_path)
    images, labels = read_images(Index.load(shards), shards, 0, 40)
    assert labels is not None
    embedded = efficient.embed(images.float() / 127.5 - 1)
    squared = torch.cdist(embedded, embedded).square()
    same = labels[:, None] == labels
    different_kind = squared[~same].mean()
    same_kind = squared[same & ~torch.eye(40, dtype=torch.bool)].mean()
    assert 0.1 < same_kind < 0.8 * different_kind


# ---- LPIPS -------------------------------------------------------------------------------------


class _Vgg(nn.Module):
    """Takes float [n, 3, H, W] from 0 to 255; six numbers an image with `return_lpips`."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.arange(18.0).view(3, 6) / 18)

    def forward(
        self, img: Tensor, resize_images: bool = True, return_lpips: bool = False
    ) -> Tensor:
        mean = img.mean(dim=[2, 3])
        if resize_images or not return_lpips:
            return mean.sum()
        return mean @ self.mix


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("script") / "vgg16.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # writing TorchScript, not reading it
        torch.jit.save(torch.jit.script(_Vgg()), str(path))
    return path


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


LPIPS, BUNDLED = "lpips_vgg16", "efficientnet_lite0"


def test_lpips_asks_the_script_for_pixels_from_0_to_255(script: Path, tmp_path: Path) -> None:
    lpips = build_perceptual(LPIPS, str(script), _digest(script), tmp_path, CPU)
    grey = _images(2, 1, 16).float().requires_grad_(True)
    pixels = (grey + 1) / 2 * 255
    expected = _Vgg()(pixels.expand(-1, 3, -1, -1), resize_images=False, return_lpips=True)
    found = lpips.embed(grey)
    torch.testing.assert_close(found, expected.detach())
    assert not lpips.embed(grey.detach()).requires_grad  # the network is not trained
    found.sum().backward()
    assert grey.grad is not None and (grey.grad > 0).all()


def test_only_the_published_file_is_called_lpips(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = _digest(script)
    other = build_perceptual(LPIPS, str(script), digest, tmp_path, CPU)
    assert (other.name, other.suffix) == (f"vgg16_{digest[:8]}", f"_vgg16_{digest[:8]}")
    monkeypatch.setattr(perceptual, "LPIPS_SHA256", digest)
    published = build_perceptual(LPIPS, str(script), digest, tmp_path, CPU)
    assert (published.name, published.suffix) == ("lpips_vgg16", "")
    assert published.weights_sha256 == digest


def test_a_wrong_digest_is_refused_before_the_script_is_opened(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.jit, "load", lambda *a, **k: pytest.fail("opened"))
    for location in (str(script), script.as_uri()):
        with pytest.raises(UserError, match=r"^evaluate\.perceptual_weights: .* was not"):
            build_perceptual(LPIPS, location, "0" * 64, tmp_path / "cache", CPU)
    with pytest.raises(UserError, match=r"correct `evaluate\.perceptual_sha256`"):
        build_perceptual(LPIPS, str(script), "0" * 64, tmp_path, CPU)


def test_what_the_network_cannot_take_or_give_is_said(script: Path, tmp_path: Path) -> None:
    lpips = build_perceptual(LPIPS, str(script), _digest(script), tmp_path, CPU)
    with pytest.raises(UserError, match="16 pixels or more, these have 8; use efficientnet"):
        lpips.embed(torch.zeros(1, 3, 8, 8))

    class Wrong(_Vgg):
        def forward(
            self, img: Tensor, resize_images: bool = True, return_lpips: bool = False
        ) -> Tensor:
            return img

    path = tmp_path / "wrong.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(Wrong()), str(path))
    wrong = build_perceptual(LPIPS, str(path), _digest(path), tmp_path, CPU)
    with pytest.raises(UserError, match="not the published TorchScript file"):
        wrong.embed(torch.zeros(1, 3, 16, 16))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((LPIPS, None, "0" * 64), "needs `evaluate.perceptual_weights`"),
        ((LPIPS, "vgg16.pt", None), f"which is {perceptual.LPIPS_SHA256} for that file"),
        ((BUNDLED, "vgg16.pt", None), "or set `evaluate.perceptual` to lpips"),
        ((BUNDLED, None, "0" * 64), "leave `evaluate.perceptual_weights`"),
    ],
)
def test_settings_that_do_not_fit(
    settings: tuple[str, str | None, str | None], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        build_perceptual(*settings, tmp_path, CPU)
