"""The game of the simple families: one generator, which takes latents, and one discriminator.

A family adds the two networks, their optimizers and, unless it uses those of 2014, its losses.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from gan_train.adversary import (
    Adversary,
    Batch,
    Clock,
    ImageShape,
    Losses,
    Phase,
    Stage,
    refuse_truncation,
    single_stage,
)
from gan_train.nn import losses
from gan_train.nn.schedules import Momentum, following
from gan_train.rng import BatchRandom
from gan_train.settings import Count, Length, Settings


class TwoPlayerConfig(Settings):
    """The settings that all families of this game have."""

    name: str
    z_dim: Count = 100
    betas: tuple[Momentum, Momentum] = Field((0.5, 0.999), description="The betas of Adam.")
    kimg: Length = following("length", 1000.0, "Length of training, in kimg.", gt=0)


class TwoPlayer(Adversary):
    """D and G are updated in turn, in one stage. D sees real and generated images in two passes.

    Subclasses register `generator` and `discriminator`. Goodfellow et al. 2014, arXiv 1406.2661.
    """

    generator: nn.Module
    discriminator: nn.Module
    conditional: bool = False

    def __init__(self, config: TwoPlayerConfig, shape: ImageShape, batch: int):
        super().__init__()
        self.config, self.shape, self.batch = config, shape, batch
        self.z_dim = config.z_dim

    # ---- what a family may override ------------------------------------------------------------

    def generate(self, z: Tensor, label: Tensor | None) -> Tensor:
        """Images [N, C, R, R] of latents [N, z_dim] and labels [N]."""
        image: Tensor = self.generator(z, label)
        return image

    def discriminate(self, image: Tensor, label: Tensor | None, rng: BatchRandom) -> Tensor:
        """D's logits [N] of images [N, C, R, R] and labels [N]."""
        logit: Tensor = self.discriminator(image, label)
        return logit

    def objective_d(self, real: Tensor, fake: Tensor) -> Tensor:
        """The loss that D minimises, from its logits [N] of real and of generated images."""
        return losses.logistic_d(real, fake)

    def objective_g(self, fake: Tensor) -> Tensor:
        """The loss that G minimises, from D's logits [N] of generated images."""
        return losses.nonsaturating_g(fake)

    def metrics(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        """The scalars to log, from D's logits of real and of generated images."""
        return losses.mean_probabilities(real, fake)

    # ---- the game ------------------------------------------------------------------------------

    def stages(self) -> tuple[Stage, ...]:
        phases = Phase("D", "D", self.loss_d), Phase("G", "G", self.loss_g)
        return single_stage("adversarial", self.shape, self.batch, self.config.kimg, *phases)

    def loss_d(self, batch: Batch, rng: BatchRandom, clock: Clock) -> Losses:
        """D tells reals from fakes of the same classes."""
        label = batch.get("label")
        with torch.no_grad():
            fake = self.generate(rng.normal(self.z_dim), label)
        real_logit = self.discriminate(batch["image"], label, rng)
        fake_logit = self.discriminate(fake, label, rng)
        terms = {"D": self.objective_d(real_logit, fake_logit)}
        return Losses(terms, self.metrics(real_logit, fake_logit))

    def loss_g(self, batch: Batch, rng: BatchRandom, clock: Clock) -> Losses:
        """G learns to make images that D takes for real."""
        label = batch.get("label")
        fake = self.generate(rng.normal(self.z_dim), label)
        return Losses({"G": self.objective_g(self.discriminate(fake, label, rng))})

    def sample(self, z: Tensor, label: Tensor | None, truncation: float = 1.0) -> Tensor:
        why = "its latents have no mean to draw to"
        refuse_truncation(truncation, self.config.name, why)
        assert label is not None or not self.conditional, "a conditional generator needs labels"
        return self.generate(z, label)
