"""The moving average, by arithmetic, and what is copied for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from gan_train.adversary import (
    Adversary,
    Clock,
    Generates,
    ImageShape,
    Translates,
    Upscales,
)
from gan_train.families.catalogue import FamilyConfig
from gan_train.families.progan import ProGANConfig
from gan_train.training.moving_average import AveragedWeights, decay

SMALL: dict[str, dict[str, Any]] = {
    "cgan": {"joint_width": 6, "class_width": 4, "latent_width": 4, "image_units": 4},
    "cyclegan": {"width": 4, "blocks": 1, "discriminator_width": 4, "pool_size": 5},
    "dcgan": {"channels": 4},
    "lapgan": {"units_g": 6, "units_d": 6},
    "lsgan": {"channels": 4},
    "progan": {"z_dim": 4, "fmap_base": 32, "fmap_max": 4},
    "srgan": {"blocks": 1, "width": 4, "high_width": 4, "discriminator_width": 2},
    "stylegan": {"z_dim": 4, "w_dim": 4, "channel_max": 4, "augment": "ada"},
    "vanilla": {"generator_widths": [6], "discriminator_widths": [4]},
}
FAMILIES = [
    *((name, {"name": name} | settings) for name, settings in SMALL.items()),
    ("stylegan1", {"name": "stylegan", "generation": 1, "z_dim": 4, "w_dim": 4, "channel_max": 4}),
]


def family_of(settings: dict[str, Any]) -> Adversary:
    torch.manual_seed(0)
    config = TypeAdapter(FamilyConfig).validate_python(settings)
    built: Adversary = config.build(ImageShape(3, 32, ("a", "b")), 4)
    return built


def made(family: Adversary) -> Tensor:
    """Images of a family, whatever it can do."""
    if isinstance(family, Generates):
        label = torch.tensor([0, 1]) if family.conditional else None
        return family.sample(torch.linspace(-1, 1, 2 * family.z_dim).view(2, -1), label)
    image = torch.linspace(-1, 1, 2 * 3 * 16 * 16).view(2, 3, 16, 16)
    if isinstance(family, Upscales):
        return family.upscale(image)
    assert isinstance(family, Translates)
    return family.translate(image, "B")


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


@pytest.mark.parametrize(("name", "settings"), FAMILIES, ids=[name for name, _ in FAMILIES])
def test_only_what_makes_images_is_copied(name: str, settings: dict[str, Any]) -> None:
    """No discriminator, pool or content network is; what is left makes the same images, follows
    progress, and tells of it."""
    family = family_of(settings)
    averaged = AveragedWeights(family)
    copied = averaged.adversary
    kept = {child for child, _ in copied.named_children()}
    assert kept == set(family.averaged) < {child for child, _ in family.named_children()}
    own = [*copied.parameters(), *copied.buffers()]
    bare = sum(b.numel() for b in family.buffers(recurse=False))  # single numbers of the family
    expected = sum(t.numel() for t in averaged.state_dict().values()) + bare
    assert sum(t.numel() for t in copied.state_dict().values()) == expected and bare <= 3
    theirs = {t.data_ptr() for t in (*family.parameters(), *family.buffers()) if t.numel()}
    assert theirs.isdisjoint(t.data_ptr() for t in own if t.numel())  # nor is anything shared
    assert not any(p.requires_grad for p in copied.parameters()) and not copied.training

    clock = Clock(0, sum(stage.nimg for stage in family.stages()))
    for one in (family.eval(), copied):
        one.advance(clock)
    assert copied.status() == family.status()
    assert torch.equal(made(copied), made(family))


def test_all_families_are_looked_at() -> None:
    names = TypeAdapter(FamilyConfig).json_schema()["discriminator"]["mapping"]
    assert {settings["name"] for _, settings in FAMILIES} == set(names)
