"""DCGAN: Radford, Metz and Chintala 2015, arXiv 1511.06434.

The game of Goodfellow et al. 2014 and its losses, on the networks in `nn/dcgan_networks.py`.
"""

from __future__ import annotations

from typing import Literal

from gan_train.adversary import ImageShape
from gan_train.nn.dcgan_networks import ConvolutionalGame, DCGANNetworksConfig


class DCGANConfig(DCGANNetworksConfig):
    """Defaults are the paper's. `train.ema_kimg` must be 0: see `batchnorm.BatchNorm`."""

    name: Literal["dcgan"] = "dcgan"

    def build(self, shape: ImageShape, batch: int) -> DCGAN:
        """The networks for images of this shape, trained with this global batch."""
        return DCGAN(self, shape, batch)


class DCGAN(ConvolutionalGame):
    """The family: the two-player game on these networks, unchanged."""
