"""The last step of loading a configuration, which all commands share."""

from __future__ import annotations

import argparse

from gan_train import recipes
from gan_train.config import Config
from pipelines.stack import discovery


def ready(config: Config) -> Config:
    """The configuration with absolute paths. If `gan-train up` has started servers for its
    workspace, this process uses them from now on."""
    config = recipes.with_absolute_paths(config)
    discovery.use(config)
    return config


def loaded(given: argparse.Namespace) -> Config:
    """The configuration of the recipe that was typed, with what `--set` changes (`add_recipe`)."""
    return ready(recipes.load(given.recipe, given.overrides))
