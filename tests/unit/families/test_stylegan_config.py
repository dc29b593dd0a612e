"""Settings that would be ignored are refused, and so is what leaves no network."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from gan_train.adversary import ImageShape
from gan_train.errors import UserError
from gan_train.families.stylegan.config import StyleGANConfig


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"generation": 1, "clamp": 256}, "family.clamp belongs to generation 2"),
        ({"fade_kimg": 5}, "family.fade_kimg belongs to generation 1"),
        ({"truncate_to": "all"}, "family.truncate_to has no use where family.conditional is False"),
        ({"r1_gamma": 0, "r1_every": 4}, "family.r1_every has no use where family.r1_gamma is 0"),
        (
            {"path_length_weight": 0, "path_length_shrink": 1},
            "family.path_length_shrink has no use where family.path_length_weight is 0",
        ),
        ({"augment_p": 0.2}, "family.augment_p has no use where family.augment is none"),
        (
            {"augment": "fixed", "augment_target": 0.5},
            "family.augment_target has no use where family.augment is fixed",
        ),
    ],
)
def test_what_would_be_ignored_is_refused(settings: dict[str, object], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        StyleGANConfig.model_validate(settings)


def test_no_channels_are_refused() -> None:
    config = StyleGANConfig.model_validate({"channel_base": 16})
    with pytest.raises(UserError, match="channel_base=16 leaves no channel at 32 pixels"):
        config.build(ImageShape(3, 32), 8)
