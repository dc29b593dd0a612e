"""Which runs a recipe has, and who may train one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gan_train import recipes
from gan_train.config import Config
from gan_train.errors import UserError
from gan_train.runs import run_folder
from tests.training import tiny_config


def named(config: Config, name: str) -> Config:
    return recipes.change(config, {"name": name})


def test_runs_of_a_recipe_whose_name_begins_alike_are_not_its_own(
    tiny_source: Path, tmp_path: Path
) -> None:
    config = tiny_config(tiny_source, tmp_path)
    assert run_folder.runs_of(config) == []
    own, other = run_folder.new(config, tmp_path), run_folder.new(named(config, "tiny-2"), tmp_path)
    assert run_folder.runs_of(config) == [own]
    assert run_folder.runs_of(named(config, "tiny-2")) == [other]


def test_runs_of_one_second_are_in_order(tiny_source: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny_source, tmp_path)
    names = [f"tiny-20260131-120000{ending}" for ending in ("", "-1", "-2", "-10")]
    names += ["tiny-20260201-000000"]
    for name in reversed(names):
        (run_folder.folder(config) / name).mkdir(parents=True)
        (run_folder.folder(config) / name / run_folder.CONFIG).touch()
    (run_folder.folder(config) / "tiny-20270101-000000").mkdir()  # killed while it was made
    assert [run_dir.name for run_dir in run_folder.runs_of(config)] == names


def test_the_name_of_a_run_tells_its_seed_where_that_is_wanted(
    tiny_source: Path, tmp_path: Path
) -> None:
    config = recipes.change(tiny_config(tiny_source, tmp_path), {"seed": 7})
    first, second = (run_folder.new(config, tmp_path, tell_seed=True) for _ in range(2))
    assert first.name.startswith("tiny-") and first.name.endswith("-seed7")
    assert run_folder.runs_of(config) == [first, second], "also in one second"
    assert run_folder.runs_of(named(config, "tiny-seed7")) == []


def test_a_run_is_trained_by_one_process(tmp_path: Path) -> None:
    with (
        run_folder.exclusive(tmp_path),
        pytest.raises(UserError, match=f"is being trained by process {os.getpid()} on "),
        run_folder.exclusive(tmp_path),
    ):
        pytest.fail("the lock is held")
    with run_folder.exclusive(tmp_path):
        pass


def test_what_blocks_inside_is_not_taken_for_another_process(tmp_path: Path) -> None:
    with pytest.raises(BlockingIOError, match="a full pipe"), run_folder.exclusive(tmp_path):
        raise BlockingIOError("a full pipe")
