"""Recipes that comparisons are tested with, and what is read of their runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gan_train import recipes
from gan_train.config import Config
from gan_train.data.index import Index
from gan_train.data.sharding import shard
from gan_train.runs import run_folder
from tests.training import stylegan, tiny_config


def recipe(source: Path, folder: Path, name: str, **changes: Any) -> str:
    """A recipe file of a tiny configuration, scored by a Fréchet distance of few images."""
    config = tiny_config(
        source,
        folder / "workspace",
        evaluate__metrics=["frechet", "diversity"],
        evaluate__batch=8,
        evaluate__path_length_images=4,
        **changes,
    )
    path = folder / f"{name}.yaml"
    tree = recipes.change(config, {"name": name})
    path.write_text(recipes.dump(tree), encoding="utf-8")
    return str(path)


@pytest.fixture
def growing(tiny_source: Path, tmp_path: Path) -> str:
    """A ProGAN whose schedule is 0.192 kimg: 4 px, a fade, 8 px."""
    return recipe(tiny_source, tmp_path, "growing")


@pytest.fixture
def styles(tiny_source: Path, tmp_path: Path) -> str:
    """A StyleGAN2, on data and places of its own."""
    (tmp_path / "elsewhere").mkdir()
    return recipe(
        tiny_source,
        tmp_path / "elsewhere",
        "styles",
        family=stylegan(2) | {"kimg": 0.48},
        data__mirror=True,
        evaluate__images=8,
    )


def recipe_like(path: str, folder: Path, name: str, **changes: Any) -> str:
    """A copy of a recipe under another name, with changes as for `tiny_config`."""
    config = recipes.load(
        path, [f"{key.replace('__', '.')}={value}" for key, value in changes.items()]
    )
    copy = folder / f"{name}.yaml"
    copy.write_text(recipes.dump(recipes.change(config, {"name": name})), encoding="utf-8")
    return str(copy)


def trained(config: Config) -> list[str]:
    """The names of all runs of its workspace."""
    return sorted(path.name for path in run_folder.folder(config).iterdir())


def shard_of(config: Config) -> Path:
    """The shards of the recipe's data, which are made first where there are none."""
    folder = shard(config.data, config.workspace)
    assert Index.load(folder).samples == 24
    return folder
