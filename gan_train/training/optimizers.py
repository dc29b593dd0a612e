"""Builds optimizers from the specs of a family, and applies settings and gradient clipping."""

from __future__ import annotations

import torch
from torch import Tensor

from gan_train.adversary import Adversary, OptimizerSettings, OptimizerSpec


def parameters_of(adversary: Adversary, spec: OptimizerSpec) -> list[Tensor]:
    """The parameters of the networks that the optimizer updates, in a fixed order."""
    return [p for name in spec.nets for p in getattr(adversary, name).parameters()]


def build_optimizer(
    adversary: Adversary, spec: OptimizerSpec, *, fused: bool = True
) -> torch.optim.Optimizer:
    """A new optimizer, SGD or Adam (Kingma and Ba 2014, arXiv 1412.6980). With `fused` Adam runs in
    one kernel."""
    parameters, s = parameters_of(adversary, spec), spec.settings
    if spec.kind == "sgd":
        return torch.optim.SGD(
            parameters, lr=s.lr, momentum=s.momentum, weight_decay=s.weight_decay
        )
    return torch.optim.Adam(
        parameters,
        lr=s.lr,
        betas=s.betas,
        eps=spec.eps,
        weight_decay=s.weight_decay,
        fused=fused,
    )


def apply_settings(optimizer: torch.optim.Optimizer, settings: OptimizerSettings) -> None:
    """Use these settings from the optimizer's next update on."""
    for group in optimizer.param_groups:
        group["lr"], group["weight_decay"] = settings.lr, settings.weight_decay
        if isinstance(optimizer, torch.optim.SGD):
            group["momentum"] = settings.momentum
        else:
            group["betas"] = settings.betas


def gradient_norm(parameters: list[Tensor]) -> Tensor:
    """The L2 norm over all gradients, as a scalar on the device."""
    norms = torch._foreach_norm([p.grad for p in parameters if p.grad is not None])
    return torch.stack(norms).norm()


def clip_gradients(parameters: list[Tensor], norm: Tensor, most: float | None) -> None:
    """Scale all gradients, whose norm is `norm`, down to the norm `most` where they exceed it.

    g <- g most / max(norm, most): Pascanu et al. 2012 (arXiv 1211.5063), algorithm 1. If `most` is
    None, gradients stay as they are.
    """
    if most is not None:
        gradients = [p.grad for p in parameters if p.grad is not None]
        torch._foreach_mul_(gradients, most / norm.clamp(min=most))
