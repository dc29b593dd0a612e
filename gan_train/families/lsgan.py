"""LSGAN, least squares instead of cross entropy: Mao et al. 2016, arXiv 1611.04076.

The networks are DCGAN's. D learns to give 1 for real and 0 for generated images, and G learns to
make images for which D gives 1. Unlike with cross entropy, a generated image that D takes for real
still has a gradient as long as D's output differs from 1.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from gan_train.adversary import ImageShape
from gan_train.nn import losses
from gan_train.nn.dcgan_networks import ConvolutionalGame, DCGANNetworksConfig


class LSGANConfig(DCGANNetworksConfig):
    """Defaults are DCGAN's. `train.ema_kimg` must be 0: see `batchnorm.BatchNorm`."""

    name: Literal["lsgan"] = "lsgan"

    def build(self, shape: ImageShape, batch: int) -> LSGAN:
        """The networks for images of this shape, trained with this global batch."""
        return LSGAN(self, shape, batch)


class LSGAN(ConvolutionalGame):
    """The family: the game with the losses of equation 9."""

    def objective_d(self, real: Tensor, fake: Tensor) -> Tensor:
        return 0.5 * losses.least_squares_d(real, fake)

    def objective_g(self, fake: Tensor) -> Tensor:
        return 0.5 * losses.least_squares_g(fake)

    def metrics(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        return losses.mean_logits(real, fake)
