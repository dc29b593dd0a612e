"""The families, by name. A new one is its file, a line here, and a recipe in `configs/`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from gan_train.families.progan import ProGANConfig
from gan_train.families.stylegan.config import StyleGANConfig

FamilyConfig = Annotated[ProGANConfig | StyleGANConfig, Field(discriminator="name")]
