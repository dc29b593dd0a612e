"""The settings of a StyleGAN, and the widths of the networks that follow from them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from gan_train.nn.growth import Kimg
from gan_train.nn.schedules import Momentum, following
from gan_train.settings import MOST_KIMG, Count, Layers, Length, Rate, Resolution, Settings

OF_ONE_GENERATION: dict[int, tuple[str, ...]] = {
    1: ("start_resolution", "fade_kimg", "stable_kimg"),
    2: (
        *("clamp", "discriminator", "kimg", "class_mapping_layers"),
        *("path_length_weight", "path_length_every", "path_length_decay", "path_length_shrink"),
    ),
}
"""Settings by the generation that uses them: in the other, they must keep their defaults."""


class StyleGANSettings(Settings):
    """The defaults are those of StyleGAN2 at 256 pixels and above; `generation: 1` takes StyleGAN's
    networks and grows them. Keys of dictionaries are resolutions."""

    name: Literal["stylegan"] = "stylegan"
    generation: Literal[1, 2] = Field(
        2, description="1: AdaIN and progressive growth. 2: modulated convolutions, no growth."
    )
    conditional: bool = Field(
        False, description="The class enters the mapping network, and D by projection."
    )

    # Networks
    z_dim: Count = Field(512, description="Size of the latents z.")
    w_dim: Count = Field(512, description="Size of the styles w.")
    mapping_layers: Layers = Field(8, description="Depth of the mapping network.")
    class_mapping_layers: Layers = Field(
        8, description="Depth of D's mapping network of classes, if conditional."
    )
    mapping_lr: Rate = Field(0.01, description="Factor of the mapping networks' learning rate.")
    channel_base: Count = Field(
        32768, description="Feature maps at resolution r: channel_base / r."
    )
    channel_max: Count = Field(512, description="The most feature maps at any resolution.")
    channels: dict[Resolution, Count] = Field(
        {},
        description="Feature maps at single resolutions, in place of what follows from the base.",
    )
    discriminator: Literal["resnet", "plain"] = Field(
        "resnet", description="D's blocks: residual, or plain as in the preset for CIFAR-10."
    )
    mbstd_group: Count = Field(
        4, description="Images in a group of the minibatch standard deviation."
    )
    clamp: float | None = Field(
        None,
        gt=0,
        description="Activations are cut off at plus and minus this; published networks have 256.",
    )
    truncate_to: Literal["class", "all"] = Field(
        "class",
        description="Truncation draws to the mean w of the image's class, or of all.",
    )
    output: Literal["linear", "tanh"] = Field("linear", description="G's last activation.")

    # Losses
    r1_gamma: float = Field(10.0, ge=0, description="Weight of the R1 penalty; 0 leaves it out.")
    r1_every: Count = Field(
        16, description="Steps from one R1 update to the next; 1 makes it a term of D's loss."
    )
    path_length_weight: float = Field(
        2.0, ge=0, description="Weight of the path-length regulariser; 0 leaves it out."
    )
    path_length_every: Count = Field(
        4, description="Steps from one path-length update to the next; 1: a term of G's loss."
    )
    path_length_decay: float = Field(
        0.01, gt=0, le=1, description="Share of a new value in the running mean path length."
    )
    path_length_shrink: Count = Field(
        2, description="Path lengths are taken of the batch divided by this."
    )
    mixing: float = Field(
        0.9, ge=0, le=1, description="Share of training images with styles of two latents."
    )
    shared_fakes: bool = Field(
        False,
        description="D's loss takes the fakes that G's loss made in the same step, which saves a "
        "pass through G. The papers draw new ones, made after G's update.",
    )
    w_mean_decay: float = Field(
        0.998, ge=0, lt=1, description="Share that the tracked mean w keeps at each step."
    )

    # Optimizers and schedule
    lr: Rate = Field(0.002, description="Adam's learning rate.")
    lr_by_resolution: dict[Resolution, Rate] = Field(
        {}, description="Learning rates at single resolutions, in place of lr."
    )
    betas: tuple[Momentum, Momentum] = Field((0.0, 0.99), description="Adam's betas.")
    kimg: Length = following("length", 25000.0, "Generation 2: length of training in kimg.", gt=0)
    start_resolution: int = Field(8, ge=4, description="Generation 1: the first resolution.")
    fade_kimg: Kimg = following("length", 600.0, "Length of a fade in kimg.")
    stable_kimg: Kimg = following(
        "length", 600.0, "Length of training at each resolution after its fade, in kimg."
    )
    batch: dict[Resolution, Count] = Field(
        {}, description="Global batch at single resolutions, in place of train.batch."
    )

    # Adaptive discriminator augmentation
    augment: Literal["none", "ada", "fixed"] = Field(
        "none", description="Whether D's images are transformed, at a strength that adapts or not."
    )
    augment_target: float = Field(
        0.6, gt=0, lt=1, description="The mean sign of D(real) that ADA aims at."
    )
    augment_kimg: float = Field(
        500.0,
        gt=0,
        le=MOST_KIMG,
        description="The least kimg in which the strength goes from 0 to 1.",
    )
    augment_every: Count = Field(4, description="Steps between two changes of the strength.")
    augment_p: float = Field(
        0.0, ge=0, le=1, description="Strength (probability) at the start, or the fixed one."
    )
    augment_groups: tuple[Literal["blit", "geometry", "colour"], ...] = Field(
        ("blit", "geometry", "colour"), description="The transformations in use (nn/augment.py)."
    )

    @model_validator(mode="after")
    def _of_this_generation(self) -> StyleGANSettings:
        for name in self.unused:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(
                    f"family.{name} belongs to generation {3 - self.generation}; "
                    f"family.generation is {self.generation}: leave it out"
                )
        return self

    @property
    def unused(self) -> tuple[str, ...]:
        """The names of the settings that belong to the other generation."""
        return OF_ONE_GENERATION[3 - self.generation]

    def width(self, resolution: int) -> int:
        """The number of feature maps at a resolution."""
        return self.channels.get(resolution, min(self.channel_base // resolution, self.channel_max))
