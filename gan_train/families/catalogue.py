"""The families, by name. A new one is its file, a line here, and a recipe in `configs/`."""

from __future__ import annotations

from gan_train.families.progan import ProGANConfig

FamilyConfig = ProGANConfig
