"""What a recipe may say of a StyleGAN, and the architecture that follows from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from gan_train.adversary import ImageShape
from gan_train.errors import UserError

if TYPE_CHECKING:
    from gan_train.families.stylegan.family import StyleGAN


OF_ONE_GENERATION: dict[int, tuple[str, ...]] = {
    1: ("start_resolution", "fade_kimg", "stable_kimg"),
    2: (
        *("clamp", "discriminator", "kimg", "class_mapping_layers"),
        *("path_length_weight", "path_length_every", "path_length_decay", "path_length_shrink"),
    ),
}
"""Settings that the other generation has no use for."""


class StyleGANConfig(BaseModel):
    """Defaults are StyleGAN2's at 256 pixels and above; `generation: 1` takes StyleGAN's networks
    and grows them. Dictionaries are keyed by resolution."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    name: Literal["stylegan"] = "stylegan"
    generation: Literal[1, 2] = Field(
        2, description="1: AdaIN and progressive growth. 2: modulated convolutions, no growth."
    )
    conditional: bool = Field(False, description="The class enters the mapping, and D (projection)")

    # Networks
    z_dim: int = Field(512, ge=1)
    w_dim: int = Field(512, ge=1)
    mapping_layers: int = Field(8, ge=1, description="Depth of the mapping network.")
    class_mapping_layers: int = Field(
        8, ge=1, description="Depth of D's mapping of classes, where it is conditional."
    )
    mapping_lr: float = Field(0.01, gt=0, description="Its learning rate, as a factor.")
    channel_base: int = Field(32768, ge=1, description="Channels at resolution r: base / r ...")
    channel_max: int = Field(512, ge=1, description="... but never more than this.")
    channels: dict[int, int] = Field({}, description="Overrides the channels of a resolution.")
    discriminator: Literal["resnet", "plain"] = Field(
        "resnet", description="Generation 2: residual blocks, or plain ones (its CIFAR-10 preset)."
    )
    mbstd_group: int = Field(4, ge=1, description="Samples per minibatch standard deviation.")
    clamp: float | None = Field(
        None,
        gt=0,
        description="Bound of the activations; published networks have 256, for float16.",
    )
    truncate_to: Literal["class", "all"] = Field(
        "class", description="Whose mean w truncation draws to, where conditional."
    )
    output: Literal["linear", "tanh"] = Field("linear", description="Range of G's output.")

    # Losses
    r1_gamma: float = Field(10.0, ge=0)
    r1_every: int = Field(
        16, ge=1, description="Steps between R1 updates (lazy regularisation); 1: in D's loss."
    )
    path_length_weight: float = Field(2.0, ge=0, description="0 leaves the regulariser out.")
    path_length_every: int = Field(
        4, ge=1, description="Steps between its updates; 1: in G's loss."
    )
    path_length_decay: float = Field(0.01, gt=0, le=1, description="Of the running mean length.")
    path_length_shrink: int = Field(2, ge=1, description="Its share of the batch: 1 / shrink.")
    mixing: float = Field(0.9, ge=0, le=1, description="Share of images with styles of two z.")
    w_mean_decay: float = Field(0.998, ge=0, lt=1, description="Of the tracked mean w.")

    # Optimizers and schedule
    lr: float = Field(0.002, gt=0)
    lr_by_resolution: dict[int, float] = Field({}, description="Overrides lr at a resolution.")
    betas: tuple[float, float] = (0.0, 0.99)
    kimg: float = Field(25000.0, gt=0, description="Length of training, where nothing grows.")
    start_resolution: int = Field(8, ge=4, description="Generation 1: first level.")
    fade_kimg: float | dict[int, float] = Field(600.0, description="Images of a fade, in kimg.")
    stable_kimg: float | dict[int, float] = Field(600.0, description="Images after it, in kimg.")
    batch: dict[int, int] = Field({}, description="Global batch by resolution; else train.batch.")

    # Adaptive discriminator augmentation
    augment: Literal["none", "ada", "fixed"] = "none"
    augment_target: float = Field(0.6, gt=0, lt=1, description="Wanted mean sign of D(real).")
    augment_kimg: float = Field(500.0, gt=0, description="Images from strength 0 to 1, in kimg.")
    augment_every: int = Field(4, ge=1, description="Steps between adjustments.")
    augment_p: float = Field(0.0, ge=0, le=1, description="Strength at the start, or the fixed one")
    augment_groups: tuple[Literal["blit", "geometry", "colour"], ...] = (
        "blit",
        "geometry",
        "colour",
    )

    @model_validator(mode="after")
    def _of_this_generation(self) -> StyleGANConfig:
        for name in OF_ONE_GENERATION[3 - self.generation]:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(
                    f"family.{name} belongs to generation {3 - self.generation}; "
                    f"family.generation is {self.generation}: leave it out"
                )
        return self

    def build(self, shape: ImageShape, batch: int) -> StyleGAN:
        """The networks for images of this shape; `batch` where no level says otherwise."""
        from gan_train.families.stylegan.family import StyleGAN
        from gan_train.families.stylegan.growing import GrowingStyleGAN

        if self.width(shape.resolution) < 1:
            raise UserError(
                f"family.channel_base={self.channel_base} leaves no channel at {shape.resolution} "
                f"pixels: at least {shape.resolution}"
            )
        kind = GrowingStyleGAN if self.generation == 1 else StyleGAN
        return kind(self, shape, batch)

    def width(self, resolution: int) -> int:
        """Channels of the feature maps at a resolution."""
        return self.channels.get(resolution, min(self.channel_base // resolution, self.channel_max))
