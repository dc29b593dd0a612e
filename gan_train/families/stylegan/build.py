"""From the settings of a recipe to the adversary of the generation that they name."""

from __future__ import annotations

from gan_train.adversary import ImageShape
from gan_train.errors import UserError
from gan_train.families.stylegan.config import StyleGANSettings
from gan_train.families.stylegan.family import StyleGAN
from gan_train.families.stylegan.growing import GrowingStyleGAN


class StyleGANConfig(StyleGANSettings):
    """The settings of `family: stylegan`, and what is built from them."""

    def build(self, shape: ImageShape, batch: int) -> StyleGAN:
        """The adversary for images of this shape. `batch` is the global batch where this
        configuration has none for a resolution. Raises UserError for a width below one."""
        if self.width(shape.resolution) < 1:
            raise UserError(
                f"family.channel_base={self.channel_base} leaves no channel at {shape.resolution} "
                f"pixels: at least {shape.resolution}"
            )
        kind = GrowingStyleGAN if self.generation == 1 else StyleGAN
        return kind(self, shape, batch)
