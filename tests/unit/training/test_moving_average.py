"""The moving average, by arithmetic."""

from __future__ import annotations

import pytest
import torch

from gan_train.adversary import ImageShape
from gan_train.families.progan import ProGANConfig
from gan_train.training.moving_average import AveragedWeights, decay


def test_half_life_is_counted_in_images() -> None:
    assert decay(64, 10**9, half_life=6400, ramp=None) ** 100 == pytest.approx(0.5)
    assert decay(64, 1000, half_life=10**6, ramp=0.05) == pytest.approx(0.5 ** (64 / 50))
    assert decay(64, 1000, half_life=0, ramp=0.05) == 0


def test_update_is_the_formula_and_leaves_the_other_networks() -> None:
    family = ProGANConfig(z_dim=4, fmap_base=32, fmap_max=4).build(ImageShape(1, 8), 4)
    averaged = AveragedWeights(family)
    name = "generator.conv.weight"
    before = averaged.state_dict()[name].clone()
    with torch.no_grad():
        family.generator.conv.weight.add_(1)
    averaged.update(0.9)
    expected = 0.9 * before + 0.1 * family.generator.conv.weight
    torch.testing.assert_close(averaged.state_dict()[name], expected)
    assert all(key.startswith("generator.") for key in averaged.state_dict())
