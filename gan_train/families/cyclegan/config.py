"""The settings of CycleGAN."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from gan_train.adversary import ImageShape

if TYPE_CHECKING:
    from gan_train.families.cyclegan.family import CycleGAN


class CycleGANConfig(BaseModel):
    """Defaults are the paper's (Zhu et al. 2017, section 4 and appendix 7); its batch is 1."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    name: Literal["cyclegan"] = "cyclegan"
    width: int = Field(64, ge=1, description="Channels at full size; twice as many a level down.")
    halvings: int = Field(2, ge=0, le=5, description="Times that a generator downsamples, by 2.")
    blocks: int | None = Field(
        None, ge=1, description="Residual blocks; empty: 9 from 256 pixels on, 6 below."
    )
    skip: bool = Field(
        False,
        description="Generators add to their input, and start as the identity: for short "
        "trainings on domains that resemble each other. Not in the paper.",
    )
    discriminator_width: int = Field(64, ge=1, description="Channels of the first layer.")
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
        50, ge=0, description="Earlier fakes that a discriminator may be shown; 0: none."
    )
    lr: float = Field(0.0002, gt=0)
    betas: tuple[float, float] = (0.5, 0.999)
    kimg: float = Field(200.0, gt=0, description="Images of domain A to train on, in kimg.")
    decay_kimg: float = Field(
        100.0, ge=0, description="Images at the end, over which the rate falls to 0, in kimg."
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
        from gan_train.families.cyclegan.family import CycleGAN

        return CycleGAN(self, shape, batch)

    def residual_blocks(self, resolution: int) -> int:
        """Residual blocks of a generator trained at this resolution."""
        return self.blocks or (9 if resolution >= 256 else 6)
