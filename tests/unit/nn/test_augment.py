"""Augmentations against plain references in float64."""

from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from gan_train.nn import augment
from gan_train.rng import BatchRandom


def random(count: int, seed: int = 0, start: int = 0) -> BatchRandom:
    return BatchRandom(seed, "augment", torch.arange(start, start + count))


def noise(count: int, channels: int, side: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, channels, side, side, generator=generator, dtype=dtype) * 2 - 1


def rotation(degrees: float) -> Tensor:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return torch.tensor([[[c, -s], [s, c]]], dtype=torch.float64)


NOWHERE = torch.zeros(1, 2, dtype=torch.float64)

# ---- the whole ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("channels", [1, 3])
def test_strength_zero_is_the_identity_bit_for_bit(channels: int, dtype: torch.dtype) -> None:
    images = 3 * noise(5, channels, 12).to(dtype)  # G's images may leave [-1, 1]
    for p in (0.0, torch.zeros([])):
        out = augment.augment(images, p, random(5))
        assert out.dtype == dtype and torch.equal(out, images)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("p", [0.1, 1.0])
def test_an_images_result_does_not_depend_on_its_batch(p: float, channels: int) -> None:
    images = noise(6, channels, 16)
    whole = augment.augment(images, p, random(6))
    for size in (1, 2, 3):
        parts = [
            augment.augment(images[i : i + size], p, random(size, start=i))
            for i in range(0, 6, size)
        ]
        torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=2e-6)
    assert (whole != images).any()


def test_an_image_that_draws_nothing_stays_bit_for_bit() -> None:
    images, p = noise(400, 3, 8), 0.1
    images[:, :, 0, 0] = -0.0  # even its sign
    out = augment.augment(images, p, random(400))
    names = augment._TRANSFORMATIONS
    spared = ~augment._Draws(random(400), p).touched(*names)
    assert 60 < spared.sum() < 150  # 0.9^12 = 0.28 of them
    assert torch.equal(out[spared].view(torch.int32), images[spared].view(torch.int32))


def test_groups_can_be_chosen_and_do_not_change_each_others_draws() -> None:
    images = noise(8, 3, 16)
    moved = augment.augment(images, 0.7, random(8), ("blit",))
    both = augment.augment(images, 0.7, random(8), ("blit", "colour"))
    assert torch.equal(augment.augment(moved, 0.7, random(8), ("colour",)), both)
    assert torch.equal(augment.augment(images, 1.0, random(8), ()), images)
    assert torch.isin(moved, images).all()  # no pixel is made up
    assert not torch.isin(both, images).all()


def test_strength_above_one_counts_as_one() -> None:
    images = noise(4, 3, 16)
    most = augment.augment(images, 1.0, random(4))
    assert torch.equal(augment.augment(images, torch.tensor(1.3), random(4)), most)


def test_the_result_is_not_clamped() -> None:
    out = augment.augment(noise(64, 3, 8), 1.0, random(64), ("colour",))
    assert out.max() > 1.5 and out.min() < -1.5


@pytest.mark.parametrize("shape", [(2, 3, 8, 12), (2, 2, 8, 8), (3, 3, 8, 8)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    """Images are square and grey or RGB everywhere; each has its own random numbers."""
    with pytest.raises(AssertionError):
        augment.augment(torch.zeros(shape), 1.0, random(2))


def test_no_border_shows_and_light_is_kept() -> None:
    """A plain image stays plain whatever the geometry."""
    plain = torch.full((64, 1, 16, 16), 0.7, dtype=torch.float64)
    out = augment.augment(plain, 1.0, random(64), ("blit", "geometry"))
    torch.testing.assert_close(out, plain, rtol=0, atol=1e-5)


def test_autocast_does_not_coarsen_the_filters() -> None:
    images = noise(4, 3, 16)
    plain = augment.augment(images, 1.0, random(4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(augment.augment(images, 1.0, random(4)), plain)


# ---- gradients ---------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_gradients_of_first_and_second_order(channels: int) -> None:
    images = noise(2, channels, 5, torch.float64).requires_grad_(True)

    def cubed(x: Tensor) -> Tensor:
        return augment.augment(x, 1.0, random(2)) ** 3

    assert torch.autograd.gradcheck(cubed, images)
    assert torch.autograd.gradgradcheck(cubed, images)


def test_gradients_of_third_order() -> None:
    images = noise(1, 1, 4, torch.float64).requires_grad_(True)

    def slope(x: Tensor) -> Tensor:
        fourth = augment.augment(x, 1.0, random(1)) ** 4
        return torch.autograd.grad(fourth.sum(), x, create_graph=True)[0]

    assert torch.autograd.gradgradcheck(slope, images)


def test_a_gradient_penalty_reaches_weights_through_the_augmentation() -> None:
    """R1 of D(x) = sum tanh(w T(x)): d/dw of |grad D|^2 against a central difference."""
    images = noise(2, 3, 8, torch.float64)
    weight = noise(1, 3, 8, torch.float64)

    def penalty(w: Tensor) -> Tensor:
        x = images.clone().requires_grad_(True)
        score = torch.tanh(w * augment.augment(x, 1.0, random(2))).sum()
        (gradient,) = torch.autograd.grad(score, x, create_graph=True)
        return gradient.square().sum()

    leaf = weight.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(penalty(leaf), leaf)
    direction = torch.randn(
        weight.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    step = 1e-5 * direction
    slope = (penalty(weight + step) - penalty(weight - step)).detach() / 2e-5
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-7, atol=0)


def test_training_follows_inference_at_the_same_size() -> None:
    """The filters are kept between calls; made under inference mode they would bar gradients."""
    with torch.inference_mode():
        augment.augment(noise(2, 1, 22), 1.0, random(2))
    images = noise(2, 1, 22).requires_grad_(True)
    augment.augment(images, 1.0, random(2)).sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0


# ---- blit --------------------------------------------------------------------------------------


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_flips_and_turns_are_exact(flip: bool, turns: int) -> None:
    images = noise(2, 3, 7)
    expected = torch.rot90(images.flip(3) if flip else images, turns, (2, 3))
    out = augment.orient(images, torch.tensor([flip, False]), torch.tensor([turns, 0]))
    assert torch.equal(out[0], expected[0]) and torch.equal(out[1], images[1])


@pytest.mark.parametrize(("right", "down"), [(2, 0), (0, -3), (-1, 2), (17, -40)])
def test_whole_pixel_translation_is_exact(right: int, down: int) -> None:
    images, side = noise(2, 3, 9), 9
    line = list(range(side)) + list(range(side - 2, 0, -1))  # 0 ... 8 7 ... 1, and again
    rows = [line[(i - down) % len(line)] for i in range(side)]
    columns = [line[(i - right) % len(line)] for i in range(side)]
    out = augment.translate(images, torch.tensor([[right, down], [0, 0]]))
    assert torch.equal(out[0], images[0][:, rows][:, :, columns])
    assert torch.equal(out[1], images[1])


def test_real_glyphs_keep_their_pixels_when_turned(glyphs: Path) -> None:
    with zipfile.ZipFile(glyphs) as archive:
        names = [n for n in archive.namelist() if n.endswith(".png")][::500]
        pixels = [np.array(Image.open(io.BytesIO(archive.read(n)))) for n in names]
    images = torch.from_numpy(np.stack(pixels)).float()[:, None] / 127.5 - 1
    generator = torch.Generator().manual_seed(0)
    flip = torch.rand(len(images), generator=generator) < 0.5
    turns = torch.randint(4, (len(images),), generator=generator)
    out = augment.orient(images, flip, turns)
    assert torch.equal(out.flatten(1).sort().values, images.flatten(1).sort().values)
    # and the resampling alone gives them back
    still = augment.warp(images, torch.eye(2).expand(len(images), 2, 2), torch.zeros(1, 2))
    torch.testing.assert_close(still, images, rtol=0, atol=1e-5)


# ---- geometry ----------------------------------------------------------------------------------


def test_the_filter_is_sym6() -> None:
    """Orthonormal to its shifts by two, sum sqrt 2, six vanishing moments of the mirror filter."""
    h = np.array(augment._SYM6)
    for shift in range(6):
        assert h[: 12 - 2 * shift] @ h[2 * shift :] == pytest.approx(float(shift == 0), abs=1e-14)
    assert h.sum() == pytest.approx(math.sqrt(2), abs=1e-14)
    place = np.arange(12.0)
    for power in range(6):
        moment = ((-1) ** place * (place - 5.5) ** power * h).sum()
        assert moment == pytest.approx(0, abs=1e-10)


def test_upsampling_is_zeros_between_pixels_and_the_filter() -> None:
    up, down = augment._resampling(8, torch.float64, torch.device("cpu"))
    x = noise(1, 1, 8, torch.float64)[0, 0, 0]
    mirrored = F.pad(x[None, None], (7, 7), mode="reflect")  # pixels -7 ... 14
    taps = torch.tensor(augment._SYM6, dtype=torch.float64)
    upsampled = F.conv_transpose1d(mirrored, math.sqrt(2) * taps[None, None], stride=2)[0, 0, 14:]
    torch.testing.assert_close((up @ x)[:16], upsampled[:16], rtol=0, atol=1e-13)
    assert torch.equal(up[-1], up[0])  # the period, closed: products of the rows may round
    downsampled = F.conv1d((up @ x)[None, None, :26], taps[None, None] / math.sqrt(2), stride=2)
    torch.testing.assert_close(down @ (up @ x)[:26], downsampled[0, 0], rtol=0, atol=1e-13)
    torch.testing.assert_close(downsampled[0, 0], x, rtol=0, atol=1e-13)  # the image back


@pytest.mark.parametrize("offset", [(0.3, 0.0), (0.0, -0.5), (1.25, 2.6), (-5.0, 40.0)])
def test_fractional_translation_of_a_band_limited_image(offset: tuple[float, float]) -> None:
    """Cosines that are mirrored at the borders, so that their shift is known everywhere."""
    side = 24
    line = torch.arange(side, dtype=torch.float64)

    def wave(x: Tensor, y: Tensor) -> Tensor:
        w = math.pi / (side - 1)
        first = torch.cos(3 * w * x)[None, :] * torch.cos(2 * w * y)[:, None]
        return (first + 0.5 * torch.cos(5 * w * x)[None, :] * torch.cos(4 * w * y)[:, None])[None]

    shift = torch.tensor([offset], dtype=torch.float64)
    moved = augment.warp(wave(line, line)[None], torch.eye(2, dtype=torch.float64)[None], shift)
    expected = wave(line + offset[0], line + offset[1])
    torch.testing.assert_close(moved[0], expected, rtol=0, atol=0.02)  # bilinear's error


@pytest.mark.parametrize(
    ("matrix", "offset"),
    [
        (rotation(30), (0.0, 0.0)),
        (rotation(180), (0.0, 0.0)),
        (rotation(-75), (1.3, -2.2)),
        (rotation(20) / 1.25, (0.0, 0.0)),
        (
            rotation(40) @ torch.tensor([[1.2, 0.0], [0.0, 1 / 1.2]]).double() @ rotation(-10),
            (2, 1),
        ),
    ],
)
def test_affine_maps_of_a_smooth_blob(matrix: Tensor, offset: tuple[float, float]) -> None:
    side = 32
    line = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    y, x = torch.meshgrid(line, line, indexing="ij")

    def blob(x: Tensor, y: Tensor) -> Tensor:
        return torch.exp(-((x - 3) ** 2 / 18 + (y + 2) ** 2 / 8))

    shift = torch.tensor([offset], dtype=torch.float64)
    out = augment.warp(blob(x, y)[None, None], matrix, shift)[0, 0]
    source = torch.einsum("ij,jhw->ihw", matrix[0], torch.stack([x, y])) + shift[0, :, None, None]
    inside = (source.abs() <= (side - 1) / 2).all(dim=0)
    assert inside.double().mean() > 0.6
    expected = blob(source[0], source[1])
    torch.testing.assert_close(out[inside], expected[inside], rtol=0, atol=0.03)  # 0.1 pixels


def test_quarter_turn_resampled_is_the_exact_one() -> None:
    """Direction and centre of `warp` are those of `orient`: blurred noise, turned either way."""
    smooth = F.avg_pool2d(noise(1, 1, 48, torch.float64), 9, 1)
    smooth = F.avg_pool2d(smooth, 9, 1)
    turned = augment.orient(smooth, torch.tensor([False]), torch.tensor([1]))
    # counter-clockwise with y down: the pixel at (x, y) shows the source at (-y, x)
    out = augment.warp(smooth, torch.tensor([[[0.0, -1.0], [1.0, 0.0]]]).double(), NOWHERE)
    assert (out - turned).abs().mean() < 0.05 * (smooth - turned).abs().mean()


def homogeneous(matrix: Tensor | None = None, move: Tensor | None = None) -> Tensor:
    out = torch.eye(3, dtype=torch.float64)
    if matrix is not None:
        out[:2, :2] = matrix
    if move is not None:
        out[:2, 2] = move
    return out


def test_geometry_is_the_papers_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    """G = move . rotate . stretch . rotate . scale . shift, each where it is drawn, inverted."""
    n, side = 200, 16
    seen: list[Tensor] = []

    def record(images: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
        seen.extend((matrix.double(), offset.double()))
        return images

    monkeypatch.setattr(augment, "warp", record)
    augment.augment(noise(n, 1, side), 0.5, random(n), ("blit", "geometry"))
    draws = augment._Draws(random(n), 0.5)
    value = {
        name: torch.where(
            draws._gates[name] if v.ndim == 1 else draws._gates[name][:, None], v.double(), 0
        )
        for name, v in {
            "shift": ((draws.shift - 0.5) * 0.25 * side).round(),
            "scale": 0.2 * math.log(2) * draws.scale,
            "pre_rotate": 2 * math.pi * (draws.pre_rotate - 0.5),
            "stretch": 0.2 * math.log(2) * draws.stretch,
            "post_rotate": 2 * math.pi * (draws.post_rotate - 0.5),
            "move": 0.125 * side * draws.move,
        }.items()
    }
    for i in range(n):
        v = {name: values[i] for name, values in value.items()}
        stretch = torch.diag(torch.stack([v["stretch"].exp(), (-v["stretch"]).exp()]))
        forward = (
            homogeneous(move=v["move"])
            @ homogeneous(rotation(math.degrees(v["post_rotate"]))[0])
            @ homogeneous(stretch)
            @ homogeneous(rotation(math.degrees(v["pre_rotate"]))[0])
            @ homogeneous(v["scale"].exp() * torch.eye(2))
            @ homogeneous(move=v["shift"])
        )
        inverse = torch.linalg.inv(forward)
        torch.testing.assert_close(seen[0][i], inverse[:2, :2], rtol=0, atol=1e-6)
        torch.testing.assert_close(seen[1][i], inverse[:2, 2], rtol=0, atol=1e-5)


# ---- colour ------------------------------------------------------------------------------------


def recoloured(rgb: list[float], **parameters: float) -> list[float]:
    neutral = {"brightness": 0, "contrast": 1, "luma_flip": 0, "hue": 0, "saturation": 1}
    values = {k: torch.tensor([v], dtype=torch.float64) for k, v in (neutral | parameters).items()}
    matrix, offset = augment.colour_map(**values)
    return (matrix[0] @ torch.tensor(rgb, dtype=torch.float64) + offset[0]).tolist()


def test_colours_against_formulas() -> None:
    red, skin = [1.0, -1.0, -1.0], [0.8, 0.2, -0.1]
    assert recoloured(skin) == skin
    assert recoloured(skin, brightness=0.25) == pytest.approx([1.05, 0.45, 0.15])
    assert recoloured(skin, contrast=2) == pytest.approx([1.6, 0.4, -0.2])
    assert recoloured([0.6] * 3, luma_flip=1) == pytest.approx([-0.6] * 3)
    # the mean changes its sign, the differences to it stay
    assert recoloured(skin, luma_flip=1) == pytest.approx([0.2, -0.4, -0.7])
    third = 2 * math.pi / 3
    assert recoloured(red, hue=third) == pytest.approx([-1, 1, -1])  # green
    assert recoloured(red, hue=2 * third) == pytest.approx([-1, -1, 1])  # blue
    assert recoloured([0.4] * 3, hue=1.0, saturation=3) == pytest.approx([0.4] * 3)
    assert recoloured(skin, saturation=0) == pytest.approx([0.3] * 3)
    assert recoloured(skin, saturation=2) == pytest.approx([1.3, 0.1, -0.5])
    # contrast multiplies what brightness has added
    assert recoloured(skin, brightness=0.1, contrast=2) == pytest.approx([1.8, 0.6, 0.0])
    everything = {"brightness": 0.1, "contrast": 2, "luma_flip": 1, "saturation": 2, "hue": third}
    # (1.8, 0.6, 0) -> luma -0.8: (0.2, -1, -1.6) -> hue (-1.6, 0.2, -1) -> saturation about -0.8
    assert recoloured(skin, **everything) == pytest.approx([-2.4, 1.2, -1.2])


def test_grey_images_are_coloured_as_grey_rgb_images_are() -> None:
    grey = noise(32, 1, 6)
    out = augment.augment(grey, 0.8, random(32), ("colour",))
    rgb = augment.augment(grey.expand(-1, 3, -1, -1), 0.8, random(32), ("colour",))
    torch.testing.assert_close(rgb, out.expand(-1, 3, -1, -1), rtol=0, atol=1e-5)
    assert (out - grey).abs().mean() > 0.3
