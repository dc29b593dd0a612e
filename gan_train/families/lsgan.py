"""LSGAN, least squares instead of cross entropy: Mao et al. 2016, arXiv 1611.04076.

The game is played on DCGAN's networks. D draws its outputs towards 1 for real and 0 for generated
images, and G draws D's outputs for its images towards 1: even fakes that D takes for real, but far
from the real ones, still have a gradient.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from gan_train.adversary import ImageShape
from gan_train.nn import losses
from gan_train.nn.dcgan_networks import ConvolutionalGame, DCGANNetworksConfig


class LSGANConfig(DCGANNetworksConfig):
    """Defaults are DCGAN's. Give `train.ema_kimg: 0` beside it: see `batchnorm.BatchNorm`."""

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
