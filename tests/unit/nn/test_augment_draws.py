"""What augmentations draw, against the paper's distributions, and the control of their strength."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gan_train.nn import augment
from gan_train.rng import BatchRandom


def random(count: int) -> BatchRandom:
    return BatchRandom(0, "augment", torch.arange(count))


def test_shares_at_three_tenths() -> None:
    n = 20_000
    draws = augment._Draws(random(n), 0.3)
    for name in augment._TRANSFORMATIONS:
        share = draws.touched(name).double().mean().item()
        expected = 1 - math.sqrt(0.7) if name.endswith("_rotate") else 0.3
        assert share == pytest.approx(expected, abs=0.012), name
    either = draws.touched("pre_rotate", "post_rotate").double().mean().item()
    assert either == pytest.approx(0.3, abs=0.012)
    # drawn apart from each other
    both = (draws.touched("flip") & draws.touched("turn")).double().mean().item()
    assert both == pytest.approx(0.09, abs=0.008)


def test_share_of_images_that_a_blit_changes() -> None:
    """Half of the flips, a quarter of the turns and, at 8 pixels, a quarter of the shifts do
    nothing."""
    n = 8000
    images = BatchRandom(0, "images", torch.arange(n)).uniform(1, 8, 8)
    changed = (augment.augment(images, 0.3, random(n), ("blit",)) != images).flatten(1).any(dim=1)
    expected = 1 - (1 - 0.15) * (1 - 0.225) * (1 - 0.225)
    assert changed.double().mean().item() == pytest.approx(expected, abs=0.02)


def test_parameters_have_the_papers_distributions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Appendix B: what p = 1 draws, seen at the functions that carry it out."""
    n, side = 20_000, 64
    seen: dict[str, tuple[Tensor, ...]] = {}

    def record(images: Tensor, *parameters: Tensor) -> Tensor:
        seen["turn" if parameters[0].dtype == torch.bool else "warp"] = parameters
        return images

    def record_shift(images: Tensor, shift: Tensor) -> Tensor:
        seen["shift"] = (shift.double(),)
        return images

    def record_colour(*parameters: Tensor) -> tuple[Tensor, Tensor]:
        seen["colour"] = parameters
        return torch.ones(n, 3, 3), torch.zeros(n, 3)

    for name, recorder in (("orient", record), ("warp", record), ("translate", record_shift)):
        monkeypatch.setattr(augment, name, recorder)
    monkeypatch.setattr(augment, "colour_map", record_colour)
    augment.augment(torch.zeros(n, 1, side, side).expand(n, 1, side, side), 1.0, random(n))

    flip, turns = seen["turn"]
    assert flip.double().mean().item() == pytest.approx(0.5, abs=0.02)
    for turn in range(4):
        assert (turns == turn).double().mean().item() == pytest.approx(0.25, abs=0.02)
    (shift,) = seen["shift"]  # uniform in +-0.125: +-8 pixels
    assert shift.abs().max() == 8 and shift.mean(dim=0).abs().max() < 0.15
    assert shift.square().mean().sqrt().item() == pytest.approx(16 / math.sqrt(12), rel=0.03)

    matrix, offset = (t.double() for t in seen["warp"])
    scale = torch.linalg.det(matrix).log2() / -2  # N(0, 0.2^2) in octaves
    assert scale.std().item() == pytest.approx(0.2, rel=0.03) and scale.mean().abs() < 0.01
    stretch = torch.linalg.svdvals(matrix).log2().diff().abs()[:, 0] / 2  # |N(0, 0.2^2)|
    assert stretch.square().mean().sqrt().item() == pytest.approx(0.2, rel=0.03)
    angle = torch.atan2(matrix[:, 1, 0] - matrix[:, 0, 1], matrix[:, 0, 0] + matrix[:, 1, 1])
    counts = torch.histc(angle, 8, -math.pi, math.pi) / n
    assert (counts - 1 / 8).abs().max() < 0.015
    move = torch.linalg.solve(matrix, -(offset + shift))  # N(0, (0.125 side)^2)
    assert (move.std(dim=0) / (0.125 * side) - 1).abs().max() < 0.03

    brightness, contrast, luma_flip, hue, saturation = (t.double() for t in seen["colour"])
    assert brightness.std().item() == pytest.approx(0.2, rel=0.03)
    assert contrast.log2().std().item() == pytest.approx(0.5, rel=0.03)
    assert saturation.log2().std().item() == pytest.approx(1.0, rel=0.03)
    assert set(luma_flip.tolist()) == {0.0, 1.0}
    assert luma_flip.mean().item() == pytest.approx(0.5, abs=0.02)
    assert (torch.histc(hue, 8, -math.pi, math.pi) / n - 1 / 8).abs().max() < 0.015


# ---- strength ----------------------------------------------------------------------------------


def test_strength_rises_from_zero_to_one_in_the_given_images() -> None:
    p, batch, every = torch.zeros([]), 50, 4
    for _ in range(500_000 // (batch * every)):
        p = augment.next_strength(
            p, torch.tensor(0.8 * batch * every), torch.tensor(batch * every), 200, 0.6, 500
        )
    assert p.item() == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize(
    ("mean", "count", "before", "after"),
    [
        (0.7, 64, 0.5, 0.501),
        (0.5, 64, 0.5, 0.499),
        (-0.9, 64, 0.0005, 0.0),  # clamped from below ...
        (0.9, 64, 1.0, 1.001),  # ... and not from above
        (0.0, 0, 0.5, 0.5),  # nothing counted
    ],
)
def test_strength_follows_the_sign(mean: float, count: int, before: float, after: float) -> None:
    p = augment.next_strength(
        torch.tensor(before), torch.tensor(mean * count), torch.tensor(float(count)), 500, 0.6, 500
    )
    assert p.item() == pytest.approx(after, abs=1e-6)
