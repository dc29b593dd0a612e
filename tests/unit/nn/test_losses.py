"""Losses against the formula, penalties against gradients known in closed form."""

from __future__ import annotations

import torch

from gan_train.nn import losses


def test_logistic_losses_are_the_textbook_form() -> None:
    real, fake = torch.randn(9, dtype=torch.float64), torch.randn(9, dtype=torch.float64)
    d = -(torch.log(torch.sigmoid(real)) + torch.log(1 - torch.sigmoid(fake))).mean()
    torch.testing.assert_close(losses.logistic_d(real, fake), d)
    g = -torch.log(torch.sigmoid(fake)).mean()
    torch.testing.assert_close(losses.nonsaturating_g(fake), g)


def test_wasserstein_losses_and_drift() -> None:
    real, fake = torch.tensor([1.0, 3.0]), torch.tensor([0.0, -2.0])
    assert losses.wasserstein_d(real, fake) == -3
    assert losses.wasserstein_g(fake) == 1
    assert losses.drift(real) == 5


def test_penalties_of_a_linear_discriminator() -> None:
    """D(x) = a . x has gradient a everywhere: R1 = |a|^2 / 2, the penalty (|a| - 1)^2."""
    a = torch.randn(3, 4, 4, dtype=torch.float64)
    real, fake = torch.randn(2, 5, 3, 4, 4, dtype=torch.float64)
    mix = torch.rand(5, dtype=torch.float64)

    def linear(x: torch.Tensor) -> torch.Tensor:
        return (x * a).sum(dim=(1, 2, 3))

    norm = a.norm()
    r1 = losses.r1_penalty(linear, real)
    gp = losses.gradient_penalty(linear, real, fake, mix)
    torch.testing.assert_close(r1.double(), norm**2 / 2, rtol=1e-5, atol=0)
    torch.testing.assert_close(gp.double(), (norm - 1) ** 2, rtol=1e-4, atol=0)


def test_gradient_penalty_looks_between_real_and_fake() -> None:
    """D(x) = |x|^2 / 2 has gradient x, so the penalty tells where it was evaluated."""
    real, fake = torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), 6.0)
    gp = losses.gradient_penalty(
        lambda x: x.square().sum(dim=(1, 2, 3)) / 2, real, fake, torch.tensor([0.25])
    )
    assert gp == (3.0 - 1) ** 2


def test_penalties_reach_the_parameters() -> None:
    weight = torch.ones(2, 1, 1, requires_grad=True)
    penalty = losses.r1_penalty(lambda x: (x * weight).sum(dim=(1, 2, 3)), torch.randn(3, 2, 1, 1))
    penalty.backward()
    assert torch.equal(weight.grad, torch.ones(2, 1, 1))
