"""DCGAN: the architecture of the paper, batch normalisation, and the average it does not allow."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gan_train.adversary import Batch, Clock, ImageShape, OptimizerSettings
from gan_train.errors import UserError
from gan_train.families.dcgan import DCGAN, DCGANConfig
from gan_train.inference import Generator
from gan_train.nn.batchnorm import BatchNorm
from gan_train.rng import BatchRandom
from tests.training import newest, run, tiny_config, weights

SHAPE = ImageShape(3, 16, ("A", "B"))


def dcgan(shape: ImageShape = SHAPE, **changes: Any) -> DCGAN:
    torch.manual_seed(0)
    settings = {"conditional": bool(shape.classes), "z_dim": 6, "channels": 4, "kernel": 4}
    return DCGANConfig.model_validate(settings | changes).build(shape, 8)


def draws(stream: str) -> BatchRandom:
    return BatchRandom(0, stream, torch.arange(8))


def batch(side: int = 16) -> Batch:
    return {"image": torch.randn(8, 3, side, side).tanh(), "label": torch.arange(8) % 2}


def test_the_papers_network_for_64_pixels() -> None:
    """Figure 1: z 100, then 1024 maps of 4x4, 512, 256, 128 and the image, by 5x5 kernels."""
    family = DCGANConfig().build(ImageShape(3, 64), 128)
    g, d = family.generator, family.discriminator
    assert g.project.weight.shape == (1024 * 16, 100)
    assert [tuple(c.weight.shape) for c in (*g.convolutions, g.out)] == [
        (1024, 512, 5, 5), (512, 256, 5, 5), (256, 128, 5, 5), (128, 3, 5, 5),
    ]  # fmt: skip
    assert [tuple(c.weight.shape) for c in (d.first, *d.convolutions, d.out)] == [
        (128, 3, 5, 5), (256, 128, 5, 5), (512, 256, 5, 5), (1024, 512, 5, 5), (1, 1024, 4, 4),
    ]  # fmt: skip
    # normalised everywhere but at G's output and D's input
    assert [norm.weight.numel() for norm in g.norms] == [1024, 512, 256, 128]
    assert [norm.weight.numel() for norm in d.norms] == [256, 512, 1024]
    spec = family.optimizers()["D"]
    assert spec.kind == "adam"
    assert spec.settings == OptimizerSettings(lr=2e-4, betas=(0.5, 0.999))


def test_weights_begin_at_a_standard_deviation_of_two_hundredths() -> None:
    family = dcgan(ImageShape(3, 32, ("A", "B")), channels=32)
    for name, p in family.named_parameters():
        if name.endswith("bias"):
            assert not p.any(), name
        elif "norms" in name:
            assert (p == 1).all(), name
        else:
            error = 6 * 0.02 / math.sqrt(2 * p.numel())
            assert float(p.detach().std()) == pytest.approx(0.02, abs=error), name
            assert float(p.detach().mean()) == pytest.approx(
                0, abs=6 * 0.02 / math.sqrt(p.numel())
            ), name


@pytest.mark.parametrize("kernel", [4, 5])
@pytest.mark.parametrize("resolution", [16, 32, 128])
def test_any_power_of_two_from_16(resolution: int, kernel: int) -> None:
    family = dcgan(ImageShape(1, resolution), kernel=kernel, channels=2, channel_max=8)
    image = family.generator(torch.randn(3, 6), None)
    assert image.shape == (3, 1, resolution, resolution)
    assert family.discriminator(image, None).shape == (3,)
    pooling = (nn.AvgPool2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d)
    assert not [m for m in family.modules() if isinstance(m, pooling)]


def test_d_sees_reals_and_fakes_apart() -> None:
    """Each is normalised by its own kind: fakes do not change what D says of the reals."""
    family, given = dcgan().double(), batch()
    given["image"] = given["image"].double()
    found = family.loss_d(given, draws("D"), Clock())
    fake = family.generator(draws("D").normal(6), given["label"])
    real_p, fake_p = (
        family.discriminator(x, given["label"]).sigmoid() for x in (given["image"], fake)
    )
    expected = -(torch.log(real_p) + torch.log(1 - fake_p)).mean()
    torch.testing.assert_close(found.terms["D"], expected)
    torch.testing.assert_close(found.metrics["probability/real"], real_p.detach().mean())
    torch.testing.assert_close(found.metrics["probability/fake"], fake_p.detach().mean())
    p = family.discriminator(family.generator(draws("G").normal(6), given["label"]), given["label"])
    found = family.loss_g(given, draws("G"), Clock())
    torch.testing.assert_close(found.terms["G"], -torch.log(p.sigmoid()).mean())


def test_the_class_decides_what_is_generated_and_its_logit() -> None:
    family, given = dcgan().eval(), batch()
    z, label = torch.randn(8, 6), given["label"]
    assert not torch.allclose(family.sample(z, label), family.sample(z, 1 - label), atol=1e-4)
    logits = [family.discriminator(given["image"], y) for y in (label, 1 - label)]
    assert not torch.isclose(*logits, rtol=0, atol=1e-6).any()


def test_an_image_does_not_depend_on_its_neighbours() -> None:
    family, z, label = dcgan(), torch.randn(8, 6), torch.arange(8) % 2
    for _ in range(3):
        family.generator(z, label)  # the running statistics follow
    family.eval()
    alone = torch.cat([family.sample(z[i : i + 1], label[i : i + 1]) for i in range(8)])
    torch.testing.assert_close(family.sample(z, label), alone, rtol=1e-5, atol=1e-6)
    family.train()
    with pytest.raises(AssertionError, match="call eval"):
        family.sample(z, label)


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match=r"data\.resolution is 8: dcgan makes images of 16 pixels"):
        dcgan(ImageShape(1, 8))
    with pytest.raises(UserError, match="has no classes"):
        dcgan(ImageShape(1, 16), conditional=True)
    with pytest.raises(UserError, match="no truncation"):
        dcgan().eval().sample(torch.randn(1, 6), torch.tensor([0]), 0.7)


def _settings(**changes: Any) -> dict[str, Any]:
    return {
        "family": dcgan().config.model_dump() | {"kimg": 0.064},
        "data__resolution": 16,
        "train__ema_kimg": 0,
    } | changes


def test_averaged_weights_are_refused(tiny_source: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny_source, tmp_path, **_settings(train__ema_kimg=2))
    with pytest.raises(UserError, match=r"train\.ema_kimg=2: dcgan .* set train\.ema_kimg to 0"):
        run(config, tmp_path / "run")


def test_what_is_sampled_is_the_trained_network_with_its_own_statistics(
    tiny_source: Path, tmp_path: Path
) -> None:
    trained = run(tiny_config(tiny_source, tmp_path, **_settings()), tmp_path / "run")
    saved = weights(trained, "networks")
    loaded = Generator.load(newest(trained)).adversary
    assert isinstance(loaded, DCGAN)
    moved = 0
    for name, value in loaded.generator.state_dict().items():
        assert torch.equal(value, saved[f"generator.{name}"]), name
        moved += "running" in name and bool(
            (value != BatchNorm(1).state_dict()[name.rsplit(".", 1)[1]]).all()
        )
    assert moved == 4  # mean and variance of two layers follow the batches
