"""LAPGAN: its pyramid loses nothing, its levels know nothing of each other, sampling goes coarse to
fine, and what conditions a level reaches both of its networks."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from gan_train.adversary import Batch, Clock, ImageShape
from gan_train.errors import UserError
from gan_train.families.lapgan import LAPGAN, LAPGANConfig
from gan_train.nn.pyramid import downsample, laplacian_pyramid, reconstruct, upsample
from gan_train.rng import BatchRandom
from tests.unit.families.settings import settings_at

SHAPE = ImageShape(2, 32, ("A", "B", "C"))
LEVELS = (8, 16, 32)


def small(shape: ImageShape = SHAPE, **changes: object) -> LAPGAN:
    """A narrow conditional LAPGAN in float64, with R1 everywhere."""
    torch.manual_seed(0)
    settings: dict[str, object] = {
        "conditional": True,
        "z_dim": 6,
        "units_g": 20,
        "units_d": 20,
        "channels_g": {16: 6, 32: 5},
        "channels_d": {16: 6, 32: 5},
        "r1_gamma": {8: 1.0, 16: 0.5, 32: 0.25},
        "r1_every": 1,
    }
    family = LAPGANConfig.model_validate(settings | changes).build(shape, 8)
    return family.double()


def batch_of(count: int = 8, seed: int = 1) -> Batch:
    """Pictures in [-1, 1] and classes."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(count, 2, 32, 32, generator=generator, dtype=torch.float64) * 2 - 1
    return {"image": image, "label": torch.arange(count) % 3}


def latents(family: LAPGAN, count: int = 4, stream: str = "z") -> Tensor:
    return BatchRandom(0, stream, torch.arange(count)).normal(family.z_dim).double()


def draws(count: int = 8) -> BatchRandom:
    return BatchRandom(0, "test", torch.arange(count))


# ---- the pyramid -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def letters(glyphs: Path) -> Tensor:
    """float32 [64, 1, 32, 32] in [-1, 1]: every hundredth of the sample data's glyphs."""
    with zipfile.ZipFile(glyphs) as archive:
        names = sorted(n for n in archive.namelist() if n.endswith(".png"))[::100][:64]
        pixels = [np.asarray(Image.open(io.BytesIO(archive.read(name)))) for name in names]
    return torch.from_numpy(np.stack(pixels))[:, None].float() / 127.5 - 1


@pytest.mark.parametrize("coarsest", [1, 2, 8, 16, 32])
def test_glyphs_come_back(letters: Tensor, coarsest: int) -> None:
    pyramid = laplacian_pyramid(letters, coarsest)
    sides = [band.shape[-1] for band in pyramid]
    assert sides == [s for s in (1, 2, 4, 8, 16, 32) if s >= coarsest]
    assert (reconstruct(pyramid) - letters).abs().max() <= 1e-6
    assert coarsest == 32 or not torch.allclose(upsample(downsample(letters)), letters, atol=0.1)


@pytest.mark.parametrize("side", [1, 2, 4, 64, 256])
def test_noise_of_any_power_of_two_comes_back_and_keeps_its_range(side: int) -> None:
    """Black and white noise is as far from smooth as images get."""
    generator = torch.Generator().manual_seed(side)
    image = torch.randint(0, 2, (3, 3, side, side), generator=generator).float() * 2 - 1
    residual, *bands = laplacian_pyramid(image, 1)
    assert (reconstruct([residual, *bands]) - image).abs().max() <= 1e-6
    assert residual.abs().max() <= 1
    assert all(band.abs().max() <= 2 for band in bands)
    if side == 256:
        assert bands[-1].abs().max() > 1  # the wider range is needed


def test_the_filters_are_the_binomial_ones() -> None:
    """Against Burt and Adelson's sums, written out, in the middle and at the border."""
    weights = torch.tensor([1, 4, 6, 4, 1], dtype=torch.float64) / 16
    image = torch.rand(8, 8, dtype=torch.float64)

    def inside(place: int) -> int:
        return min(max(place, 0), 7)  # the border is repeated

    smaller = downsample(image[None, None])[0, 0]
    for i, j in ((2, 1), (0, 0), (3, 3), (0, 2)):
        total = sum(
            weights[m] * weights[n] * image[inside(2 * i + m - 2), inside(2 * j + n - 2)]
            for m in range(5)
            for n in range(5)
        )
        assert smaller[i, j] == pytest.approx(float(total), abs=1e-12)
    large = upsample(image[None, None])[0, 0]
    assert large.shape == (16, 16)
    for i, j in ((6, 6), (7, 6), (7, 9), (0, 0), (15, 15)):
        # 4 sums over the m and n for which (i - m) / 2 and (j - n) / 2 are whole
        total = sum(
            4 * weights[m + 2] * weights[n + 2] * image[inside((i - m) // 2), inside((j - n) // 2)]
            for m in range(-2, 3)
            for n in range(-2, 3)
            if (i - m) % 2 == 0 and (j - n) % 2 == 0
        )
        assert large[i, j] == pytest.approx(float(total), abs=1e-12)


def test_bands_are_an_octave_apart() -> None:
    """Waves of 4, 8 and 16 pixels are strongest in the finest band, the next and the third."""
    places = torch.arange(64, dtype=torch.float64)
    strongest = []
    for wavelength in (4, 8, 16):
        wave = torch.sin(2 * torch.pi * places / wavelength).expand(1, 1, 64, 64)
        _, *bands = laplacian_pyramid(wave, 4)
        energy = [float(band.square().mean()) for band in bands]  # 8, 16, 32 and 64 pixels
        strongest.append(4 - 1 - int(np.argmax(energy)))
    assert strongest == [0, 1, 2]


# ---- levels ------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", range(9))
def test_a_phase_reaches_the_networks_of_its_level_alone(index: int) -> None:
    family = small()
    phase = family.stages()[0].phases[index]
    (net,) = family.optimizers()[phase.optimizer].nets
    losses = phase.loss(batch_of(), draws(), Clock())
    sum(losses.terms.values()).backward()
    reached = {n.split(".")[0] for n, p in family.named_parameters() if p.grad is not None}
    side = net.split("_")[1]
    assert net in reached and reached <= {f"generator_{side}", f"discriminator_{side}"}, reached


def test_a_level_is_trained_as_if_it_were_alone() -> None:
    """Noise in all other networks changes no loss of this level."""
    family = small()
    phases = [p for p in family.stages()[0].phases if p.optimizer.endswith("16")]
    assert [p.name for p in phases] == ["D16", "D16_r1", "G16"]
    before = [p.loss(batch_of(), draws(), Clock()).terms for p in phases]
    with torch.no_grad():
        for name, parameter in family.named_parameters():
            if "_16." not in name:
                parameter.add_(torch.randn_like(parameter))
    after = [p.loss(batch_of(), draws(), Clock()).terms for p in phases]
    assert before == after


def test_optimizers_move_every_parameter_once() -> None:
    family = small()
    moved = [net for spec in family.optimizers().values() for net in spec.nets]
    assert sorted(moved) == sorted(name for name, _ in family.named_children())
    assert [p.name for p in small(r1_gamma={16: 0.5}).stages()[0].phases] == [
        "D8", "G8", "D16", "D16_r1", "G16", "D32", "G32",
    ]  # fmt: skip


def test_a_level_is_conditioned_on_the_real_image_upsampled() -> None:
    family, batch = small(), batch_of()
    image, low = family.real(16, batch)
    assert low is not None
    torch.testing.assert_close(image, downsample(batch["image"]), rtol=0, atol=0)
    torch.testing.assert_close(low, upsample(downsample(image)), rtol=0, atol=0)
    # image and low make the band of the real pyramid
    torch.testing.assert_close(image - low, laplacian_pyramid(batch["image"], 8)[1], rtol=0, atol=0)
    image, low = family.real(8, batch)
    assert low is None and image.shape == (8, 2, 8, 8)


def test_losses_are_the_logistic_ones() -> None:
    """Against probabilities: -log D(x) - log(1 - D(G(z))) and -log D(G(z)), at every level."""
    family, batch = small(dropout=0.0), batch_of()
    label = batch["label"]
    for side in LEVELS:
        real, low = family.real(side, batch)
        size = 6 if low is None else side * side
        draw = draws().normal if low is None else draws().noise
        fake = family.generate(side, draw(size).double(), low, label)
        on_real, on_fake = (
            torch.sigmoid(family.discriminate(side, x, low, label, draws())) for x in (real, fake)
        )
        expected_d = -on_real.log().mean() - (1 - on_fake).log().mean()
        found_d = family.loss_d(side, batch, draws(), Clock())
        torch.testing.assert_close(found_d.terms[f"D{side}"], expected_d)
        found_g = family.loss_g(side, batch, draws(), Clock()).terms[f"G{side}"]
        torch.testing.assert_close(found_g, -on_fake.log().mean())
        assert set(found_d.metrics) == {f"logit/real/{side}", f"logit/fake/{side}"}
        torch.testing.assert_close(found_d.metrics[f"logit/real/{side}"], on_real.logit().mean())


def test_r1_is_the_slope_along_the_image() -> None:
    """Against differences: E ||dD/dx||^2 gamma / 2."""
    family, batch = small(dropout=0.0, r1_every=4), batch_of(2)
    real, low = family.real(16, batch)
    found = family.loss_r1(16, batch, draws(2), Clock()).terms["r1/16"]
    total, step = 0.0, 1e-5
    for place in range(real[0].numel()):
        nudge = torch.zeros_like(real).flatten(1)
        nudge[:, place] = step
        nudge = nudge.view_as(real)
        up, down = (
            family.discriminate(16, x, low, batch["label"], draws(2))
            for x in (real + nudge, real - nudge)
        )
        total += float(((up - down).detach() / (2 * step)).square().mean())
    assert float(found.detach()) == pytest.approx(0.5 * total / 2, rel=1e-5)


def test_dropout_is_drawn_by_place() -> None:
    family, batch = small(), batch_of()
    real, _ = family.real(8, batch)

    def logits(positions: Tensor) -> Tensor:
        rng = BatchRandom(0, "test", positions)
        return family.discriminate(8, real[positions], None, batch["label"][positions], rng)

    whole = logits(torch.arange(8))
    torch.testing.assert_close(
        torch.cat([logits(torch.arange(3)), logits(torch.arange(3, 8))]), whole
    )
    family.discriminator_8.dropout = 0.0
    assert not torch.allclose(logits(torch.arange(8)), whole)


# ---- sampling ----------------------------------------------------------------------------------


def test_sampling_runs_coarse_to_fine() -> None:
    """A level's images depend on the noise of that level and of the coarser ones alone."""
    family = small()
    assert family.z_dim == 6 + 16 * 16 + 32 * 32
    z, label = latents(family), torch.tensor([0, 1, 2, 0])
    before = family.images_by_level(z, label)
    assert [p.shape for p in before] == [(4, 2, side, side) for side in LEVELS]
    torch.testing.assert_close(before[-1], family.sample(z, label), rtol=0, atol=0)
    for level, part in enumerate((slice(0, 6), slice(6, 262), slice(262, 1286))):
        changed = z.clone()
        changed[:, part] = latents(family, stream="others")[:, part]
        after = family.images_by_level(changed, label)
        assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [
            finer < level for finer in range(3)
        ]


def test_an_image_is_the_upsampled_coarser_one_and_a_band() -> None:
    family = small()
    z, label = latents(family), torch.tensor([0, 1, 2, 0])
    coarse, middle, fine = family.images_by_level(z, label)
    assert coarse.abs().max() <= 1
    low = upsample(coarse)
    band = family.generator_16.band(z[:, 6:262], low, label)
    torch.testing.assert_close(middle, (low + band).clamp(-1, 1), rtol=0, atol=0)
    assert fine.abs().max() <= 1

    # without bands, what is left is the coarsest level, expanded: nothing else reaches the sample
    with torch.no_grad():
        for generator in (family.generator_16, family.generator_32):
            generator.out.weight.zero_()
            generator.out.bias.zero_()
    smooth = family.sample(z, label)
    torch.testing.assert_close(smooth, upsample(upsample(coarse)), rtol=0, atol=1e-12)


def test_training_and_sampling_run_the_same_networks() -> None:
    """Training's path, given the low-pass image of a sample, makes the sample."""
    family = small()
    z, label = latents(family), torch.tensor([0, 1, 2, 0])
    coarse, middle, _ = family.images_by_level(z, label)
    again = family.generate(16, z[:, 6:262], upsample(coarse), label)
    torch.testing.assert_close(again, middle, rtol=0, atol=0)


# ---- conditions --------------------------------------------------------------------------------


def differ(one: Tensor, two: Tensor) -> bool:
    """Whether every sample of one differs from its partner in two."""
    difference = (one - two).abs().reshape(len(one), -1)
    return bool((difference.amax(dim=1) > 1e-6).all())


@pytest.mark.parametrize("side", LEVELS)
def test_the_class_reaches_both_networks(side: int) -> None:
    family = small(dropout=0.0)
    image, low = family.real(side, batch_of(4))
    z = draws(4).normal(6 if low is None else side * side).double()
    a, b = torch.zeros(4, dtype=torch.int64), torch.ones(4, dtype=torch.int64)
    assert differ(family.generate(side, z, low, a), family.generate(side, z, low, b))
    logits = [family.discriminate(side, image, low, label, draws(4)) for label in (a, b)]
    assert differ(*logits)


@pytest.mark.parametrize("side", LEVELS[1:])
def test_the_low_pass_image_reaches_both_networks(side: int) -> None:
    """G's band depends on it, not only the sum; D sees it, not only the sum."""
    family, batch = small(), batch_of(4)
    image, low = family.real(side, batch)
    assert low is not None
    z, label = draws(4).noise(side * side).double(), batch["label"]
    generator = family.get_submodule(f"generator_{side}")
    assert differ(generator.band(z, low, label), generator.band(z, -low, label))
    logits = [family.discriminate(side, image, given, label, draws(4)) for given in (low, -low)]
    assert differ(*logits)


def test_the_noise_reaches_every_level() -> None:
    family, batch = small(), batch_of(4)
    for side in LEVELS:
        _, low = family.real(side, batch)
        size = 6 if low is None else side * side
        one, two = (draw.double() for draw in draws(8).normal(size).chunk(2))
        made = [family.generate(side, z, low, batch["label"]) for z in (one, two)]
        assert not torch.allclose(*made)


def test_unconditional_networks_have_no_tables() -> None:
    shape = ImageShape(3, 32)
    family = small(shape, conditional=False)
    assert not family.conditional and not any("table" in n for n, _ in family.named_parameters())
    assert family.sample(latents(family), None).shape == (4, 3, 32, 32)


# ---- schedule and settings ---------------------------------------------------------------------


def test_defaults_are_the_papers() -> None:
    """Section 4.1: 100 numbers of noise, 1200 and 600 units, SGD at .02, momentum .5 to .8."""
    family = LAPGANConfig().build(ImageShape(3, 32), 64)
    assert family.levels == [8, 16, 32]
    assert family.generator_8.hidden1.weight.shape == (1200, 1200)
    assert family.discriminator_8.hidden1.weight.shape == (600, 600)
    for spec in family.optimizers().values():
        assert (spec.kind, spec.settings.lr) == ("sgd", 0.02)
    (stage,) = family.stages()
    for share, momentum in ((0, 0.5), (0.5, 0.65), (1, 0.8), (2, 0.8)):
        now = settings_at(family, "G16", stage, Clock(0, round(share * stage.nimg)))
        assert now.momentum == pytest.approx(momentum)
    assert {p.name for p in family.stages()[0].phases} == {
        f"{net}{side}" for net in "DG" for side in LEVELS
    }


def test_the_rate_decays_by_formula() -> None:
    family = LAPGANConfig().build(ImageShape(3, 32), 64)
    (stage,) = family.stages()
    for step in (0, 1, 1000, 156_250):
        found = settings_at(family, "G16", stage, Clock(step, step * 64)).lr
        assert found == pytest.approx(0.02 * (1 / 1.00004) ** step, rel=1e-9)
    constant = LAPGANConfig(lr_decay=0).build(ImageShape(3, 32), 64)
    assert settings_at(constant, "D8", stage, Clock(1000, 64000)).lr == 0.02


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="has no classes"):
        small(ImageShape(1, 32))
    with pytest.raises(UserError, match="start_resolution is 64"):
        small(start_resolution=64)
    with pytest.raises(UserError, match=r"channels_g names resolution 8; allowed: 16, 32"):
        small(channels_g={8: 3})
    with pytest.raises(UserError, match=r"r1_gamma names resolution 64; allowed: 8, 16, 32"):
        small(r1_gamma={64: 1.0})
    with pytest.raises(UserError, match="no truncation"):
        family = small()
        family.sample(latents(family), torch.tensor([0, 1, 2, 0]), truncation=0.5)
