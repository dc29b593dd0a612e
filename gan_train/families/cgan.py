"""Conditional GAN: Mirza and Osindero 2014, arXiv 1411.1784.

Both networks are multilayer perceptrons that take the class: one branch reads the class, another
reads the latent or the image, and a joint layer reads both branches (the paper's section 4.1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
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
from gan_train.errors import UserError
from gan_train.nn.layers import Maxout, dropout, he_start
from gan_train.nn.schedules import Momentum, following, linear
from gan_train.nn.two_player import TwoPlayer, TwoPlayerConfig
from gan_train.rng import BatchRandom
from gan_train.settings import Count, Rate


class CGANConfig(TwoPlayerConfig):
    """Defaults are the paper's for MNIST, but G has no dropout, so that an image is a function of z
    and class alone. Today `optimizer: adam` is more usual than the paper's SGD."""

    name: Literal["cgan"] = "cgan"
    latent_width: Count = Field(200, description="G: ReLUs of the branch that reads z.")
    class_width: Count = Field(1000, description="G: ReLUs of the branch that reads the class.")
    joint_width: Count = Field(1200, description="G: ReLUs that read both branches.")
    image_units: Count = Field(240, description="D: maxout units that read the image.")
    image_pieces: Count = Field(5, description="D: linear functions of each image unit.")
    class_units: Count = Field(50, description="D: maxout units that read the class.")
    class_pieces: Count = Field(5, description="D: linear functions of each class unit.")
    joint_units: Count = Field(240, description="D: maxout units that read both.")
    joint_pieces: Count = Field(4, description="D: linear functions of each joint unit.")
    dropout: float = Field(0.5, ge=0, lt=1, description="Share of D's hidden units left out.")
    optimizer: Literal["sgd", "adam"] = "sgd"
    lr: Rate | None = Field(None, description="Empty: 0.1 with sgd, 0.0002 with adam.")
    lr_decay: float = following(
        "factor per step", 1.00004, "SGD: every update divides the rate by it.", ge=1
    )
    lr_floor: float = Field(1e-6, gt=0, description="SGD: the rate falls no lower than this.")
    momentum: tuple[Momentum, Momentum] = Field(
        (0.5, 0.7),
        description="The momentum of SGD, at the start and at the end of the schedule; linear "
        "between them.",
    )

    @model_validator(mode="after")
    def _settings_fit_the_optimizer(self) -> CGANConfig:
        for name in self.unused:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(
                    f"family.{name} does not belong to family.optimizer={self.optimizer}: "
                    "leave it out"
                )
        return self

    @property
    def unused(self) -> tuple[str, ...]:
        """The names of the settings that belong to another optimizer."""
        return ("betas",) if self.optimizer == "sgd" else ("momentum", "lr_decay", "lr_floor")

    def build(self, shape: ImageShape, batch: int) -> CGAN:
        """The networks for images of this shape, trained with this global batch."""
        return CGAN(self, shape, batch)


class Generator(nn.Module):
    """Latents [N, z_dim] and labels [N] to images [N, C, R, R] in (-1, 1)."""

    def __init__(self, config: CGANConfig, shape: ImageShape):
        super().__init__()
        self.classes = len(shape.classes)
        self.image_shape = (shape.channels, shape.resolution, shape.resolution)
        self.of_latent = nn.Linear(config.z_dim, config.latent_width)
        self.of_class = nn.Linear(self.classes, config.class_width)
        branches = config.latent_width + config.class_width
        self.joint = nn.Linear(branches, config.joint_width)
        self.out = nn.Linear(config.joint_width, shape.channels * shape.resolution**2)
        self.apply(he_start)

    def forward(self, z: Tensor, label: Tensor) -> Tensor:
        kind = self.out.weight.dtype
        y = F.one_hot(label, self.classes).to(kind)  # [N, K]
        branches = torch.cat([self.of_latent(z.to(kind)), self.of_class(y)], dim=1)
        x = F.relu(self.joint(F.relu(branches)))
        # tanh in place of the paper's sigmoid, because pixels go from -1 to 1
        return torch.tanh(self.out(x)).unflatten(1, self.image_shape)


class Discriminator(nn.Module):
    """Images [N, C, R, R] and labels [N] to logits [N]."""

    def __init__(self, config: CGANConfig, shape: ImageShape):
        super().__init__()
        self.classes, self.dropout = len(shape.classes), config.dropout
        pixels = shape.channels * shape.resolution**2
        self.of_image = Maxout(pixels, config.image_units, config.image_pieces)
        self.of_class = Maxout(self.classes, config.class_units, config.class_pieces)
        branches = config.image_units + config.class_units
        self.joint = Maxout(branches, config.joint_units, config.joint_pieces)
        self.out = nn.Linear(config.joint_units, 1)

    def forward(self, image: Tensor, label: Tensor, rng: BatchRandom) -> Tensor:
        y = F.one_hot(label, self.classes).to(image.dtype)  # [N, K]
        branches = torch.cat([self.of_image(image.flatten(1)), self.of_class(y)], dim=1)
        x = self.joint(dropout(branches, self.dropout, rng))
        logit: Tensor = self.out(dropout(x, self.dropout, rng)).squeeze(1)  # [N]
        return logit


class CGAN(TwoPlayer):
    """The family. In training, generated images have the classes of the batch's real images."""

    config: CGANConfig
    conditional = True

    def __init__(self, config: CGANConfig, shape: ImageShape, batch: int):
        """Raises UserError for data without classes."""
        super().__init__(config, shape, batch)
        if not shape.classes:
            raise UserError(
                "cgan needs classes and the data has none; set data.classes to `folder`, or "
                "family.name to `vanilla`"
            )
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
        """With SGD, the learning rate falls exponentially with the steps, down to a floor, and the
        momentum changes linearly over the schedule."""
        c = self.config
        if c.optimizer == "adam":
            return declared
        decayed: float = declared.lr * c.lr_decay**-clock.step
        momentum = linear(c.momentum, clock.nimg / stage.nimg)
        return replace(declared, lr=max(decayed, c.lr_floor), momentum=momentum)

    def discriminate(self, image: Tensor, label: Tensor | None, rng: BatchRandom) -> Tensor:
        logit: Tensor = self.discriminator(image, label, rng)
        return logit
