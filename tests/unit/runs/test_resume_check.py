"""What may differ between a run and its resumption: keys declared harmless, wherever they stand."""

from __future__ import annotations

import pytest

from gan_train import recipes
from gan_train.config import Config
from gan_train.errors import UserError
from gan_train.runs.checkpoint import harmless_keys, refuse_changes


def two_sources() -> Config:
    config = recipes.load("cyclegan-emoji-32")
    assert config.data.second is not None and config.data.second.source is not None
    return config


def test_keys_of_an_optional_group_are_declared_like_all_others() -> None:
    keys = harmless_keys(Config)
    assert {"workspace", "data.source", "data.second.source", "cluster.workers"} <= keys
    assert not keys & {"data.second", "data.second.pairs", "data.resolution", "family.name"}


def test_a_second_source_that_moved_may_be_resumed() -> None:
    config = two_sources()
    moved = recipes.change(config, {"data.second.source": "/elsewhere/images.tar"})
    refuse_changes(config.model_dump(mode="json"), moved)


def test_other_images_of_the_second_source_are_refused() -> None:
    config = two_sources()
    other = recipes.change(config, {"data.second.only_classes": ["smileys"]})
    with pytest.raises(UserError, match=r"data\.second\.only_classes: "):
        refuse_changes(config.model_dump(mode="json"), other)
    without = config.model_dump(mode="json")
    without["data"]["second"] = None
    with pytest.raises(UserError, match=r"data\.second\.pairs: None -> "):
        refuse_changes(without, config)
