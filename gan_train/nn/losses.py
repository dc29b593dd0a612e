"""Adversarial losses and gradient penalties: pure functions, each with its paper and equation.

`real` and `fake` are logits [N], or of any other shape, because losses are means. Each loss is a
scalar. G minimises those whose names end in `_g`; D minimises all others.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def minimax_g(fake: Tensor) -> Tensor:
    """Goodfellow et al. 2014 (arXiv 1406.2661), equation 1, G's side: log(1 - D(G(z))).

    Its gradient vanishes where D is sure of the fakes; see `nonsaturating_g`.
    """
    return -F.softplus(fake).mean()  # log(1 - sigmoid(fake))


def nonsaturating_g(fake: Tensor) -> Tensor:
    """Goodfellow et al. 2014 (arXiv 1406.2661), section 3: G maximises log D(G(z))."""
    return F.softplus(-fake).mean()  # -log(sigmoid(fake))


def logistic_d(real: Tensor, fake: Tensor) -> Tensor:
    """Goodfellow et al. 2014, equation 1: D maximises log D(x) + log(1 - D(G(z)))."""
    # -log(sigmoid(real)) - log(1 - sigmoid(fake))
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def least_squares_g(fake: Tensor) -> Tensor:
    """LSGAN: Mao et al. 2016 (arXiv 1611.04076), equation 9, G's side, twice: E[(D(G(z)) - 1)^2],
    the form of CycleGAN (Zhu et al. 2017, arXiv 1703.10593, section 4)."""
    return (fake - 1).square().mean()


def least_squares_d(real: Tensor, fake: Tensor) -> Tensor:
    """LSGAN, equation 9, D's side, twice: E[(D(x) - 1)^2] + E[D(G(z))^2]."""
    return (real - 1).square().mean() + fake.square().mean()


def wasserstein_g(fake: Tensor) -> Tensor:
    """Arjovsky et al. 2017 (arXiv 1701.07875), equation 2, G's side: -E[D(G(z))]."""
    return -fake.mean()


def wasserstein_d(real: Tensor, fake: Tensor) -> Tensor:
    """Arjovsky et al. 2017, equation 2, D's side: E[D(G(z))] - E[D(x)]."""
    return fake.mean() - real.mean()


def drift(real: Tensor) -> Tensor:
    """Karras et al. 2017 (arXiv 1710.10196), appendix A.1: E[D(x)^2] keeps logits near zero."""
    return real.square().mean()


def gradient_penalty(
    discriminate: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, mix: Tensor
) -> Tensor:
    """WGAN-GP: Gulrajani et al. 2017 (arXiv 1704.00028), equation 3, before lambda.

    E[(||grad D(x)||_2 - 1)^2] at x = real + mix (fake - real); real and fake [N, C, H, W],
    mix [N] in [0, 1].
    """
    x = torch.lerp(real, fake, mix.view(-1, 1, 1, 1)).detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(discriminate(x).sum(), x, create_graph=True)
    norm = gradient.flatten(1).norm(dim=1)  # [N]
    return (norm - 1).square().mean()


def r1_penalty(discriminate: Callable[[Tensor], Tensor], real: Tensor) -> Tensor:
    """R1: Mescheder et al. 2018 (arXiv 1801.04406), equation 9, before gamma.

    E||grad D(x)||^2 / 2 over real images [N, C, H, W].
    """
    x = real.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(discriminate(x).sum(), x, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3)).mean() / 2


def mean_logits(real: Tensor, fake: Tensor) -> dict[str, Tensor]:
    """The mean logits of reals and fakes, detached, for the log."""
    return {"logit/real": real.detach().mean(), "logit/fake": fake.detach().mean()}


def mean_probabilities(real: Tensor, fake: Tensor) -> dict[str, Tensor]:
    """The mean logits and the mean probabilities of being real, detached, for the log."""
    return mean_logits(real, fake) | {
        "probability/real": real.detach().sigmoid().mean(),
        "probability/fake": fake.detach().sigmoid().mean(),
    }
