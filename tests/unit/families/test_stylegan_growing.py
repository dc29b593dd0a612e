"""Generation 1: AdaIN, growth without a jump, and whole networks against their formulas."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gan_train.adversary import Clock, ImageShape
from gan_train.errors import UserError
from gan_train.families.stylegan.build import StyleGANConfig
from gan_train.families.stylegan.growing import (
    GrowingStyleGAN,
    StyledLayer,
)
from gan_train.nn.growth import Progress, images_of
from gan_train.nn.layers import EqualizedConv2d, downsample, upsample
from tests.unit.families.small import batch_of, draws, lived, normal, small

close = torch.testing.assert_close


def growing(**changes: object) -> GrowingStyleGAN:
    family = small(generation=1, **changes)
    assert isinstance(family, GrowingStyleGAN)
    return family


def leaky(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.2 * x)


def conv2d(conv: EqualizedConv2d, x: Tensor) -> Tensor:
    """The stored weight N(0, 1) times He's constant."""
    fan_in = conv.weight[0].numel()
    gain = 1.0 if conv.weight.shape[0] == 3 and conv.weight.shape[-1] == 1 else math.sqrt(2)
    weight = conv.weight * gain / math.sqrt(fan_in)
    return F.conv2d(x, weight, conv.bias, padding=weight.shape[-1] // 2)


def blurred(x: Tensor) -> Tensor:
    taps = torch.tensor([1.0, 2.0, 1.0], dtype=x.dtype) / 4
    kernel = torch.outer(taps, taps).expand(x.shape[1], 1, 3, 3)
    return F.conv2d(x, kernel, padding=1, groups=x.shape[1])


def affine(layer: StyledLayer, w: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and shift [N, C, 1, 1] of a layer's AdaIN."""
    style = w @ layer.affine.weight.T / math.sqrt(w.shape[1]) + layer.affine.bias
    scale, shift = style[:, :, None, None].chunk(2, dim=1)
    return 1 + scale, shift


# ---- AdaIN -------------------------------------------------------------------------------------


def test_adain_sets_mean_and_deviation_of_each_channel() -> None:
    """Karras et al. 2018, equation 1: exactly the affine map's, whatever came in."""
    torch.manual_seed(0)
    layer = StyledLayer(5, 6, 8).double()
    lived(layer)
    x, w = 40 * normal(3, 5, 8, 8) + 7, normal(3, 6, seed=2)
    y = layer(x, w, layer.noise_const)
    scale, shift = affine(layer, w)
    close(y.mean(dim=(2, 3)), shift[:, :, 0, 0])
    close(y.std(dim=(2, 3), correction=0), scale[:, :, 0, 0].abs())


def test_noise_has_a_strength_for_each_channel() -> None:
    torch.manual_seed(0)
    layer = StyledLayer(5, 6, 8).double()
    x, w = normal(2, 5, 8, 8), normal(2, 6, seed=2)
    still = layer(x, w, None)
    with torch.no_grad():
        layer.noise_strength[3] = 0.5
    noise = normal(2, 1, 8, 8, seed=3)
    moved = (layer(x, w, noise) - still).abs().amax(dim=(0, 2, 3))
    assert (moved > 0.01).tolist() == [False, False, False, True, False]
    expected = F.instance_norm(leaky(x[:, 3:4] + 0.5 * noise))
    scale, shift = affine(layer, w)
    found = layer(x, w, noise)[:, 3:4]
    close(found, expected * scale[:, 3:4] + shift[:, 3:4], rtol=1e-4, atol=1e-4)  # other epsilon


# ---- whole networks ----------------------------------------------------------------------------


def textbook_generator(family: GrowingStyleGAN, ws: Tensor, side: int) -> Tensor:
    """Upsample, 3x3 convolution, blur, noise, bias, LeakyReLU, AdaIN; twice a level."""
    g = family.generator
    x, at = g.const[None].expand(len(ws), -1, -1, -1), 0
    for level in (4, 8, 16):
        if level > side:
            break
        for i in range(2):
            if level > 4 and i == 0:
                x = blurred(conv2d(g.convolutions[f"{level}-0"], upsample(x)))
            elif i == 1:
                x = conv2d(g.convolutions[f"{level}-1"], x)
            layer = g.styled[f"{level}-{i}"]
            assert isinstance(layer, StyledLayer)
            x = x + layer.noise_const * layer.noise_strength[:, None, None]
            x = leaky(x + layer.bias[:, None, None])
            mean, variance = x.mean(dim=(2, 3), keepdim=True), x.var(dim=(2, 3), correction=0)
            scale, shift = affine(layer, ws[:, at])
            x = (x - mean) / (variance[:, :, None, None] + 1e-8).sqrt() * scale + shift
            at += 1
    return conv2d(g.to_rgb[f"{side}"], x)


@pytest.mark.parametrize("side", [4, 8, 16])
def test_the_generator_is_the_textbook_one(side: int) -> None:
    family, ws = growing(start_resolution=4), normal(3, 6, 12)
    family.progress = Progress(side, 1.0)
    close(family.synthesise(ws, "const"), textbook_generator(family, ws, side))


@pytest.mark.parametrize("side", [4, 8, 16])
def test_the_discriminator_is_the_textbook_one(side: int) -> None:
    """ProGAN's, with a blur before each downsampling convolution."""
    family = growing(conditional=False, mbstd_group=2, start_resolution=4)
    d, image = family.discriminator, normal(4, 3, side, side)
    x = leaky(F.conv2d(image, d.from_rgb[f"{side}"].weight * math.sqrt(2 / 3))
              + d.from_rgb[f"{side}"].bias[:, None, None])  # fmt: skip
    for level in (16, 8):
        if level <= side:
            x = leaky(conv2d(d.convolutions[f"{level}-0"], x))
            x = leaky(downsample(conv2d(d.convolutions[f"{level}-1"], blurred(x))))
    groups = x.view(2, 2, *x.shape[1:])
    deviation = (groups.var(dim=1, correction=0) + 1e-8).sqrt().mean(dim=(1, 2, 3))
    deviation = deviation.repeat_interleave(2)[:, None, None, None].expand(-1, 1, 4, 4)
    x = leaky(conv2d(d.conv, torch.cat([x, deviation], dim=1)))
    weight = d.dense.weight * math.sqrt(2 / d.dense.weight.shape[1])
    x = leaky(x.flatten(1) @ weight.T + d.dense.bias)
    expected = x @ d.out.weight[0] / math.sqrt(x.shape[1]) + d.out.bias
    family.progress = Progress(side, 1.0)
    close(family.discriminate(image, None), expected)


def test_growing_convolution_upsamples_bilinearly() -> None:
    """Nearest-neighbour upsampling with the blur interpolates bilinearly, away from the border."""
    x = normal(1, 2, 6, 6)
    bilinear = F.interpolate(x, scale_factor=2.0, mode="bilinear")
    close(blurred(upsample(x))[..., 1:-1, 1:-1], bilinear[..., 1:-1, 1:-1])


# ---- growth ------------------------------------------------------------------------------------


def test_stages_and_fades() -> None:
    family = growing(fade_kimg=1, stable_kimg={8: 2, 16: 3}, batch={16: 4})
    stages = family.stages()
    assert [(s.name, s.nimg, s.resolution, s.batch) for s in stages] == [
        ("8", 2000, 8, 8), ("16-fade", 1000, 16, 4), ("16", 3000, 16, 4),
    ]  # fmt: skip
    assert [s.fresh_optimizers for s in stages] == [False, True, False]
    assert [s.milestone for s in stages] == [True, False, True]
    seen = []
    for nimg in (0, 1999, 2000, 2250, 2999, 3000, 10**9):
        family.advance(Clock(0, nimg))
        seen.append((family.progress.resolution, family.progress.alpha))
    assert seen == [(8, 1), (8, 1), (16, 0), (16, 0.25), (16, 0.999), (16, 1), (16, 1)]
    assert family.status()["resolution"] == 16 and family.status()["alpha"] == 1


def test_a_fade_begins_and_ends_without_a_jump() -> None:
    family, ws, label = growing(), normal(4, 6, 12), torch.arange(4) % 3
    image = normal(4, 3, 16, 16)
    found = {}
    for resolution, alpha in ((8, 1.0), (16, 0.0), (16, 0.25), (16, 1 - 1e-12), (16, 1.0)):
        family.progress = Progress(resolution, alpha)
        shown = downsample(image) if resolution == 8 else family.prepare_reals(image)
        found[resolution, alpha] = family.synthesise(ws, "const"), family.discriminate(shown, label)
    close(found[16, 0.0][0], upsample(found[8, 1.0][0]))
    close(found[16, 0.0][1], found[8, 1.0][1])
    for a, b in zip(found[16, 1 - 1e-12], found[16, 1.0], strict=True):
        close(a, b, rtol=0, atol=1e-9)
    close(found[16, 0.25][0], 0.75 * found[16, 0.0][0] + 0.25 * found[16, 1.0][0])
    assert not torch.allclose(found[16, 0.0][0], found[16, 1.0][0])
    assert not torch.allclose(found[16, 0.0][1], found[16, 1.0][1])


def test_fades_of_the_discriminator_blend_features() -> None:
    """The old path enters behind the newest level, in the share 1 - alpha."""
    family, image = growing(conditional=False), normal(4, 3, 16, 16)
    given: list[Tensor] = []
    layer = family.discriminator.convolutions["8-0"]
    layer.register_forward_hook(lambda m, x, out: given.append(x[0]))
    for alpha in (0.0, 0.25, 1.0):
        family.progress = Progress(16, alpha)
        family.discriminate(image, None)
    close(given[1], 0.75 * given[0] + 0.25 * given[2])


def test_images_and_logits_are_float32_in_bfloat16() -> None:
    family = growing()
    ws, image, label = normal(4, family.num_ws, 12), normal(4, 3, 16, 16), torch.arange(4) % 3
    for alpha in (0.4, 1.0):
        family.progress = Progress(16, alpha)
        exact = family.double().synthesise(ws, "const"), family.discriminate(image, label)
        family.float()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = (
                family.synthesise(ws.float(), "const"),
                family.discriminate(image.float(), label),
            )
        for a, b in zip(found, exact, strict=True):
            assert a.dtype == torch.float32
            close(a.double(), b, rtol=0, atol=0.1 * float(b.detach().abs().max()))


def test_reals_are_faded_like_fakes() -> None:
    """What D is shown in every loss: downsampled and upsampled again, in the share 1 - alpha."""
    family = growing()
    family.progress = Progress(16, 0.25)
    batch = batch_of(family)
    expected = 0.75 * upsample(downsample(batch["image"])) + 0.25 * batch["image"]
    close(family.prepare_reals(batch["image"]), expected)
    shown: list[Tensor] = []
    family.discriminator.register_forward_pre_hook(lambda m, given: shown.append(given[0]))
    family.loss_d(batch, draws(), Clock())
    close(shown.pop()[:8], expected)
    family.loss_r1(batch, draws(), Clock())
    close(shown.pop(), expected)
    family.progress = Progress(16, 1.0)
    assert torch.equal(family.prepare_reals(batch["image"]), batch["image"])


@pytest.mark.parametrize(
    ("nimg", "side", "without"), [(0, 8, ["16"]), (2500, 16, ["4"]), (3500, 16, ["4", "8"])]
)
def test_only_the_levels_in_use_get_gradients(nimg: int, side: int, without: list[str]) -> None:
    """Levels above the resolution get none; neither do the ways to and from RGB below it, but for
    the old one in a fade."""
    family = growing()
    family.advance(Clock(0, nimg))
    (stage,) = [s for s in family.stages() if s.resolution == side][-1:]
    for phase in stage.phases:
        terms = phase.loss(batch_of(family, side=side), draws(), Clock(0, nimg)).terms
        torch.stack(list(terms.values())).sum().backward()
    idle = {n for n, p in family.named_parameters() if p.grad is None}
    expected = {
        name
        for name, _ in family.named_parameters()
        for level in ("4", "8", "16")
        if (f".{level}-" in name and int(level) > side)
        or (f"_rgb.{level}." in name and (int(level) > side or level in without))
        or (f"_rgb.{level}." in name and side == 8 and level == "4")
    }  # fmt: skip
    assert idle == expected and idle


def test_growth_never_changes_the_state_dict() -> None:
    family = growing()
    before = {name: value.shape for name, value in family.state_dict().items()}
    for nimg in (0, 2500, 3500, 10**9):
        family.advance(Clock(0, nimg))
        assert {name: value.shape for name, value in family.state_dict().items()} == before


# ---- mistakes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [6, 32])
def test_start_resolution_is_checked(start: int) -> None:
    config = StyleGANConfig(generation=1, start_resolution=start, channel_max=4)
    with pytest.raises(UserError, match=rf"start_resolution is {start}; allowed: a power of two"):
        config.build(ImageShape(1, 16), 8)


def test_a_missing_level_is_named() -> None:
    assert images_of({16: 0.5}, 16) == 500 and images_of(2, 4) == 2000
    with pytest.raises(UserError, match="no kimg given for resolution 8"):
        growing(stable_kimg={16: 2}).stages()
