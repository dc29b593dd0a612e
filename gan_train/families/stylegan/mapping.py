"""The mapping network of both generations: from latents z and classes to styles w.

Karras et al. 2018 (arXiv 1812.04948), section 2. Parameters have the names of the published
networks, so that published weights can be loaded.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gan_train.adversary import ImageShape
from gan_train.families.stylegan.config import StyleGANSettings


class Dense(nn.Module):
    """Linear layer with equalised learning rate; with `rectify`, sqrt(2) LeakyReLU(0.2) follows.

    The weights are N(0, 1) / lr and are scaled by lr / sqrt(inputs) at run time, which multiplies
    their learning rate by `lr`. sqrt(2) is He's gain: it keeps the variance. [N, inputs] ->
    [N, outputs].
    """

    def __init__(
        self, inputs: int, outputs: int, *, lr: float = 1.0, bias: float = 0.0, rectify: bool = True
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / lr)
        self.bias = nn.Parameter(torch.full((outputs,), bias / lr))
        self.scale, self.lr, self.rectify = lr / math.sqrt(inputs), lr, rectify

    def forward(self, x: Tensor) -> Tensor:
        # input and bias take the gain: LeakyReLU(c x) = c LeakyReLU(x) for positive c
        gain = math.sqrt(2) if self.rectify else 1.0
        bias = self.bias if self.lr * gain == 1 else self.bias * (self.lr * gain)
        with torch.autocast(x.device.type, enabled=False):  # cheap, and styles need the precision
            # scaling x is cheaper than scaling the weight, which is larger
            y = F.linear(x.to(self.weight.dtype) * (self.scale * gain), self.weight, bias)
        return F.leaky_relu(y, 0.2) if self.rectify else y


def unit_mean_square(x: Tensor) -> Tensor:
    """Scale each vector [N, D] to a mean square of one."""
    return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + 1e-8)


class Mapping(nn.Module):
    """f: Z -> W, from latents [N, z_dim] and, if `classes` is not 0, labels int64 [N] to w
    [N, w_dim].

    The normalised embedding of the class is appended to the normalised latent. With `z_dim` 0 the
    network maps classes alone, as in StyleGAN2's projection discriminator.
    """

    def __init__(self, z_dim: int, w_dim: int, layers: int, lr: float, classes: int):
        super().__init__()
        self.layers, self.classes = layers, classes
        if classes:
            self.embed = Dense(classes, w_dim, rectify=False)
        inputs = z_dim + (w_dim if classes else 0)
        for i in range(layers):
            setattr(self, f"fc{i}", Dense(inputs if i == 0 else w_dim, w_dim, lr=lr))

    def forward(self, z: Tensor | None, label: Tensor | None) -> Tensor:
        dtype = next(self.parameters()).dtype
        parts = []
        if z is not None:
            parts.append(unit_mean_square(z.to(dtype)))
        if self.classes:
            assert label is not None, "a conditional network needs labels"
            one_hot = F.one_hot(label, self.classes).to(dtype)  # [N, classes]
            parts.append(unit_mean_square(self.embed(one_hot)))
        w = torch.cat(parts, dim=1)
        for i in range(self.layers):
            w = self.get_submodule(f"fc{i}")(w)
        return w


def build_mapping(config: StyleGANSettings, shape: ImageShape) -> Mapping:
    """A generator's mapping network, with a buffer for the mean w, to which truncation draws."""
    classes = len(shape.classes) if config.conditional else 0
    mapping = Mapping(config.z_dim, config.w_dim, config.mapping_layers, config.mapping_lr, classes)
    mapping.register_buffer("w_avg", torch.zeros(config.w_dim))
    return mapping
