"""The vanilla and the conditional GAN: networks, losses and learning rates of the papers."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from gan_train.adversary import Batch, Clock, ImageShape
from gan_train.data.index import Index
from gan_train.data.sharding import shard
from gan_train.errors import UserError
from gan_train.families.cgan import CGAN, CGANConfig
from gan_train.families.vanilla import Vanilla, VanillaConfig
from gan_train.nn.layers import Maxout, dropout
from gan_train.rng import BatchRandom
from gan_train.runs.runtime import PlainRuntime
from gan_train.training.trainer import Trainer
from tests.training import assert_same_bits, run, tiny_config, weights
from tests.unit.families.settings import settings_at

SHAPE = ImageShape(3, 8, ("A", "B", "C"))


def vanilla(**changes: Any) -> Vanilla:
    torch.manual_seed(0)
    settings = {"z_dim": 5, "generator_widths": (7, 9), "discriminator_widths": (11, 6)}
    return VanillaConfig.model_validate(settings | changes).build(SHAPE, 8).double()


def cgan(shape: ImageShape = SHAPE, **changes: Any) -> CGAN:
    torch.manual_seed(0)
    settings = {"z_dim": 5, "latent_width": 7, "class_width": 9, "joint_width": 10}
    settings |= {"image_units": 11, "class_units": 4, "joint_units": 6}
    return CGANConfig.model_validate(settings | changes).build(shape, 8).double()


def draws(stream: str, count: int = 8) -> BatchRandom:
    return BatchRandom(0, stream, torch.arange(count))


def batch() -> Batch:
    image = torch.randn(8, 3, 8, 8, dtype=torch.float64).tanh()
    return {"image": image, "label": torch.arange(8) % 3}


def test_maxout_is_the_largest_of_its_pieces() -> None:
    layer = Maxout(4, 3, pieces=2).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    pieces = x @ layer.linear.weight.T + layer.linear.bias  # [5, 6]
    expected = torch.stack([pieces[:, [0, 1]], pieces[:, [2, 3]], pieces[:, [4, 5]]], dim=1)
    torch.testing.assert_close(layer(x), expected.max(dim=2).values)


def test_dropout_keeps_the_mean_and_belongs_to_the_sample() -> None:
    x = torch.ones(400, 50, dtype=torch.float64)
    y = dropout(x, 0.25, draws("a", 400))
    assert set(y.unique().tolist()) == {0.0, 4 / 3}
    assert float(y.mean()) == pytest.approx(1, abs=0.02)
    later = BatchRandom(0, "a", torch.arange(100, 400))
    torch.testing.assert_close(dropout(x[100:], 0.25, later), y[100:])
    assert dropout(x, 0.0, draws("a", 400)) is x


def test_a_vanilla_image_is_a_perceptron_of_z() -> None:
    family, z = vanilla(), torch.randn(4, 5, dtype=torch.float64)
    a, b, c = family.generator.layers
    hidden = torch.relu(b(torch.relu(a(z))))
    torch.testing.assert_close(family.sample(z, None), torch.tanh(c(hidden)).view(4, 3, 8, 8))
    assert [tuple(layer.weight.shape) for layer in (a, b, c)] == [(7, 5), (9, 7), (192, 9)]


@pytest.mark.parametrize("family", [VanillaConfig(), CGANConfig()], ids=["vanilla", "cgan"])
def test_images_depend_on_z_from_the_start(family: VanillaConfig | CGANConfig) -> None:
    """He's start: rectifiers keep the size of a signal, so that tanh gets values of about 1."""
    torch.manual_seed(0)
    generator = family.build(SHAPE, 8)
    image = generator.sample(torch.randn(64, 100), torch.zeros(64, dtype=torch.int64)).detach()
    assert float(torch.atanh(image.clamp(-0.9999, 0.9999)).std(dim=0).mean()) > 0.4


@pytest.mark.parametrize("units", ["maxout", "leaky_relu"])
def test_d_learns_one_for_real_and_zero_for_fake(units: str) -> None:
    """Equation 1 of the paper, written out with the probabilities."""
    family, given = vanilla(discriminator_units=units, dropout=0), batch()
    found = family.loss_d(given, draws("D"), Clock())
    fake = family.generator(draws("D").normal(5))
    p_real, p_fake = (family.discriminator(x, draws("x")).sigmoid() for x in (given["image"], fake))
    expected = -(torch.log(p_real) + torch.log(1 - p_fake)).mean()
    torch.testing.assert_close(found.terms["D"], expected)
    torch.testing.assert_close(found.metrics["probability/real"], p_real.detach().mean())
    torch.testing.assert_close(found.metrics["probability/fake"], p_fake.detach().mean())
    torch.testing.assert_close(found.metrics["logit/fake"], torch.logit(p_fake.detach()).mean())


@pytest.mark.parametrize("loss", ["non-saturating", "minimax"])
def test_g_has_the_loss_it_was_given(loss: str) -> None:
    family = vanilla(loss=loss, dropout=0)
    p = family.discriminator(family.generator(draws("G").normal(5)), draws("x")).sigmoid()
    expected = {"non-saturating": -torch.log(p).mean(), "minimax": torch.log(1 - p).mean()}
    found = family.loss_g(batch(), draws("G"), Clock()).terms["G"]
    torch.testing.assert_close(found, expected[loss])


def _gradients(family: Vanilla | CGAN, given: Batch, stream: str) -> list[str]:
    """Names of the parameters that this phase's loss reaches."""
    phase = next(p for p in family.stages()[0].phases if p.name == stream)
    family.zero_grad()
    sum(phase.loss(given, draws(stream), Clock()).terms.values()).backward()
    return [name for name, p in family.named_parameters() if p.grad is not None and p.grad.any()]


@pytest.mark.parametrize("family", [vanilla(), cgan()], ids=["vanilla", "cgan"])
def test_phases_reach_their_networks(family: Vanilla | CGAN) -> None:
    everything = {name for name, _ in family.named_parameters()}
    of_d = {name for name in everything if name.startswith("discriminator.")}
    assert set(_gradients(family, batch(), "D")) == of_d
    assert set(_gradients(family, batch(), "G")) == everything


@pytest.mark.parametrize("family", [vanilla(dropout=0.5), cgan()], ids=["vanilla", "cgan"])
@pytest.mark.parametrize("phase", ["loss_d", "loss_g"])
def test_halves_of_a_batch_have_the_loss_of_the_whole(family: Vanilla | CGAN, phase: str) -> None:
    given, loss = batch(), getattr(family, phase)
    whole = loss(given, draws("x"), Clock()).terms
    halves: list[dict[str, Tensor]] = []
    for part in (slice(0, 4), slice(4, 8)):
        share = {name: value[part] for name, value in given.items()}
        halves.append(loss(share, BatchRandom(0, "x", torch.arange(8)[part]), Clock()).terms)
    for name, value in whole.items():
        torch.testing.assert_close(value, (halves[0][name] + halves[1][name]) / 2)


def test_the_class_decides_what_is_generated_and_its_logit() -> None:
    family, given = cgan(dropout=0), batch()
    z, label = torch.randn(8, 5, dtype=torch.float64), given["label"]
    other = (label + 1) % 3
    assert not torch.allclose(family.sample(z, label), family.sample(z, other))
    real = [family.discriminator(given["image"], y, draws("x")) for y in (label, other)]
    assert not torch.isclose(*real).any()
    # two branches: of z and of the class, joined behind their rectifiers
    g = family.generator
    branches = [g.of_latent(z), g.of_class(torch.eye(3, dtype=torch.float64)[label])]
    joint = torch.relu(g.joint(torch.relu(torch.cat(branches, dim=1))))
    expected = torch.tanh(g.out(joint)).view(8, 3, 8, 8)
    torch.testing.assert_close(family.sample(z, label), expected)


def test_the_papers_learning_rate_falls_by_the_update() -> None:
    family = CGANConfig().build(SHAPE, 100)
    (stage,) = family.stages()
    steps = (0, 1, 1000, 10**6)
    rates = [settings_at(family, "G", stage, Clock(step, 0)).lr for step in steps]
    assert rates == pytest.approx([0.1, 0.1 / 1.00004, 0.1 / 1.00004**1000, 1e-6])
    spec = family.optimizers()["D"]
    assert (spec.kind, spec.settings.lr, spec.nets) == ("sgd", 0.1, ("discriminator",))
    steady = CGANConfig(optimizer="adam").build(SHAPE, 100)
    assert settings_at(steady, "G", stage, Clock(10**6, 0)).lr == 2e-4
    spec = steady.optimizers()["G"]
    assert (spec.kind, spec.settings.betas, spec.nets) == ("adam", (0.5, 0.999), ("generator",))


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        (VanillaConfig, {"betas": (0, 0.9)}, "family.betas needs family.optimizer=adam"),
        (
            VanillaConfig,
            {"optimizer": "adam", "momentum": (0.9, 0.9)},
            "needs family.optimizer=sgd",
        ),
        (
            VanillaConfig,
            {"discriminator_units": "leaky_relu", "maxout_pieces": 3},
            "family.maxout_pieces needs family.discriminator_units=maxout",
        ),
        (CGANConfig, {"betas": (0, 0.9)}, "does not belong to family.optimizer=sgd"),
        (CGANConfig, {"optimizer": "adam", "lr_decay": 1.1}, "family.lr_decay does not belong"),
    ],
)
def test_settings_without_effect_are_refused(
    config: type[VanillaConfig | CGANConfig], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        config.model_validate(settings)


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match=r"cgan needs classes and the data has none; set data\.cl"):
        cgan(ImageShape(1, 8))
    with pytest.raises(UserError, match="no truncation"):
        vanilla().sample(torch.randn(1, 5), None, 0.7)
    with pytest.raises(UserError, match="no truncation"):
        cgan().sample(torch.randn(1, 5), torch.tensor([0]), 0.7)


def test_momentum_rises_to_the_end_of_the_schedule() -> None:
    for family in (VanillaConfig().build(SHAPE, 100), CGANConfig().build(SHAPE, 100)):
        (stage,) = family.stages()
        images = (0, stage.nimg // 4, stage.nimg, 2 * stage.nimg)
        momenta = [settings_at(family, "G", stage, Clock(0, nimg)).momentum for nimg in images]
        assert momenta == pytest.approx([0.5, 0.55, 0.7, 0.7])


def test_the_trainer_follows_the_momentum(tiny_source: Path, tmp_path: Path) -> None:
    """Two steps of sgd on the gradients that the trainer had, by the formula."""
    family = vanilla(kimg=0.032, momentum=(0.2, 0.8)).config.model_dump()
    config = tiny_config(tiny_source, tmp_path, family=family, train__precision="float64")
    shards = shard(config.data, config.workspace)
    trainer = Trainer(config, Index.load(shards), shards, PlainRuntime(tmp_path / "run"))
    weight = next(trainer.adversary.get_submodule("generator").parameters())
    moved, before = [], weight.detach().clone()
    gradients: list[Tensor] = []
    weight.register_post_accumulate_grad_hook(lambda p: gradients.append(p.grad.clone()))
    (stage,) = trainer.stages
    for loaded in islice(trainer.loader.batches(0, stage.batch, stage.resolution), 2):
        trainer.step(stage, loaded)
        moved.append(weight.detach() - before)
        before = weight.detach().clone()
    first, second = gradients[0], gradients[-1]
    assert len(gradients) == 2
    lr, momentum = 0.1, 0.2 + 0.6 * 16 / 32
    torch.testing.assert_close(moved[0], -lr * first)
    torch.testing.assert_close(moved[1], -lr * (momentum * first + second))


@pytest.mark.parametrize("name", ["vanilla", "cgan"])
def test_sgd_resumes_bit_for_bit(name: str, tiny_source: Path, tmp_path: Path) -> None:
    """With momentum and a falling rate, which no recipe has."""
    family = {"vanilla": vanilla, "cgan": cgan}[name]().config.model_dump()
    settings = {"family": family | {"lr_decay": 1.5} if name == "cgan" else family}
    config, half = (
        tiny_config(tiny_source, tmp_path, **settings, train__total_kimg=kimg)
        for kimg in (0.096, 0.048)
    )
    whole = run(config, tmp_path / "whole")
    halves = run(half, tmp_path / "halves")
    run(config, halves)
    for part in ("networks", "generator", "optimizers"):
        assert_same_bits(weights(halves, part), weights(whole, part))
    assert any("momentum" in key for key in weights(whole, "optimizers"))
