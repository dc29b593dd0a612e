"""CycleGAN, translation without pairs: Zhu et al. 2017, arXiv 1703.10593.

There are two generators, A to B and B to A, each with a discriminator of the domain that it makes
images of. An image that is translated to the other domain and back must come out as it was. The
paper calls domain A X, domain B Y, `generator_ab` G and `generator_ba` F.
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
    Adversary,
    Batch,
    Clock,
    Domain,
    ImageShape,
    Losses,
    OptimizerSettings,
    OptimizerSpec,
    Phase,
    Stage,
    single_stage,
)
from gan_train.errors import UserError
from gan_train.families.cyclegan.networks import Discriminator, Generator
from gan_train.families.cyclegan.pool import ImagePool
from gan_train.nn import losses
from gan_train.nn.schedules import Momentum, following
from gan_train.rng import BatchRandom
from gan_train.settings import MOST, Count, Layers, Length, Rate, Settings

GENERATORS = ("generator_ab", "generator_ba")
DISCRIMINATORS = ("discriminator_a", "discriminator_b")
FAKES = ("fake_a", "fake_b")


class CycleGANConfig(Settings):
    """Defaults are the paper's (Zhu et al. 2017, section 4 and appendix 7); its batch is 1."""

    name: Literal["cyclegan"] = "cyclegan"
    width: Count = Field(64, description="Channels at full size; twice as many a level down.")
    halvings: int = Field(2, ge=0, le=5, description="Times that a generator downsamples, by 2.")
    blocks: Layers | None = Field(
        None, description="Residual blocks; empty: 9 from 256 pixels on, 6 below."
    )
    skip: bool = Field(
        False,
        description="Generators add to their input, and start as the identity: for short "
        "trainings on domains that resemble each other. Not in the paper.",
    )
    discriminator_width: Count = Field(64, description="Channels of the first layer.")
    discriminator_layers: int = Field(
        3,
        ge=1,
        le=6,
        description="Layers that downsample. A logit sees a patch of 16, 34, 70, 142 pixels with 1 "
        "to 4 of them.",
    )
    cycle_weight: float = Field(10.0, ge=0, description="Lambda: weight of the cycle, both ways.")
    identity_weight: float = Field(
        0.0,
        ge=0,
        description="Weight of the identity loss, which keeps colours; the paper's is half of "
        "lambda for paintings, 5, else 0.",
    )
    paired_weight: float = Field(
        0.0,
        ge=0,
        description="Weight of the L1 distance to the true partner (100 in pix2pix); needs "
        "data.second.pairs to be `training`.",
    )
    pool_size: int = Field(
        50, ge=0, le=MOST, description="Earlier fakes that a discriminator may be shown; 0: none."
    )
    lr: Rate = 0.0002
    betas: tuple[Momentum, Momentum] = (0.5, 0.999)
    kimg: Length = following("length", 200.0, "Images of domain A to train on, in kimg.", gt=0)
    decay_kimg: Length = following(
        "length", 100.0, "Images at the end, over which the rate falls to 0, in kimg.", ge=0
    )

    @model_validator(mode="after")
    def _decay_is_a_part(self) -> CycleGANConfig:
        if self.decay_kimg > self.kimg:
            raise ValueError(
                f"family.decay_kimg is {self.decay_kimg:g}; allowed: at most family.kimg, "
                f"{self.kimg:g}, of which it is the end"
            )
        return self

    def build(self, shape: ImageShape, batch: int) -> CycleGAN:
        """The networks for images of this shape; `batch` is the global batch."""
        return CycleGAN(self, shape, batch)

    def residual_blocks(self, resolution: int) -> int:
        """Residual blocks of a generator trained at this resolution."""
        return self.blocks or (9 if resolution >= 256 else 6)


class CycleGAN(Adversary):
    """The family: each step updates both generators, then both discriminators.

    A batch holds `image` of domain A and `other` of domain B. Phase G leaves its translations,
    `fake_a` and `fake_b`, to phase D of the same step.
    """

    averaged = GENERATORS

    def __init__(self, config: CycleGANConfig, shape: ImageShape, batch: int) -> None:
        super().__init__()
        self.config, self.shape, self.batch = config, shape, batch
        self._check(config, shape.resolution)
        self.paired = config.paired_weight > 0
        blocks = config.residual_blocks(shape.resolution)

        def generator() -> Generator:
            return Generator(shape.channels, config.width, config.halvings, blocks, config.skip)

        def discriminator() -> Discriminator:
            layers = config.discriminator_layers
            return Discriminator(shape.channels, config.discriminator_width, layers)

        self.generator_ab, self.generator_ba = generator(), generator()
        self.discriminator_a, self.discriminator_b = discriminator(), discriminator()
        self.pool_a = ImagePool(config.pool_size, shape)
        self.pool_b = ImagePool(config.pool_size, shape)

    @staticmethod
    def _check(config: CycleGANConfig, resolution: int) -> None:
        """Raise UserError if images are too small to be downsampled as often as is set."""
        most = max(1, resolution // 4).bit_length() - 1  # a side of 4 is left
        for name in ("halvings", "discriminator_layers"):
            count: int = getattr(config, name)
            if count > most:
                raise UserError(
                    f"family.{name}={count}: images of {resolution} pixels can be halved {most} "
                    f"times; set it to {most} or less"
                )

    # ---- schedule ------------------------------------------------------------------------------

    def optimizers(self) -> Mapping[str, OptimizerSpec]:
        settings = OptimizerSettings(lr=self.config.lr, betas=self.config.betas)
        return {
            "G": OptimizerSpec(GENERATORS, settings),
            "D": OptimizerSpec(DISCRIMINATORS, settings),
        }

    def stages(self) -> tuple[Stage, ...]:
        phases = (
            Phase("G", "G", self.loss_g, leaves=FAKES),
            Phase("D", "D", self.loss_d, takes=FAKES),
        )
        return single_stage("translate", self.shape, self.batch, self.config.kimg, *phases)

    def settings(
        self, optimizer: str, declared: OptimizerSettings, stage: Stage, clock: Clock
    ) -> OptimizerSettings:
        """The rate is constant, then falls linearly to 0 at the end of the stage (appendix 7.1),
        where it stays."""
        c = self.config
        left = c.kimg * 1000 - clock.nimg
        share = min(1.0, max(0.0, left / (c.decay_kimg * 1000))) if c.decay_kimg else 1.0
        return replace(declared, lr=c.lr * share)

    def running_buffers(self) -> list[Tensor]:
        """There are none: the pools are the same on all workers already."""
        return []

    # ---- losses --------------------------------------------------------------------------------

    def loss_g(self, batch: Batch, rng: BatchRandom, clock: Clock) -> Losses:
        """Equation 3 for both directions, with the least squares of section 4: adversarial terms
        and lambda times the cycle terms (equation 2). If their weights are set, the identity terms
        of section 5.2 and the distances to true partners are added."""
        c = self.config
        a, b = batch["image"], batch["other"]  # [N, C, R, R] each
        fake_b, same_b = self._translate_with_identity(self.generator_ab, a, b)
        fake_a, same_a = self._translate_with_identity(self.generator_ba, b, a)

        cycle_a = F.l1_loss(self.generator_ba(fake_b), a)
        cycle_b = F.l1_loss(self.generator_ab(fake_a), b)
        terms = {
            "G_ab": losses.least_squares_g(self.discriminator_b(fake_b)),
            "G_ba": losses.least_squares_g(self.discriminator_a(fake_a)),
            "cycle_a": c.cycle_weight * cycle_a,
            "cycle_b": c.cycle_weight * cycle_b,
        }
        if same_a is not None and same_b is not None:
            terms["identity_a"] = c.identity_weight * F.l1_loss(same_a, a)
            terms["identity_b"] = c.identity_weight * F.l1_loss(same_b, b)
        if c.paired_weight:
            terms["paired_a"] = c.paired_weight * F.l1_loss(fake_a, a)
            terms["paired_b"] = c.paired_weight * F.l1_loss(fake_b, b)
        metrics = {"cycle_error/a": cycle_a.detach(), "cycle_error/b": cycle_b.detach()}
        return Losses(terms, metrics, {"fake_a": fake_a.detach(), "fake_b": fake_b.detach()})

    def loss_d(self, batch: Batch, rng: BatchRandom, clock: Clock) -> Losses:
        """Half of the least-squares loss (section 4) on real images and fakes from the pools."""
        a, b = batch["image"], batch["other"]  # [N, C, R, R] each
        shown_a = self.pool_a.query(batch["fake_a"], rng)
        shown_b = self.pool_b.query(batch["fake_b"], rng)
        terms, metrics = {}, {}
        for domain, discriminator, real, fake in (
            ("a", self.discriminator_a, a, shown_a),
            ("b", self.discriminator_b, b, shown_b),
        ):
            real_logit, fake_logit = discriminator(torch.cat([real, fake])).chunk(2)
            terms[f"D_{domain}"] = 0.5 * losses.least_squares_d(real_logit, fake_logit)
            metrics[f"logit/real_{domain}"] = real_logit.detach().mean()
            metrics[f"logit/fake_{domain}"] = fake_logit.detach().mean()
        return Losses(terms, metrics)

    def _translate_with_identity(
        self, generator: nn.Module, x: Tensor, own: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Translations of x and, for the identity loss, of images `own` that are in the target
        domain already. One pass makes both, because no layer mixes images."""
        if not self.config.identity_weight:
            return generator(x), None
        fake, same = generator(torch.cat([x, own])).chunk(2)
        return fake, same

    # ---- use -----------------------------------------------------------------------------------

    def translate(self, image: Tensor, to: Domain) -> Tensor:
        """Images [N, C, H, W] in [-1, 1] of one domain as images of domain `to`, of the same size.

        Images whose sides the network cannot halve are extended by mirroring, and cut afterwards.
        Raises UserError for images too small to be mirrored.
        """
        generator = self.generator_ab if to == "B" else self.generator_ba
        height, width = image.shape[-2:]
        if min(height, width) < generator.smallest:
            raise UserError(
                f"a picture of {width}x{height} pixels is too small to be translated: both sides "
                f"must have at least {generator.smallest}"
            )
        bottom, right = -height % generator.unit, -width % generator.unit
        image = image.to(generator.last.weight.dtype)
        whole = F.pad(image, (0, right, 0, bottom), mode="reflect")
        translated: Tensor = generator(whole)
        # losses see unclamped images, because a clamp has no gradient outside of its range
        return translated[..., :height, :width].clamp(-1, 1)
