"""ProGAN: the schedule of the paper, growth without a jump, fades of fakes and reals."""

from __future__ import annotations

import pytest
import torch

from gan_train.adversary import Clock, ImageShape
from gan_train.errors import UserError
from gan_train.families.progan import ProGAN, ProGANConfig
from gan_train.nn.growth import Progress, fade_reals
from gan_train.nn.layers import downsample, upsample
from gan_train.rng import BatchRandom

GREY16 = ImageShape(1, 16, ("A", "B"))


def small(**changes: object) -> ProGAN:
    torch.manual_seed(0)
    settings = {"conditional": True, "z_dim": 8, "fmap_base": 64, "fmap_max": 16}
    settings |= {"fade_kimg": 1, "stable_kimg": 2, "loss": "logistic-r1"}
    return ProGANConfig.model_validate(settings | changes).build(GREY16, 8)


def test_widths_follow_the_paper() -> None:
    """Karras et al. 2017, table 2: 512 up to 32x32, then halving to 16 at 1024."""
    config = ProGANConfig()
    widths = [config.width(r) for r in (4, 8, 16, 32, 64, 128, 256, 512, 1024)]
    assert widths == [512, 512, 512, 512, 256, 128, 64, 32, 16]


def test_stages_alternate_and_alpha_rises_through_the_fade() -> None:
    family = small()
    assert [s.name for s in family.stages()] == ["4", "8-fade", "8", "16-fade", "16"]
    assert [s.milestone for s in family.stages()] == [True, False, True, False, True]
    later = small(milestones_from=8)
    assert [s.milestone for s in later.stages()] == [False, False, True, False, True]
    assert [s.fresh_optimizers for s in family.stages()] == [False, True, False, True, False]
    seen = []
    for nimg in (0, 1999, 2000, 2250, 3000, 4999, 5500, 6000, 99999):
        family.advance(Clock(0, nimg))
        seen.append((family.progress.resolution, family.progress.alpha))
    assert seen == [
        (4, 1), (4, 1), (8, 0), (8, 0.25), (8, 1), (8, 1), (16, 0.5), (16, 1), (16, 1),
    ]  # fmt: skip


def test_growth_begins_without_a_jump() -> None:
    """At alpha 0 the new level shows the old image doubled, and D sees just that."""
    family = small()
    z, label = torch.randn(4, 8), torch.tensor([0, 1, 0, 1])
    old = family.generator(z, label, Progress(8, 1.0))
    new = family.generator(z, label, Progress(16, 0.0))
    torch.testing.assert_close(new, upsample(old))
    image = torch.randn(4, 1, 16, 16)
    torch.testing.assert_close(
        family.discriminator(image, label, Progress(16, 0.0)),
        family.discriminator(downsample(image), label, Progress(8, 1.0)),
    )


def test_fades_blend_both_levels() -> None:
    family = small()
    z, label = torch.randn(4, 8), torch.tensor([0, 1, 0, 1])
    ends = [family.generator(z, label, Progress(16, a)) for a in (0.0, 1.0)]
    middle = family.generator(z, label, Progress(16, 0.25))
    torch.testing.assert_close(middle, torch.lerp(ends[0], ends[1], 0.25))
    family.progress = Progress(16, 0.25)
    image = torch.randn(4, 1, 16, 16)
    expected = 0.75 * upsample(downsample(image)) + 0.25 * image
    torch.testing.assert_close(fade_reals(image, family.progress.alpha), expected)


def test_levels_not_reached_get_no_gradient() -> None:
    family = small()
    family.advance(Clock(0, 2500))  # inside the fade to 8
    batch = {"image": torch.randn(8, 1, 8, 8), "label": torch.arange(8) % 2}
    for phase in family.stages()[1].phases:
        losses = phase.loss(batch, BatchRandom(0, phase.name, torch.arange(8)), Clock(0, 2500))
        sum(losses.terms.values()).backward()
    without = {n for n, p in family.named_parameters() if p.grad is None}
    assert without and all("16" in name for name in without), without


def test_the_class_decides_what_is_generated_and_its_logit() -> None:
    family = small()
    z, a, b = torch.randn(4, 8), torch.zeros(4, dtype=torch.int64), torch.ones(4, dtype=torch.int64)
    full = Progress(16, 1.0)
    assert not torch.allclose(family.generator(z, a, full), family.generator(z, b, full))
    image = torch.randn(4, 1, 16, 16)
    assert not torch.allclose(
        family.discriminator(image, a, full), family.discriminator(image, b, full)
    )


def test_wgan_gp_has_the_paper_terms() -> None:
    family = small(loss="wgan-gp")
    family.advance(Clock(0, 0))
    batch = {"image": torch.randn(8, 1, 4, 4), "label": torch.arange(8) % 2}
    stage = family.stages()[0]
    assert [p.name for p in stage.phases] == ["D", "G"]
    terms = stage.phases[0].loss(batch, BatchRandom(0, "D", torch.arange(8)), Clock()).terms
    assert set(terms) == {"D", "gp", "drift"}


@pytest.mark.parametrize("resolution", [4, 8, 64, 1024])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_power_of_two(resolution: int, channels: int) -> None:
    config = ProGANConfig(z_dim=4, fmap_base=512, fmap_max=4)
    family = config.build(ImageShape(channels, resolution), 4)
    family.advance(Clock(0, 10**9))
    image = family.sample(torch.randn(1, 4), None)
    assert image.shape == (1, channels, resolution, resolution)


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="has no classes"):
        ProGANConfig(conditional=True).build(ImageShape(1, 16), 8)
    with pytest.raises(UserError, match="start_resolution is 32"):
        ProGANConfig(start_resolution=32).build(ImageShape(1, 16), 8)
    with pytest.raises(UserError, match="no truncation"):
        small().sample(torch.randn(1, 8), torch.tensor([0]), truncation=0.7)
