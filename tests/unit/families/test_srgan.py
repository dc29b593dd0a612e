"""SRGAN: the networks and losses against the paper's formulas, the stages, and that it learns."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from gan_train.adversary import Batch, Clock, ImageShape, Stage
from gan_train.errors import UserError
from gan_train.families.srgan import SRGAN, SRGANConfig
from gan_train.images.resize import bicubic_downsample, bicubic_upsample_float
from gan_train.nn.batchnorm import BatchNorm
from gan_train.pretrained.content import ContentDistance
from tests.unit.families.settings import settings_at
from tests.unit.families.small import draws, normal

SMALL: dict[str, object] = {
    "blocks": 2,
    "width": 6,
    "high_width": 4,
    "kernel": 3,
    "discriminator_width": 2,
}


def small(shape: ImageShape | None = None, **changes: object) -> SRGAN:
    """In float64, with filters as training leaves them: no network begins as nothing."""
    torch.manual_seed(0)
    config = SRGANConfig.model_validate(SMALL | changes)
    family = config.build(shape or ImageShape(3, 32), 4).double()
    torch.nn.init.normal_(family.generator.last.weight, std=0.1)
    return family


def batch_of(family: SRGAN, count: int = 4) -> Batch:
    shape, side = family.shape, family.shape.resolution
    image = normal(count, shape.channels, side, side).tanh()
    return {"image": image, "low": F.avg_pool2d(image, family.scale)}


# ---- networks ----------------------------------------------------------------------------------


def test_the_generator_is_the_papers_figure_4() -> None:
    """Written out from its parameters, in their order: 9x9, blocks, join, pixel shuffles, 9x9."""
    family = small(kernel=9, skip="none")
    p = iter(family.generator.parameters())

    def conv2d(x: Tensor) -> Tensor:
        weight, bias = next(p), next(p)
        return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)

    low = normal(2, 3, 7, 5)
    first = F.conv2d(low, (weight := next(p)), next(p), padding=4)
    assert weight.shape == (6, 3, 9, 9)
    first = x = F.prelu(first, next(p))
    for _ in range(2):
        y, kernel, bias = x, next(p), next(p)
        y = F.prelu(F.conv2d(y, kernel, bias, padding=1), next(p))
        x = x + conv2d(y)
    x = first + conv2d(x)
    for _ in range(2):
        x = conv2d(x)
        n, c, h, w = x.shape
        x = x.view(n, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, c // 4, 2 * h, 2 * w)
        x = F.prelu(x, next(p))
    expected = conv2d(x)
    assert not list(p) and expected.shape == (2, 3, 28, 20)
    torch.testing.assert_close(family.upscale(low), expected)


def test_the_defaults_are_the_papers_sizes() -> None:
    with torch.device("meta"):
        family = SRGANConfig().build(ImageShape(3, 128), 16)
    convolutions = [m for m in family.generator.modules() if isinstance(m, nn.Conv2d)]
    assert [c.kernel_size[0] for c in convolutions] == [9, *[3] * 35, 9]  # 16 blocks of two
    assert [c.out_channels for c in convolutions] == [*[64] * 34, 256, 256, 3]
    layers = [m for m in family.discriminator.modules() if isinstance(m, nn.Conv2d)]
    assert [c.out_channels for c in layers] == [64, 64, 128, 128, 256, 256, 512, 512]
    assert [c.stride[0] for c in layers] == [1, 2] * 4
    dense = [m for m in family.discriminator.modules() if isinstance(m, nn.Linear)]
    assert [(d.in_features, d.out_features) for d in dense] == [(512 * 8 * 8, 1024), (1024, 1)]
    assert family.discriminator(torch.empty(2, 3, 128, 128, device="meta")).shape == (2,)


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("channels", [1, 3])
def test_training_begins_at_bicubic(scale: int, channels: int) -> None:
    torch.manual_seed(0)
    config = SRGANConfig.model_validate(SMALL | {"scale": scale})
    family = config.build(ImageShape(channels, 32), 4)
    low = normal(2, channels, 5, 9).float()
    assert torch.equal(family.upscale(low), bicubic_upsample_float(low, scale))
    with torch.autocast("cpu", dtype=torch.bfloat16):  # the image itself is not rounded
        assert torch.equal(family.upscale(low), bicubic_upsample_float(low, scale))
    lived = small(ImageShape(channels, 32), scale=scale)
    bare = small(ImageShape(channels, 32), scale=scale, skip="none")
    bare.load_state_dict(lived.state_dict())
    difference = lived.upscale(low.double()) - bare.upscale(low.double())
    torch.testing.assert_close(difference, bicubic_upsample_float(low.double(), scale))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert bare.float().upscale(low).dtype == torch.float32


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize(("blocks", "kernel"), [(1, 3), (3, 5), (1, 9)])
def test_reach_is_how_far_a_pixel_looks(scale: int, blocks: int, kernel: int) -> None:
    family = small(scale=scale, blocks=blocks, kernel=kernel)
    middle = family.reach + 2
    low = normal(1, 3, 2 * middle + 1, 2 * middle + 1).requires_grad_(True)
    place = slice(middle * scale, (middle + 1) * scale)  # the pixels made of the middle one
    family.upscale(low)[..., place, place].square().sum().backward()
    assert low.grad is not None
    looked_at = (low.grad[0] != 0).any(0).nonzero() - middle  # [n, 2]
    assert looked_at.min() == -family.reach and looked_at.max() == family.reach


def test_batch_normalisation_is_where_the_paper_has_it() -> None:
    family = small(norm="batch")
    norms = [m for m in family.generator.modules() if isinstance(m, BatchNorm)]
    assert len(norms) == 2 * 2 + 1  # two a block, and after the blocks
    layers = [type(m) for m in family.discriminator.layers]
    assert layers.count(BatchNorm) == 7 and layers[:2] == [nn.Conv2d, nn.LeakyReLU]
    low = batch_of(family)["low"]
    before = norms[-1].running_mean.clone()
    family.upscale(low)
    assert not torch.equal(norms[-1].running_mean, before)
    family.eval()
    torch.testing.assert_close(family.upscale(low[:1]), family.upscale(low)[:1])


# ---- losses ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mse", "l1"])
def test_pretraining_is_the_pixel_error(kind: str) -> None:
    family = small(pixel_loss=kind, content_weight=0)
    batch = batch_of(family)
    apart = family.upscale(batch["low"]) - batch["image"]
    found = family.loss_pretrain(batch, draws(4), Clock())
    expected = apart.abs().mean() if kind == "l1" else apart.square().mean()
    torch.testing.assert_close(found.terms, {"pixel": expected})
    # peak 2, as pixels go from -1 to 1
    psnr = 20 * torch.log10(2 / apart.square().flatten(1).mean(1).sqrt())
    torch.testing.assert_close(found.metrics["psnr"], psnr.detach())


def test_the_perceptual_loss_has_its_three_terms() -> None:
    weights = {"pixel_weight": 0.01, "content_weight": 2.0, "adversarial_weight": 0.005}
    family = small(**weights)
    batch = batch_of(family)
    image, truth = family.upscale(batch["low"]), batch["image"]
    found = family.loss_g(batch, draws(4), Clock()).terms
    probability = torch.sigmoid(family.discriminator(image))
    expected = {
        "adversarial": -0.005 * probability.log().mean(),
        "content": 2.0 * ContentDistance("efficientnet_lite0", None, None)(image, truth).mean(),
        "pixel": 0.01 * (image - truth).square().mean(),
    }
    torch.testing.assert_close(found, expected)
    assert set(small(content_weight=0).loss_g(batch, draws(4), Clock()).terms) == {"adversarial"}


def test_the_discriminator_tells_photographs_from_what_was_just_made() -> None:
    family = small()
    batch = batch_of(family)
    image = family.upscale(batch["low"])
    left = family.loss_g(batch, draws(4), Clock()).leaves
    assert left.keys() == {"upscaled"} and not left["upscaled"].requires_grad
    family.zero_grad()
    found = family.loss_d(batch | left, draws(4), Clock())
    real, fake = (torch.sigmoid(family.discriminator(x)) for x in (batch["image"], image))
    torch.testing.assert_close(found.terms["D"], -(real.log().mean() + (1 - fake).log().mean()))
    found.terms["D"].backward()
    assert all(p.grad is None for p in family.generator.parameters())
    assert all(p.grad is not None for p in family.discriminator.parameters())


def test_the_content_network_is_no_part_of_the_family() -> None:
    family = small()
    names = set(family.state_dict())
    count = len(list(family.parameters()))
    batch = batch_of(family)
    family.upscale(batch["low"])
    assert family.content._network is None  # inference loads nothing
    family.loss_pretrain(batch, draws(4), Clock())
    network = family.content._network
    assert network is not None  # in time: what is missing is told before hours of training
    family.requires_grad_(True)
    assert not any(p.requires_grad for p in network.parameters())
    assert set(family.state_dict()) == names and len(list(family.parameters())) == count


def test_missing_weights_are_told_at_the_first_step() -> None:
    family = small(content="vgg19", content_weights="no/vgg19.pth", content_sha256="0" * 64)
    batch = batch_of(family)
    family.upscale(batch["low"])
    with pytest.raises(UserError, match=r"family\.content_weights: no/vgg19\.pth does not exist"):
        family.loss_pretrain(batch, draws(4), Clock())
    alone = small(
        content="vgg19",
        content_weights="no/vgg19.pth",
        content_sha256="0" * 64,
        adversarial_kimg=0,
        fine_kimg=0,
    )
    alone.loss_pretrain(batch, draws(4), Clock())  # it will never be needed


def test_a_loss_is_the_mean_of_its_parts() -> None:
    """What workers and micro-batches rely on."""
    family = small(pixel_weight=0.1)
    batch = batch_of(family)
    batch["upscaled"] = family.upscale(batch["low"]).detach()  # as G leaves it
    parts = [{name: value[half] for name, value in batch.items()} for half in ([0, 1], [2, 3])]
    for phase in family.stages()[0].phases + family.stages()[1].phases:
        whole = sum(phase.loss(batch, draws(4), Clock()).terms.values())
        halves = [sum(phase.loss(part, draws(2), Clock()).terms.values()) for part in parts]
        torch.testing.assert_close(sum(halves) / 2, whole)


# ---- schedule ----------------------------------------------------------------------------------


def summary(stage: Stage) -> tuple[object, ...]:
    phases = tuple(phase.name for phase in stage.phases)
    return stage.name, stage.nimg, phases, stage.fresh_optimizers, stage.milestone


def test_stages() -> None:
    family = small(pretrain_kimg=3, adversarial_kimg=2, fine_kimg=1, pretrain_lr=3e-4)
    assert [summary(stage) for stage in family.stages()] == [
        ("pretrain", 3000, ("G_pretrain",), False, True),
        ("adversarial", 2000, ("G", "D"), True, True),
        ("fine", 1000, ("G", "D"), False, True),
    ]
    rates = [settings_at(family, "G", stage).lr for stage in family.stages()]
    assert rates == [3e-4, 1e-4, 1e-5]
    assert {stage.resolution for stage in family.stages()} == {32}
    fine = small(pretrain_kimg=3, adversarial_kimg=0, fine_kimg=1).stages()
    assert [summary(stage)[0] for stage in fine] == ["pretrain", "fine"]
    assert fine[1].fresh_optimizers
    with pytest.raises(UserError, match="are all 0"):
        small(pretrain_kimg=0, adversarial_kimg=0, fine_kimg=0).stages()


def test_settings_that_do_not_fit() -> None:
    with pytest.raises(UserError, match="srgan needs 32 or more"):
        small(ImageShape(3, 16))
    with pytest.raises(UserError, match=r"needs `family\.content_weights`"):
        small(content="vgg19")


# ---- learning ----------------------------------------------------------------------------------


def test_it_learns_to_beat_bicubic_on_glyphs(glyphs: Path) -> None:
    with zipfile.ZipFile(glyphs) as archive:
        names = [name for name in archive.namelist() if name.endswith(".png")][::130][:64]
        planes = []
        for name in names:
            with archive.open(name) as file:
                planes.append(np.array(Image.open(file).convert("L")))
    images = torch.from_numpy(np.stack(planes))[:, None]  # [64, 1, 32, 32]
    truth, low = (x.float() / 127.5 - 1 for x in (images, bicubic_downsample(images, 2)))
    torch.manual_seed(0)
    settings = SMALL | {"scale": 2, "width": 12, "high_width": 12, "content_weight": 0}
    family = SRGANConfig.model_validate(settings).build(ImageShape(1, 32), 16)
    optimizer = torch.optim.Adam(family.generator.parameters(), 3e-3)
    for step in range(40):
        chosen = torch.arange(16 * step, 16 * step + 16) % 48
        batch = {"image": truth[chosen], "low": low[chosen]}
        losses = family.loss_pretrain(batch, draws(16), Clock(step, 16 * step))
        optimizer.zero_grad()
        losses.terms["pixel"].backward()
        optimizer.step()
    with torch.no_grad():  # on images that it has not seen
        error = (family.upscale(low[48:]) - truth[48:]).square().mean()
        bicubic = (bicubic_upsample_float(low[48:], 2) - truth[48:]).square().mean()
    assert error < 0.7 * bicubic
