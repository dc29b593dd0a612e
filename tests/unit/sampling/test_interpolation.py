"""Curves through keys, and the frames that are drawn on them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from gan_train.errors import UserError
from gan_train.inference import Generator
from gan_train.sampling.interpolation import Walk, great_circles, interpolate, spline
from gan_train.sampling.painter import Look, Painter
from tests.unit.sampling.fakes import NoStyles, linear, shown

CURVES = (great_circles, spline)


def random_keys(count: int, dims: int = 5) -> Tensor:
    return torch.randn(count, dims, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("loop", [False, True])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_keys_are_passed_exactly(curve: type, loop: bool, count: int) -> None:
    keys = random_keys(count)
    walk = Walk(tuple(range(count)), frames=7, loop=loop)
    points = curve(keys, walk.times(), loop)
    assert len(points) == walk.length == (7 * count if loop else 7 * (count - 1) + 1)
    assert torch.equal(points[::7], keys)
    assert points.dtype == keys.dtype


@pytest.mark.parametrize("curve", CURVES)
def test_a_loop_has_no_seam(curve: type) -> None:
    """Going on from the last frame to the first is a step like the others."""
    keys = random_keys(4)
    points = curve(keys, Walk((0, 1, 2, 3), frames=50, loop=True).times(), True)
    steps = (points.roll(-1, 0) - points).norm(dim=1)
    assert steps[-1] < 1.5 * steps[-2] and steps.max() < 0.2 * (keys[0] - keys[1]).norm()
    # where a loop begins does not matter
    shifted = curve(keys.roll(-1, 0), Walk((0, 1, 2, 3), frames=50, loop=True).times(), True)
    assert torch.allclose(shifted, points.roll(-50, 0), atol=1e-6)


def test_spherical_goes_on_the_great_circle_at_an_even_pace() -> None:
    keys = torch.tensor([[3.0, 0.0], [0.0, 3.0]])
    times = torch.linspace(0, 1, 10, dtype=torch.float64)
    expected = 3 * torch.stack([(times * math.pi / 2).cos(), (times * math.pi / 2).sin()], dim=1)
    assert torch.allclose(great_circles(keys, times, False), expected.float(), atol=1e-6)


def test_spherical_between_equal_or_opposite_keys_is_straight() -> None:
    for other in (1.0, -1.0):
        keys = torch.tensor([[2.0, 2.0], [2.0 * other, 2.0 * other]])
        points = great_circles(keys, torch.tensor([0.25], dtype=torch.float64), False)
        assert torch.allclose(points, torch.lerp(keys[:1], keys[1:], 0.25))


def test_smooth_has_no_corners_and_joins_two_keys_by_a_line() -> None:
    keys, h = random_keys(5), 1e-6
    inner = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    at = [spline(keys.double(), inner + d, False) for d in (-h, 0.0, h)]
    assert torch.allclose((at[1] - at[0]) / h, (at[2] - at[1]) / h, atol=1e-4)
    # the slope of Catmull and Rom: from the key before to the one after
    assert torch.allclose((at[2] - at[1]) / h, (keys[2:] - keys[:-2]).double() / 2, atol=1e-4)
    times = torch.linspace(0, 1, 9, dtype=torch.float64)
    line = torch.lerp(keys[:1], keys[1:2], times[:, None].float())
    assert torch.allclose(spline(keys[:2], times, False), line, atol=1e-6)


def frames_of(folder: Path) -> list[Tensor]:
    return [torch.from_numpy(np.asarray(Image.open(p)).copy()) for p in sorted(folder.iterdir())]


@pytest.mark.parametrize("space", ["z", "w", None])
def test_the_images_of_the_seeds_are_among_the_frames(space: str | None, tmp_path: Path) -> None:
    generator, look = linear(), Look(0.7)
    walk = Walk((4, 9, 2), space=space, frames=5)  # type: ignore[arg-type]
    frames = frames_of(interpolate(generator, walk, look, tmp_path / "walk", 25))
    painter = Painter(generator, look)
    keys = painter.from_latents(generator.latents([4, 9, 2]), None, [4, 9, 2])
    assert len(frames) == 11
    for frame, key in zip(frames[::5], keys, strict=True):
        assert torch.equal(frame, key[0])
    assert not torch.equal(frames[2], frames[0])


def test_z_and_w_are_different_ways(tmp_path: Path) -> None:
    """z -> w is linear here, so halfway in w is halfway in z on the chord, not on the sphere."""
    ways = {}
    for space in ("z", "w"):
        walk = Walk((4, 9), space=space, frames=2)  # type: ignore[arg-type]
        ways[space] = frames_of(interpolate(linear(), walk, Look(), tmp_path / space, 25))
    a, middle, b = (shown(frame[None])[0].float() for frame in ways["w"])
    assert (middle - (a + b) / 2).abs().max() <= 1
    assert (shown(ways["z"][1][None])[0].float() - middle).abs().max() > 4


def test_from_class_to_class(tmp_path: Path) -> None:
    generator = linear(conditional=True)
    walk = Walk((5,), ("star", "round"), frames=4)
    frames = frames_of(interpolate(generator, walk, Look(), tmp_path / "walk", 25))
    z = generator.latents([5, 5])
    keys = list(Painter(generator, Look()).from_latents(z, torch.tensor([2, 0]), [5, 5]))
    assert len(frames) == 5
    assert torch.equal(frames[0], keys[0][0]) and torch.equal(frames[-1], keys[1][0])
    assert Walk((1, 2), ("a", "b", "c")).keys == 3  # the second seed's turn comes round again


def test_the_class_stays_in_z(tmp_path: Path) -> None:
    generator = linear(conditional=True)
    walk = Walk((5, 6), ("star",), "z", frames=3)
    frames = frames_of(interpolate(generator, walk, Look(), tmp_path / "walk", 25))
    z = generator.latents([5, 6])
    keys = list(Painter(generator, Look()).from_latents(z, torch.tensor([2, 2]), [5, 6]))
    assert torch.equal(frames[0], keys[0][0]) and torch.equal(frames[-1], keys[1][0])


def test_new_noise_is_the_same_in_all_frames(tmp_path: Path) -> None:
    walk = Walk((4, 9), frames=3)
    frames = frames_of(interpolate(linear(), walk, Look(noise="random"), tmp_path / "walk", 25))
    grain = torch.stack(frames)[:, :, -1]
    assert torch.equal(grain, grain[:1].expand_as(grain)) and grain.float().std() > 5


def test_a_family_without_styles_walks_in_z(tmp_path: Path) -> None:
    plain = Generator(NoStyles(), "plain")
    frames = frames_of(interpolate(plain, Walk((1, 2), frames=3), Look(), tmp_path / "walk", 25))
    assert torch.equal(frames[-1], plain.images(plain.latents([2]))[0, 0])
    with pytest.raises(UserError, match="--space w needs a family with styles"):
        interpolate(plain, Walk((1, 2), space="w"), Look(), tmp_path / "other", 25)


@pytest.mark.parametrize(
    ("walk", "message"),
    [
        (Walk((1,), ("star",)), "--seeds: name at least two"),
        (Walk((1, 2), ("star",), frames=0), "--frames 0: allowed: 1 or more"),
        (Walk((1, 2)), "--class: name one of round, square, star"),
        (Walk((1, 2), ("oval",)), "--class oval: allowed: round, square, star"),
        (Walk((1, 2), ("star", "round"), "z"), "--class star,round: .* goes in w alone"),
    ],
)
def test_walks_that_cannot_be_had(walk: Walk, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        interpolate(linear(conditional=True), walk, Look(), tmp_path / "walk", 25)
    assert not (tmp_path / "walk").exists()
