"""The families, by name. A new family needs a file, a line here, and a recipe in `configs/`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from gan_train.families.cgan import CGANConfig
from gan_train.families.cyclegan.family import CycleGANConfig
from gan_train.families.dcgan import DCGANConfig
from gan_train.families.lapgan import LAPGANConfig
from gan_train.families.lsgan import LSGANConfig
from gan_train.families.progan import ProGANConfig
from gan_train.families.srgan import SRGANConfig
from gan_train.families.stylegan.build import StyleGANConfig
from gan_train.families.vanilla import VanillaConfig

FamilyConfig = Annotated[
    CGANConfig
    | CycleGANConfig
    | DCGANConfig
    | LAPGANConfig
    | LSGANConfig
    | ProGANConfig
    | SRGANConfig
    | StyleGANConfig
    | VanillaConfig,
    Field(discriminator="name"),
]
