"""Builds a StyleGAN of the generation that the settings of a recipe name."""

from __future__ import annotations

from gan_train.adversary import ImageShape
from gan_train.errors import UserError
from gan_train.families.stylegan.config import StyleGANSettings
from gan_train.families.stylegan.family import StyleGAN
from gan_train.families.stylegan.growing import GrowingStyleGAN


class StyleGANConfig(StyleGANSettings):
    """The settings of the family `stylegan`, with the method that builds it."""

    def build(self, shape: ImageShape, batch: int) -> StyleGAN:
        """The adversary for images of this shape. `batch` is the global batch of resolutions for
        which this configuration has none. Raises UserError if a layer would have no channels."""
        if self.width(shape.resolution) < 1:
            raise UserError(
                f"family.channel_base={self.channel_base} leaves no channel at {shape.resolution} "
                f"pixels: at least {shape.resolution}"
            )
        kind = GrowingStyleGAN if self.generation == 1 else StyleGAN
        return kind(self, shape, batch)
