"""The hash of a configuration covers what changes the training, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from gan_train import recipes
from pipelines.registry.fingerprints import config_hash, recipe_hash


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"data.source": "/elsewhere"}, True),
        ({"data.second.source": "/elsewhere"}, True),
        ({"cluster.workers": 4, "workspace": "/elsewhere"}, True),
        ({"data.second.pairs": "training"}, False),
        ({"data.second": None}, False),
        ({"train.batch": 12}, False),
    ],
)
def test_where_the_data_lie_is_not_in_the_hash(change: dict[str, Any], same: bool) -> None:
    config = recipes.load("cyclegan-emoji-32")
    assert (config_hash(recipes.change(config, change)) == config_hash(config)) is same


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"seed": 7}, True),
        ({"cluster.workers": 4, "train.checkpoint_kimg": 9}, True),
        ({"train.total_kimg": 9}, False),  # may change in a resumption, and trains another model
        ({"train.batch": 12}, False),
    ],
)
def test_trainings_of_one_recipe_differ_in_their_seed(change: dict[str, Any], same: bool) -> None:
    config = recipes.load("demo")
    assert (recipe_hash(recipes.change(config, change)) == recipe_hash(config)) is same
    assert recipe_hash(config) != config_hash(config)
