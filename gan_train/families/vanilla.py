"""The first GAN: Goodfellow et al. 2014, arXiv 1406.2661.

G and D are multilayer perceptrons over all pixels at once. D's output is a logit; its sigmoid is
the probability that an image is real (1) and not generated (0).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from gan_train.adversary import (
    Clock,
    ImageShape,
    OptimizerSettings,
    OptimizerSpec,
    Stage,
    pair_of_optimizers,
)
from gan_train.nn import losses
from gan_train.nn.layers import Maxout, dropout, he_start
from gan_train.nn.schedules import Momentum, linear
from gan_train.nn.two_player import TwoPlayer, TwoPlayerConfig
from gan_train.rng import BatchRandom
from gan_train.settings import Count, Rate


class VanillaConfig(TwoPlayerConfig):
    """Defaults follow the paper: SGD with momentum, maxout and dropout in D. Today
    `optimizer: adam` is more usual."""

    name: Literal["vanilla"] = "vanilla"
    generator_widths: tuple[Count, ...] = Field(
        (1200, 1200),
        min_length=1,
        max_length=100,
        description="Units of G's hidden layers, which are ReLUs.",
    )
    discriminator_widths: tuple[Count, ...] = Field(
        (240, 240), min_length=1, max_length=100, description="Units of D's hidden layers."
    )
    discriminator_units: Literal["maxout", "leaky_relu"] = Field(
        "maxout", description="maxout: the largest of `maxout_pieces` linear functions."
    )
    maxout_pieces: int = Field(5, ge=2, le=1024, description="Linear functions of a maxout unit.")
    dropout: float = Field(0.5, ge=0, lt=1, description="Share of D's hidden units left out.")
    loss: Literal["non-saturating", "minimax"] = Field(
        "non-saturating", description="What G minimises: -log D(G(z)), or log(1 - D(G(z)))."
    )
    optimizer: Literal["sgd", "adam"] = "sgd"
    lr: Rate | None = Field(None, description="Empty: 0.1 with sgd, 0.0002 with adam.")
    momentum: tuple[Momentum, Momentum] = Field(
        (0.5, 0.7),
        description="The momentum of SGD, at the start and at the end of the schedule; linear "
        "between them.",
    )

    @model_validator(mode="after")
    def _settings_fit_the_choices(self) -> VanillaConfig:
        unused = {
            "momentum": ("optimizer", "sgd"),
            "betas": ("optimizer", "adam"),
            "maxout_pieces": ("discriminator_units", "maxout"),
        }
        for name, (choice, wanted) in unused.items():
            changed = getattr(self, name) != type(self).model_fields[name].default
            if changed and getattr(self, choice) != wanted:
                raise ValueError(f"family.{name} needs family.{choice}={wanted}: leave it out")
        return self

    def build(self, shape: ImageShape, batch: int) -> Vanilla:
        """The networks for images of this shape, trained with this global batch."""
        return Vanilla(self, shape, batch)


class Generator(nn.Module):
    """Latents [N, z_dim] to images [N, C, R, R] in (-1, 1)."""

    def __init__(self, config: VanillaConfig, shape: ImageShape):
        super().__init__()
        self.image_shape = (shape.channels, shape.resolution, shape.resolution)
        pixels = shape.channels * shape.resolution**2
        sizes = (config.z_dim, *config.generator_widths, pixels)
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(sizes))
        self.apply(he_start)

    def forward(self, z: Tensor) -> Tensor:
        *hidden, out = self.layers
        x = z.to(next(self.parameters()).dtype)
        for layer in hidden:
            x = F.relu(layer(x))
        # tanh in place of the paper's sigmoid, because pixels go from -1 to 1
        return torch.tanh(out(x)).unflatten(1, self.image_shape)


class Discriminator(nn.Module):
    """Images [N, C, R, R] to logits [N]."""

    def __init__(self, config: VanillaConfig, shape: ImageShape):
        super().__init__()
        self.maxout = config.discriminator_units == "maxout"
        self.dropout = config.dropout
        sizes = (shape.channels * shape.resolution**2, *config.discriminator_widths)
        self.hidden = nn.ModuleList(
            Maxout(*pair, config.maxout_pieces) if self.maxout else nn.Linear(*pair)
            for pair in pairwise(sizes)
        )
        self.out = nn.Linear(sizes[-1], 1)

    def forward(self, image: Tensor, rng: BatchRandom) -> Tensor:
        x = image.flatten(1)  # [N, C R R]
        for layer in self.hidden:
            x = layer(x) if self.maxout else F.leaky_relu(layer(x), 0.2)
            x = dropout(x, self.dropout, rng)
        logit: Tensor = self.out(x).squeeze(1)  # [N]
        return logit


class Vanilla(TwoPlayer):
    """The family: the two-player game as in the paper."""

    config: VanillaConfig

    def __init__(self, config: VanillaConfig, shape: ImageShape, batch: int):
        super().__init__(config, shape, batch)
        self.generator = Generator(config, shape)
        self.discriminator = Discriminator(config, shape)

    def optimizers(self) -> Mapping[str, OptimizerSpec]:
        c = self.config
        lr = c.lr or {"sgd": 0.1, "adam": 2e-4}[c.optimizer]
        settings = OptimizerSettings(lr=lr, betas=c.betas, momentum=c.momentum[0])
        return pair_of_optimizers(settings, c.optimizer)

    def settings(
        self, optimizer: str, declared: OptimizerSettings, stage: Stage, clock: Clock
    ) -> OptimizerSettings:
        """The momentum changes linearly over the schedule."""
        return replace(declared, momentum=linear(self.config.momentum, clock.nimg / stage.nimg))

    def generate(self, z: Tensor, label: Tensor | None) -> Tensor:
        image: Tensor = self.generator(z)
        return image

    def discriminate(self, image: Tensor, label: Tensor | None, rng: BatchRandom) -> Tensor:
        logit: Tensor = self.discriminator(image, rng)
        return logit

    def objective_g(self, fake: Tensor) -> Tensor:
        minimax = self.config.loss == "minimax"
        return losses.minimax_g(fake) if minimax else losses.nonsaturating_g(fake)
