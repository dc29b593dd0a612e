"""StyleGAN2's layers against the papers' formulas, written out, in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gan_train.adversary import ImageShape
from gan_train.families.stylegan.build import StyleGANConfig
from gan_train.families.stylegan.discriminator import Conv, DiscriminatorBlock
from gan_train.families.stylegan.elementwise import Features
from gan_train.families.stylegan.mapping import Dense, Mapping
from gan_train.families.stylegan.noise import noise_maps
from gan_train.families.stylegan.plain import modulated_conv, resample
from gan_train.families.stylegan.synthesis import StyledConv, ToImage
from tests.unit.families.small import draws, lived, normal, small

close = torch.testing.assert_close


def leaky(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.2 * x)


def gradients(y: Tensor, x: Tensor, module: nn.Module) -> list[Tensor]:
    """Those of a loss that is not linear, by x and the parameters, and those of a gradient penalty
    on the first of them."""
    inputs = [x, *(p for p in module.parameters())]
    (by_x,) = torch.autograd.grad(y.tanh().sum(), x, create_graph=True)
    first = torch.autograd.grad(y.tanh().sum(), inputs, retain_graph=True, allow_unused=True)
    return [by_x, *first, *torch.autograd.grad(by_x.square().sum(), inputs, allow_unused=True)]


def assert_all_close(found: list[Tensor], expected: list[Tensor]) -> None:
    """Gradients that one form does not have are zero in the other."""
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        if a is None or b is None:
            assert all(g is None or not g.any() for g in (a, b))
        else:
            close(a, b, rtol=0, atol=1e-10)


# ---- the mapping -------------------------------------------------------------------------------


@pytest.mark.parametrize("rectify", [True, False])
@pytest.mark.parametrize("lr", [1.0, 0.01])
def test_dense_is_the_textbook_form(rectify: bool, lr: float) -> None:
    """Stored weights of deviation 1 / lr; at run time times He's constant and lr, so that a step on
    them moves what acts by lr times as much. LeakyReLU(0.2) is followed by sqrt(2)."""
    torch.manual_seed(0)
    dense = Dense(300, 200, lr=lr, bias=0.5, rectify=rectify).double()
    assert abs(dense.weight.std() * lr - 1) < 0.02
    close(dense.bias, torch.full_like(dense.bias, 0.5 / lr))
    x = normal(7, 300)
    y = x @ (dense.weight * lr / math.sqrt(300)).T + dense.bias * lr
    close(dense(x), leaky(y) * math.sqrt(2) if rectify else y)


def test_mapping_is_the_textbook_form() -> None:
    mapping = Mapping(8, 12, layers=3, lr=0.1, classes=3).double()
    lived(mapping)
    z, label = normal(5, 8), torch.tensor([0, 2, 1, 1, 0])
    embedded = mapping.embed.weight[:, label].T / math.sqrt(3) + mapping.embed.bias
    parts = [v / (v.square().mean(dim=1, keepdim=True) + 1e-8).sqrt() for v in (z, embedded)]
    x = torch.cat(parts, dim=1)
    for i in range(3):
        x = mapping.get_submodule(f"fc{i}")(x)
    close(mapping(z, label), x)
    close(mapping(3 * z, label), x)  # only the latent's direction counts


# ---- synthesis ---------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("noisy", [True, False])
@pytest.mark.parametrize("up", [True, False])
def test_styled_convolution(up: bool, noisy: bool, layout: torch.memory_format) -> None:
    """One weight for all images, gains folded in: equation 3 with a weight for every image."""
    torch.manual_seed(0)
    side = 8 if up else 4
    conv = StyledConv(3, 5, 6, side, up=up).double().to(memory_format=layout)
    lived(conv)
    x = normal(2, 3, 4, 4).contiguous(memory_format=layout).requires_grad_(True)
    w, noise = normal(2, 6, seed=2), normal(2, 1, side, side, seed=3) if noisy else None

    style = F.linear(w, conv.affine.weight / math.sqrt(6), conv.affine.bias)
    y = modulated_conv(x, conv.weight, style, demodulate=True, up=up)
    if noise is not None:
        y = y + noise * conv.noise_strength
    expected = leaky(y + conv.bias[:, None, None]) * math.sqrt(2)

    found = conv(Features(x), w, noise).materialise()
    close(found, expected, rtol=0, atol=1e-12)
    assert_all_close(gradients(found, x, conv), gradients(expected, x, conv))


def test_path_length_gradients_through_the_style() -> None:
    """The gradient by w, and the gradient of its norm by every parameter."""
    torch.manual_seed(0)
    conv = StyledConv(3, 5, 6, 8, up=True).double()
    lived(conv)
    x, w = normal(2, 3, 4, 4), normal(2, 6, seed=2).requires_grad_(True)
    style = F.linear(w, conv.affine.weight / math.sqrt(6), conv.affine.bias)
    y = modulated_conv(x, conv.weight, style, demodulate=True, up=True)
    y = y + conv.noise_const * conv.noise_strength + conv.bias[:, None, None]
    expected = leaky(y) * math.sqrt(2)
    found = conv(Features(x), w, conv.noise_const).materialise()
    assert_all_close(gradients(found, w, conv), gradients(expected, w, conv))


def test_demodulation_keeps_unit_variance() -> None:
    """Whatever the style, each feature of each image has deviation 1 before bias and gain if the
    input has (Karras et al. 2019, section 2.2)."""
    torch.manual_seed(0)
    conv = StyledConv(16, 6, 12, 34).double()
    x, w = normal(48, 16, 34, 34), 3 * normal(48, 12, seed=2)
    spread = conv.affine(w).square().mean(dim=1)
    assert spread.max() > 4 * spread.min()
    y = conv(Features(x), w, None).materialise() / math.sqrt(2)
    y = torch.where(y > 0, y, 5 * y)[:, :, 1:-1, 1:-1]  # LeakyReLU undone
    deviation = y.std(dim=(2, 3))  # [N, O]
    assert (deviation.mean(dim=0) - 1).abs().max() < 0.03
    assert (deviation - 1).abs().max() < 0.25


def test_to_image_is_modulated_without_demodulation() -> None:
    torch.manual_seed(0)
    layer = ToImage(5, 3, 6).double()
    lived(layer)
    x, w = normal(2, 5, 4, 4).requires_grad_(True), normal(2, 6, seed=2)
    style = F.linear(w, layer.affine.weight / math.sqrt(6), layer.affine.bias) / math.sqrt(5)
    expected = modulated_conv(x, layer.weight, style, demodulate=False, up=False)
    expected = expected + layer.bias[:, None, None]
    found = layer(Features(x), w)
    close(found, expected)
    assert_all_close(gradients(found, x, layer), gradients(expected, x, layer))


@pytest.mark.parametrize("output", ["linear", "tanh"])
def test_the_image_is_the_sum_over_resolutions(output: str) -> None:
    family = small(output=output)
    added: dict[int, Tensor] = {}
    for resolution in (4, 8, 16):
        block = family.generator.get_submodule(f"synthesis.b{resolution}.torgb")
        block.register_forward_hook(
            lambda module, given, out, at=resolution: added.__setitem__(at, out)
        )
    image = family.synthesise(normal(2, family.num_ws, 12), "const")
    total = torch.zeros(2, 3, 2, 2, dtype=torch.float64)
    for resolution in (4, 8, 16):
        total = resample(total, 2, 1, (2, 1), 4.0) + added[resolution]
    close(image, total.tanh() if output == "tanh" else total)


def test_which_style_drives_which_layer() -> None:
    """conv1, then conv0 and conv1 of each block; a block's to-RGB shares the style of what follows
    it: two styles a resolution."""
    family = small()
    assert family.num_ws == 6
    used: dict[str, list[Tensor]] = {}
    for name, module in family.generator.named_modules():
        if name.endswith("affine"):
            module.register_forward_hook(
                lambda m, given, out, at=name: used.setdefault(at, []).append(given[0])
            )
    ws = normal(2, 6, 12)
    family.synthesise(ws, "none")
    layers = {
        "b4.conv1": 0,
        "b4.torgb": 1,
        "b8.conv0": 1,
        "b8.conv1": 2,
        "b8.torgb": 3,
        "b16.conv0": 3,
        "b16.conv1": 4,
        "b16.torgb": 5,
    }
    assert {f"synthesis.{n}.affine" for n in layers} == used.keys()
    for name, layer in layers.items():
        (given,) = used[f"synthesis.{name}.affine"]
        assert torch.equal(given, ws[:, layer]), name


# ---- noise -------------------------------------------------------------------------------------


@pytest.mark.parametrize("generation", [1, 2])
def test_noise(generation: int) -> None:
    family = small(generation=generation, start_resolution=16)
    ws = normal(1, family.num_ws, 12).expand(4, -1, -1)
    stored = family.synthesise(ws, "const")
    assert torch.equal(stored, family.synthesise(ws, "const"))
    close(stored[0], stored[1])  # one map for all images
    none = family.synthesise(ws, "none")
    close(none[0], none[1])
    assert not torch.allclose(none, stored)

    fresh = family.synthesise(ws, draws(4))
    assert torch.equal(fresh, family.synthesise(ws, draws(4)))
    assert not torch.allclose(fresh[0], fresh[1])  # maps of its own for each image ...
    close(family.synthesise(ws[2:], draws(2, start=2)), fresh[2:])  # ... by its place in the run
    assert not torch.allclose(fresh, family.synthesise(ws, draws(4, "other")))

    with torch.no_grad():
        for name, parameter in family.named_parameters():
            if name.endswith("noise_strength"):
                parameter.zero_()
    for noise in ("const", draws(4)):
        close(family.synthesise(ws, noise), family.synthesise(ws, "none"))


@pytest.mark.parametrize("generation", [1, 2])
def test_noise_starts_without_strength(generation: int) -> None:
    family = StyleGANConfig(generation=generation, channels={4: 4, 8: 4}).build(ImageShape(1, 8), 8)
    strengths = [p for n, p in family.named_parameters() if n.endswith("noise_strength")]
    assert len(strengths) == (3 if generation == 2 else 4)
    assert not any(p.any() for p in strengths)


def test_random_maps_are_normal_and_independent() -> None:
    stored = [torch.zeros(r, r) for r in (4, 8, 8, 16, 16)]
    maps = noise_maps(draws(500), stored)
    assert [tuple(m.shape) for m in maps] == [(500, 1, r, r) for r in (4, 8, 8, 16, 16)]
    for m in maps:
        assert abs(m.mean()) < 0.05 and abs(m.std() - 1) < 0.02
    for a, b in ((1, 2), (3, 4)):
        correlation = (maps[a] * maps[b]).mean()
        assert abs(correlation) < 0.03


# ---- the discriminator -------------------------------------------------------------------------


@pytest.mark.parametrize("gain", [1.0, math.sqrt(0.5)])
@pytest.mark.parametrize("rectify", [True, False])
@pytest.mark.parametrize(("kernel", "down"), [(1, False), (3, False), (1, True), (3, True)])
def test_convolution_of_the_discriminator(
    kernel: int, down: bool, rectify: bool, gain: float
) -> None:
    torch.manual_seed(0)
    conv = Conv(3, 5, kernel, down=down, rectify=rectify, gain=gain).double()
    lived(conv)
    x = normal(2, 3, 8, 8).requires_grad_(True)
    padding = (kernel - 1) // 2
    before = resample(x, 1, 1, (padding + 1, padding + 1), 1.0) if down else x
    weight = conv.weight / math.sqrt(3 * kernel**2)
    y = F.conv2d(before, weight, stride=2 if down else 1, padding=0 if down else padding)
    if rectify:
        y = leaky(y + conv.bias[:, None, None]) * math.sqrt(2)
    expected = y * gain
    found = conv(x)
    close(found, expected, rtol=0, atol=1e-12)
    assert_all_close(gradients(found, x, conv), gradients(expected, x, conv))


@pytest.mark.parametrize("kind", ["resnet", "plain"])
def test_blocks_of_the_discriminator(kind: str) -> None:
    """Residual blocks add a linear path and keep the variance; plain ones have none."""
    torch.manual_seed(0)
    config = StyleGANConfig(discriminator=kind, channels={8: 3, 4: 5})
    block = DiscriminatorBlock(config, 8, channels=2).double()
    lived(block)
    image = normal(2, 2, 8, 8)
    weight = block.fromrgb.weight / math.sqrt(2)
    x = leaky(F.conv2d(image, weight, block.fromrgb.bias)) * math.sqrt(2)
    weight = block.conv0.weight / math.sqrt(27)
    y = leaky(F.conv2d(x, weight, block.conv0.bias, padding=1)) * math.sqrt(2)
    y = resample(y, 1, 1, (2, 2), 1.0)
    weight = block.conv1.weight / math.sqrt(27)
    y = leaky(F.conv2d(y, weight, block.conv1.bias, stride=2)) * math.sqrt(2)
    if kind == "resnet":
        skip = F.conv2d(resample(x, 1, 2, (1, 1), 1.0), block.skip.weight / math.sqrt(3))
        y = (y + skip) / math.sqrt(2)
    close(block(image), y)
    names = {name.split(".")[0] for name, _ in block.named_parameters()}
    assert ("skip" in names) == (kind == "resnet")


@pytest.mark.parametrize("generation", [1, 2])
def test_projection(generation: int) -> None:
    """The class's embedding times the features (Miyato and Koyama 2018, equation 3)."""
    family = small(generation=generation, start_resolution=16)
    features: list[Tensor] = []
    inner = family.discriminator.b4.out if generation == 2 else family.discriminator.out
    inner.register_forward_hook(lambda m, given, out: features.extend([given[0], out]))
    image, label = normal(4, 3, 16, 16), torch.tensor([0, 1, 2, 1])
    logits = family.discriminate(image, label)
    hidden, out = features
    if generation == 2:
        mapping, width = family.discriminator.mapping, family.config.width(4)
        v = mapping.embed.weight[:, label].T / math.sqrt(3) + mapping.embed.bias
        v = v / (v.square().mean(dim=1, keepdim=True) + 1e-8).sqrt()
        for i in range(2):
            v = mapping.get_submodule(f"fc{i}")(v)
        assert out.shape == (4, width)
        expected = (out * v).sum(dim=1) / math.sqrt(width)
    else:
        embedding = family.discriminator.embed.weight[label]
        expected = out[:, 0] + (embedding * hidden).sum(dim=1) / math.sqrt(hidden.shape[1])
    close(logits, expected)
    assert not torch.allclose(logits, family.discriminate(image, (label + 1) % 3))


# ---- both --------------------------------------------------------------------------------------


def largest_of(x: Tensor | Features) -> float:
    return float((x.materialise() if isinstance(x, Features) else x).detach().max())


def test_the_clamp_bounds_every_activation() -> None:
    """What is above it in size is cut to it, after the gain; sums of two paths may pass it."""
    bound = 0.5
    family = small(clamp=bound, output="linear")
    largest: dict[str, float] = {}
    for name, module in family.named_modules():
        if isinstance(module, StyledConv | ToImage | Conv):
            module.register_forward_hook(
                lambda m, given, out, at=name: largest.__setitem__(at, largest_of(out))
            )
    family.sample(normal(8, 8), torch.zeros(8, dtype=torch.int64))
    family.discriminate(10 * normal(8, 3, 16, 16), torch.zeros(8, dtype=torch.int64))
    assert len(largest) == 5 + 3 + 1 + 6 + 1
    for name, value in largest.items():
        if name.endswith("skip"):
            continue
        residual = name.endswith("conv1") and name.startswith("discriminator")
        assert value == pytest.approx(bound * math.sqrt(0.5) if residual else bound), name


def test_channels_last_and_float32_are_the_same_networks() -> None:
    family, label = small(), torch.arange(4) % 3
    ws, image = normal(4, family.num_ws, 12), normal(4, 3, 16, 16)
    expected = family.synthesise(ws, "const"), family.discriminate(image, label)
    family.to(memory_format=torch.channels_last)
    close(family.synthesise(ws, "const"), expected[0])
    last = image.contiguous(memory_format=torch.channels_last)
    close(family.discriminate(last, label), expected[1])
    family.float()
    for found, exact in (
        (family.synthesise(ws.float(), "const"), expected[0]),
        (family.discriminate(last.float(), label), expected[1]),
    ):
        close(found.double(), exact, rtol=0, atol=1e-5 * float(exact.detach().abs().max()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for found, exact in (
            (family.synthesise(ws.float(), "const"), expected[0]),
            (family.discriminate(last.float(), label), expected[1]),
        ):
            assert found.dtype == torch.float32
            close(found.double(), exact, rtol=0, atol=0.05 * float(exact.detach().abs().max()))
