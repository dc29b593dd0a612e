"""A command plans its data once: what was planned goes with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gan_train import recipes
from gan_train.data import sharding as library
from pipelines.compute import sharding
from pipelines.flows.plan import precheck
from tests.training import tiny_config


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """One entry for every plan that is made: whether everything was to be read again."""
    made: list[bool] = []
    real = library.plan_shards

    def counting(*arguments: Any, verify: bool = False, **more: Any) -> library.ShardPlan:
        made.append(verify)
        return real(*arguments, verify=verify, **more)

    monkeypatch.setattr(sharding, "plan_shards", counting)
    monkeypatch.setattr("pipelines.flows.plan.plan_shards", counting)
    return made


def test_a_plan_goes_with_the_command(tiny_source: Path, tmp_path: Path, plans: list[bool]) -> None:
    config = tiny_config(tiny_source, tmp_path)
    directory = library.shard(config.data, config.workspace)
    with sharding.planned(config, precheck(config)):
        same = recipes.change(config, {"train.batch": 8})  # the data are those of the plan
        assert sharding.shard(same).skipped
        assert sharding.finished(same) == directory
    assert plans == [False]
    assert sharding.finished(config) == directory  # the plan is gone with the command
    assert plans == [False, False]


def test_a_plan_of_other_data_is_not_taken(
    tiny_source: Path, tmp_path: Path, plans: list[bool]
) -> None:
    config = tiny_config(tiny_source, tmp_path)
    directory = library.shard(config.data, config.workspace)
    with sharding.planned(config, precheck(config)):
        other = recipes.change(config, {"data.shard_images": 7})
        assert sharding.plan_of(other).directory != directory
        elsewhere = recipes.change(config, {"workspace": str(tmp_path / "elsewhere")})
        assert sharding.plan_of(elsewhere).directory.is_relative_to(tmp_path / "elsewhere")
    assert len(plans) == 3


def test_a_full_verification_is_none_by_a_plan_that_trusted_the_memory(
    tiny_source: Path, tmp_path: Path, plans: list[bool]
) -> None:
    config = tiny_config(tiny_source, tmp_path)
    library.shard(config.data, config.workspace)
    with sharding.planned(config, precheck(config)):
        assert sharding.shard(config, verify=True).skipped
    assert plans == [False, True]
    with sharding.planned(config, precheck(config, verify=True)):
        assert sharding.shard(config, verify=True).skipped
    assert plans == [False, True, True]
