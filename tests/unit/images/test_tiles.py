"""Tiles: no pixel is lost or made twice, and no seam shows where they meet."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gan_train.adversary import ImageShape
from gan_train.families.srgan import SRGAN, SRGANConfig
from gan_train.images.tiles import tiles, upscale_picture


def picture(channels: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(height * 1000 + width)
    shape = (channels, height, width)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def trained(scale: int, blocks: int = 1) -> SRGAN:
    """In float64, with filters as training leaves them: nothing zero."""
    torch.manual_seed(0)
    settings = {"scale": scale, "blocks": blocks, "width": 3, "high_width": 2, "kernel": 5}
    family = SRGANConfig.model_validate(settings).build(ImageShape(3, 32), 4).double()
    for parameter in family.generator.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return family.eval().requires_grad_(False)


@pytest.mark.parametrize(
    ("height", "width", "tile", "overlap"),
    [(1, 1, 4, 2), (10, 3, 4, 1), (8, 8, 8, 3), (9, 8, 8, 0), (37, 5, 6, 40)],
)
def test_every_pixel_is_kept_once_and_seen_with_its_surroundings(
    height: int, width: int, tile: int, overlap: int
) -> None:
    kept = torch.zeros(height, width, dtype=torch.int64)
    for part in tiles(height, width, tile, overlap):
        kept[part.rows, part.columns] += 1
        for own, seen, size in (
            (part.rows, part.seen_rows, height),
            (part.columns, part.seen_columns, width),
        ):
            assert 1 <= own.stop - own.start <= tile
            assert 0 <= seen.start <= own.start and own.stop <= seen.stop <= size
            assert own.start - seen.start == min(overlap, own.start)
            assert seen.stop - own.stop == min(overlap, size - own.stop)
    assert (kept == 1).all()


@pytest.mark.parametrize("scale", [2, 4])
def test_tiles_are_the_whole_picture(scale: int) -> None:
    """SRGAN's generator, to the byte; sizes smaller than a tile, odd, and of a few pixels."""
    family = trained(scale)

    def upscale(low: Tensor) -> Tensor:
        return family.upscale(low.double())

    sizes = [(1, 1), (1, 4), (3, 2), (4, 4), (7, 31), (25, 23)]
    for (height, width), tile in itertools.product(sizes, (1, 5, 8)):
        if height * width > 300 and tile == 1:
            continue
        low = picture(3, height, width)
        whole = upscale_picture(upscale, low, scale, tile=100)
        exact = upscale(low[None].float() / 127.5 - 1)[0]
        assert torch.equal(whole, (exact * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8))
        assert len(whole.unique()) > min(height * width, 20)  # no flat picture
        assert torch.equal(upscale_picture(upscale, low, scale, tile, family.reach), whole)
    seams = upscale_picture(upscale, picture(3, 25, 23), scale, 8, overlap=0)
    assert not torch.equal(seams, upscale_picture(upscale, picture(3, 25, 23), scale, 100))


@pytest.mark.parametrize("radius", [1, 3])
def test_the_overlap_must_be_the_reach_and_not_more(radius: int) -> None:
    """A mean over neighbours, zeros beyond the border as in convolutions, then upsampling."""

    def upscale(low: Tensor) -> Tensor:
        side = 2 * radius + 1
        mean = F.avg_pool2d(low, side, stride=1, padding=radius)
        return F.interpolate(mean, scale_factor=2, mode="nearest")

    low = picture(1, 19, 22)
    whole = upscale_picture(upscale, low, 2, tile=22)
    assert torch.equal(upscale_picture(upscale, low, 2, tile=6, overlap=radius), whole)
    assert not torch.equal(upscale_picture(upscale, low, 2, tile=6, overlap=radius - 1), whole)


def test_bytes_survive_the_way_through_floats() -> None:
    low = torch.arange(256, dtype=torch.uint8).view(1, 8, 32)
    found = upscale_picture(lambda x: F.interpolate(x, scale_factor=2), low, 2, tile=5, overlap=0)
    assert torch.equal(found, low.repeat_interleave(2, 1).repeat_interleave(2, 2))
    beyond = upscale_picture(lambda x: 3 * x, low, 1)
    assert beyond.min() == 0 and beyond.max() == 255 and (beyond.flatten().diff().int() >= 0).all()


def test_progress_is_told_after_every_tile() -> None:
    told = list[tuple[int, int]]()
    upscale_picture(
        lambda x: x, picture(1, 9, 4), 1, 4, 1, lambda done, count: told.append((done, count))
    )
    assert told == [(1, 3), (2, 3), (3, 3)]
