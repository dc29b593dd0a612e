"""Shards that are written to a bucket by any node, and found there by all. No engine is started."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from gan_train import recipes
from gan_train.config import Config
from gan_train.data.index import INDEX_NAME, Index
from gan_train.data.planning import plan_shards
from gan_train.data.sharding import finish_shards
from gan_train.data.sharding import shard as shard_here
from gan_train.files.store import Store
from pipelines.compute.sharding import StoredShards, finished, plan_of, planned
from tests.training import tiny_config

On = Callable[[str], Config]


@pytest.fixture
def on(
    in_bucket: str, tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Config]:
    """The configuration as the machine with that name sees it; its images lie in the bucket."""
    images = Store(f"{in_bucket}/images")
    for path in tiny_source.rglob("*.png"):
        images.send(path, path.relative_to(tiny_source).as_posix())

    def see(machine: str) -> Config:
        monkeypatch.setenv("GAN_TRAIN_CACHE", str(tmp_path / machine))
        config = tiny_config(tiny_source, tmp_path / "w")
        return recipes.change(
            config, {"workspace": f"{in_bucket}/w", "data.source": f"{in_bucket}/images"}
        )

    return see


def stored_of(config: Config) -> tuple[StoredShards, Path]:
    directory = plan_of(config).directory
    stored = StoredShards.of(config, directory)
    assert stored is not None
    return stored, directory


def test_nodes_write_and_all_find_the_same(
    on: On, in_bucket: str, tiny_source: Path, tmp_path: Path
) -> None:
    driver = on("driver")
    plan = plan_shards(driver.data, None, driver.workspace)
    stored, directory = stored_of(driver)
    assert stored.index(plan) is None
    receipts = []
    for task in plan.tasks():
        os.environ["GAN_TRAIN_CACHE"] = str(tmp_path / f"node-{task.number}")
        receipts.append(stored.write(task))
    os.environ["GAN_TRAIN_CACHE"] = str(tmp_path / "driver")
    index = finish_shards(plan, receipts)
    stored.finish(directory)
    assert stored.index(plan) == index

    # the bytes are those of a folder, and another machine finds them
    folder = tiny_config(tiny_source, tmp_path / "folder")
    here = Index.load(shard_here(folder.data, folder.workspace))
    assert here.content_hash == index.content_hash
    elsewhere = on("elsewhere")
    with planned(elsewhere, plan_of(elsewhere)):
        found = finished(elsewhere)
    assert found.is_relative_to(tmp_path / "elsewhere") and Index.load(found) == index
    assert not list(found.glob("*.tar")), "shards come when they are read"


def test_what_is_in_the_bucket_is_not_written_again(
    on: On, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = on("a")
    stored, _ = stored_of(config)
    (first, *_) = plan_of(config).tasks()
    receipt = stored.write(first)
    assert receipt.info is not None
    sent: list[str] = []
    send = Store.send
    monkeypatch.setattr(
        Store, "send", lambda self, path, key: (sent.append(key), send(self, path, key))[1]
    )
    config = on("b")
    assert stored.write(first) == receipt and sent == []
    stored.store.delete(receipt.info.name)  # a receipt without its tar counts for nothing
    assert stored.write(first) == receipt and receipt.info.name in sent


def test_a_set_that_lacks_a_shard_is_not_finished(on: On, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    logging.getLogger("pipelines").propagate = True
    config = on("a")
    plan = plan_of(config)
    stored, directory = stored_of(config)
    receipts = [stored.write(task) for task in plan.tasks()]
    finish_shards(plan, receipts)
    stored.finish(directory)
    assert stored.store.look(INDEX_NAME) is not None and stored.index(plan) is not None
    info = receipts[0].info
    assert info is not None
    whole = stored.store.read(info.name)
    for damage in (None, whole[:-512], whole[:700] + b"x" + whole[701:]):
        stored.store.delete(info.name)
        if damage is not None:
            stored.store.write(info.name, damage)
        looked = replace(plan, verify=damage is not None and len(damage) == len(whole))
        assert stored.index(looked) is None
        assert [stored.write(task) for task in plan.tasks()] == receipts
        assert stored.store.read(info.name) == whole
        assert stored.index(replace(plan, verify=True)) is not None
    assert f"{info.name} is missing or damaged" in caplog.text


def test_a_workspace_in_a_folder_has_none(tiny_source: Path, tmp_path: Path) -> None:
    assert StoredShards.of(tiny_config(tiny_source, tmp_path), tmp_path) is None
