"""LSGAN's losses against the formula; its networks are DCGAN's, and tested there."""

from __future__ import annotations

import torch

from gan_train.adversary import Batch, Clock, ImageShape
from gan_train.families.dcgan import DCGANConfig
from gan_train.families.lsgan import LSGANConfig
from tests.unit.families.small import draws

SHAPE = ImageShape(1, 16, ("a", "b"))
SETTINGS = {"conditional": True, "z_dim": 5, "channels": 4, "kernel": 4}


def test_losses_are_those_of_equation_9() -> None:
    """With a = 0 and b = c = 1: half of (D(x) - 1)^2 + D(G(z))^2, and half of (D(G(z)) - 1)^2."""
    torch.manual_seed(0)
    family = LSGANConfig.model_validate(SETTINGS).build(SHAPE, 8).double()
    label = torch.arange(8) % 2
    batch: Batch = {"image": torch.randn(8, 1, 16, 16).double().tanh(), "label": label}

    fake = family.generator(draws().normal(5), label).detach()
    real_logit = family.discriminator(batch["image"], label)
    fake_logit = family.discriminator(fake, label)
    found = family.loss_d(batch, draws(), Clock())
    expected = ((real_logit - 1) ** 2).mean() / 2 + (fake_logit**2).mean() / 2
    torch.testing.assert_close(found.terms, {"D": expected})
    watched = {"logit/real": real_logit.mean(), "logit/fake": fake_logit.mean()}
    torch.testing.assert_close(found.metrics, {k: v.detach() for k, v in watched.items()})
    found_g = family.loss_g(batch, draws(), Clock())
    torch.testing.assert_close(found_g.terms, {"G": ((fake_logit - 1) ** 2).mean() / 2})


def test_networks_are_those_of_dcgan() -> None:
    """The same parameters from the same seed: recipes of both differ in the losses alone."""
    families = []
    for config in (LSGANConfig, DCGANConfig):
        torch.manual_seed(0)
        families.append(config.model_validate(SETTINGS).build(SHAPE, 8))
    ours, theirs = (family.state_dict() for family in families)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
