"""DCGAN's networks, for all families that use them: Radford, Metz and Chintala 2015, arXiv
1511.06434.

Strided convolutions downsample in D, transposed convolutions upsample in G; there is no pooling.
Batch normalisation follows every layer but G's last one and D's first and last ones. Latents
are N(0, 1), where the paper's are uniform. Both networks may be conditional on the class, unlike
the paper's.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from gan_train.adversary import ImageShape, OptimizerSettings, OptimizerSpec, pair_of_optimizers
from gan_train.errors import UserError
from gan_train.nn import batchnorm
from gan_train.nn.two_player import TwoPlayer, TwoPlayerConfig
from gan_train.settings import Count, Rate

FIRST = 4
"""The side of the smallest feature maps, with which G begins and D ends."""
LEAST_RESOLUTION = 16


class DCGANNetworksConfig(TwoPlayerConfig):
    """Defaults are the paper's. `train.ema_kimg` must be 0: see `batchnorm.BatchNorm`."""

    conditional: bool = Field(
        False, description="The class enters G (joined to z) and D (projection)."
    )
    channels: Count = Field(
        128, description="Feature maps at half the images' side; twice as many a level down."
    )
    channel_max: Count = Field(1024, description="The most feature maps at any side.")
    kernel: Literal[4, 5] = Field(5, description="Side of the convolutions' kernels.")
    batch_norm: batchnorm.Statistics = Field(
        "synchronised",
        description="Mean and variance are those of the global batch (`synchronised`), or of each "
        "worker's share (`per_worker`): the result then depends on the number of workers.",
    )
    lr: Rate = 0.0002

    def widths(self, resolution: int) -> list[int]:
        """Feature maps at 4, 8, ... and at half the resolution."""
        levels = (resolution // FIRST).bit_length() - 1
        widths = [min(self.channels << level, self.channel_max) for level in range(levels)]
        return widths[::-1]


class Generator(nn.Module):
    """Latents [N, z_dim] and labels [N] to images [N, C, R, R] in (-1, 1)."""

    def __init__(self, config: DCGANNetworksConfig, shape: ImageShape):
        super().__init__()
        widths = config.widths(shape.resolution)
        # this layer convolves z, taken as maps of 1x1, to maps of 4x4
        self.project = nn.Linear(config.z_dim, widths[0] * FIRST**2, bias=False)
        self.embed: nn.Embedding | None = None
        if config.conditional:  # the same as to join a one-hot class to z
            self.embed = nn.Embedding(len(shape.classes), widths[0] * FIRST**2)
        self.norms = nn.ModuleList(batchnorm.BatchNorm(w, config.batch_norm) for w in widths)
        self.convolutions = nn.ModuleList(
            _upsampling(*pair, config.kernel, bias=False) for pair in pairwise(widths)
        )
        self.out = _upsampling(widths[-1], shape.channels, config.kernel, bias=True)

    def forward(self, z: Tensor, label: Tensor | None) -> Tensor:
        x = self.project(z.to(self.project.weight.dtype))
        if self.embed is not None:
            assert label is not None, "a conditional generator needs labels"
            x = x + self.embed(label)
        x = x.unflatten(1, (-1, FIRST, FIRST))  # [N, C, 4, 4]
        first, *norms = self.norms
        x = F.relu(first(x))
        for convolution, norm in zip(self.convolutions, norms, strict=True):
            x = F.relu(norm(convolution(x)))
        return torch.tanh(self.out(x))


class Discriminator(nn.Module):
    """Images [N, C, R, R] and labels [N] to logits [N]."""

    def __init__(self, config: DCGANNetworksConfig, shape: ImageShape):
        super().__init__()
        widths = config.widths(shape.resolution)[::-1]
        self.first = _downsampling(shape.channels, widths[0], config.kernel, bias=True)
        self.convolutions = nn.ModuleList(
            _downsampling(*pair, config.kernel, bias=False) for pair in pairwise(widths)
        )
        self.norms = nn.ModuleList(batchnorm.BatchNorm(w, config.batch_norm) for w in widths[1:])
        self.out = nn.Conv2d(widths[-1], 1, FIRST)
        self.embed: nn.Embedding | None = None
        if config.conditional:  # projection: Miyato and Koyama 2018, arXiv 1802.05637, equation 3
            self.embed = nn.Embedding(len(shape.classes), widths[-1] * FIRST**2)

    def forward(self, image: Tensor, label: Tensor | None) -> Tensor:
        x = F.leaky_relu(self.first(image), 0.2)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = F.leaky_relu(norm(convolution(x)), 0.2)  # [N, C, 4, 4] in the end
        logit: Tensor = self.out(x).flatten()  # [N]
        if self.embed is not None:
            assert label is not None, "a conditional discriminator needs labels"
            logit = logit + (self.embed(label) * x.flatten(1)).sum(dim=1)
        return logit


def _downsampling(inputs: int, outputs: int, kernel: int, bias: bool) -> nn.Conv2d:
    """A convolution of stride 2. [N, inputs, 2H, 2W] -> [N, outputs, H, W]."""
    return nn.Conv2d(inputs, outputs, kernel, stride=2, padding=(kernel - 1) // 2, bias=bias)


def _upsampling(inputs: int, outputs: int, kernel: int, bias: bool) -> nn.ConvTranspose2d:
    """A transposed convolution of stride 2. [N, inputs, H, W] -> [N, outputs, 2H, 2W]."""
    padding = (kernel - 1) // 2
    return nn.ConvTranspose2d(inputs, outputs, kernel, 2, padding, kernel % 2, bias=bias)


def _initialise(module: nn.Module) -> None:
    """Start as the paper does: weights ~ N(0, .02^2), biases at 0, gains of normalisations at 1."""
    if isinstance(module, nn.Linear | nn.Embedding | nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, std=0.02)
        bias = getattr(module, "bias", None)
        if bias is not None:
            nn.init.zeros_(bias)


class ConvolutionalGame(TwoPlayer):
    """The two-player game on DCGAN's networks. As in the authors' code, D sees real and generated
    images in separate batches, and batch normalisation takes the statistics of each."""

    config: DCGANNetworksConfig

    def __init__(self, config: DCGANNetworksConfig, shape: ImageShape, batch: int):
        """Raises UserError for images that are too small and for a missing class."""
        super().__init__(config, shape, batch)
        if shape.resolution < LEAST_RESOLUTION:
            raise UserError(
                f"data.resolution is {shape.resolution}: {config.name} makes images of "
                f"{LEAST_RESOLUTION} pixels and more"
            )
        shape.check_classes(config.conditional)
        self.conditional = config.conditional
        self.generator = Generator(config, shape)
        self.discriminator = Discriminator(config, shape)
        self.apply(_initialise)

    def optimizers(self) -> Mapping[str, OptimizerSpec]:
        return pair_of_optimizers(OptimizerSettings(lr=self.config.lr, betas=self.config.betas))

    def sample(self, z: Tensor, label: Tensor | None, truncation: float = 1.0) -> Tensor:
        assert not self.training, "statistics of the batch would mix the images: call eval() first"
        return super().sample(z, label, truncation)
