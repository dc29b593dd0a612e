"""Optimizers from their declarations."""

from __future__ import annotations

import torch
from torch import Tensor

from gan_train.adversary import Adversary, OptimizerSpec


def parameters_of(adversary: Adversary, spec: OptimizerSpec) -> list[Tensor]:
    """Parameters of the networks that the optimizer moves, in a fixed order."""
    return [p for name in spec.nets for p in getattr(adversary, name).parameters()]


def build_optimizer(
    adversary: Adversary, spec: OptimizerSpec, *, fused: bool = True
) -> torch.optim.Optimizer:
    """A fresh optimizer. Adam: Kingma and Ba 2014 (arXiv 1412.6980), `fused` into one kernel."""
    parameters = parameters_of(adversary, spec)
    if spec.kind == "sgd":
        return torch.optim.SGD(parameters, lr=spec.lr, momentum=spec.momentum[0])
    return torch.optim.Adam(parameters, lr=spec.lr, betas=spec.betas, eps=spec.eps, fused=fused)
