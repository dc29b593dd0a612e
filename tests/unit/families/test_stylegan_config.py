"""Settings of the other generation are refused, and so is what leaves no network."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from gan_train.adversary import ImageShape
from gan_train.errors import UserError
from gan_train.families.stylegan.build import StyleGANConfig


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"generation": 1, "clamp": 256}, "family.clamp belongs to generation 2"),
        ({"fade_kimg": 5}, "family.fade_kimg belongs to generation 1"),
        (
            {"generation": 1, "class_mapping_layers": 2},
            "class_mapping_layers belongs to generation 2",
        ),
    ],
)
def test_settings_of_the_other_generation_are_refused(
    settings: dict[str, object], told: str
) -> None:
    with pytest.raises(ValidationError, match=told):
        StyleGANConfig.model_validate(settings)


def test_a_switch_goes_off_alone() -> None:
    """`--set family.augment=none` on a recipe that says how to augment."""
    StyleGANConfig.model_validate({"augment": "none", "augment_kimg": 100})


def test_no_channels_are_refused() -> None:
    config = StyleGANConfig.model_validate({"channel_base": 16})
    with pytest.raises(UserError, match="channel_base=16 leaves no channel at 32 pixels"):
        config.build(ImageShape(3, 32), 8)
