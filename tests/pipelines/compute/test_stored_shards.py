"""Shards that are written to a bucket by any node, and found there by all. No engine is started."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gan_train import recipes
from gan_train.config import Config
from gan_train.data import shard_cache
from gan_train.data.growth import RECORD_NAME
from gan_train.data.index import INDEX_NAME, Index
from gan_train.data.planning import ShardPlan
from gan_train.data.sharding import shard as shard_here
from gan_train.errors import UserError
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
    plan = plan_of(driver)
    stored, _ = stored_of(driver)
    assert stored.index(plan) is None
    receipts = []
    for task in plan.tasks():
        os.environ["GAN_TRAIN_CACHE"] = str(tmp_path / f"node-{task.number}")
        receipts.append(stored.write(task))
    os.environ["GAN_TRAIN_CACHE"] = str(tmp_path / "driver")
    index = stored.finish(plan, receipts)
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
    stored, _ = stored_of(config)
    receipts = [stored.write(task) for task in plan.tasks()]
    stored.finish(plan, receipts)
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


# ---- sets that grow ------------------------------------------------------------------------------


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each object of the bucket is read, by its last two names."""
    found = Counter[str]()

    def counted(method: Any) -> Any:
        def reading(self: Store, key: str, *rest: Any) -> Any:
            found["/".join(f"{self.url}/{key}".split("/")[-2:])] += 1
            return method(self, key, *rest)

        return reading

    for name in ("read", "fetch"):
        monkeypatch.setattr(Store, name, counted(getattr(Store, name)))
    return found


def growing(config: Config) -> Config:
    return recipes.change(config, {"data.grow": True})


def sharded(config: Config) -> tuple[ShardPlan, Index]:
    """As `sharding.shard` does it, but in this process."""
    plan = plan_of(config)
    stored = StoredShards.of(config, plan.directory)
    assert stored is not None
    index = stored.index(plan)
    if index is None:
        index = stored.finish(plan, [stored.write(task) for task in plan.tasks()])
    return plan, index


def come(source: Path, bucket: str, *names: str) -> None:
    """New pictures, in the folder and in the bucket."""
    for number, name in enumerate(names):
        Image.new("RGB", (16, 16), (30 * number, 200, 90)).save(source / name)
        Store(f"{bucket}/images").send(source / name, name)


NEW = ("red/new0.png", "red/new1.png", "blue/new2.png")


def test_only_what_is_new_in_a_bucket_is_read_and_written(
    on: On, in_bucket: str, tiny_source: Path, tmp_path: Path, read: Counter[str]
) -> None:
    """On machines that know nothing but the bucket, as the pods of a night are."""
    beside = growing(tiny_config(tiny_source, tmp_path / "folder"))
    shard_here(beside.data, beside.workspace)
    first, before = sharded(growing(on("a")))
    assert before.additions == () and first.before == ()

    come(tiny_source, in_bucket, *NEW)
    shard_here(beside.data, beside.workspace)
    read.clear()
    second, index = sharded(growing(on("b")))
    assert [plan.fingerprint for plan in second.before] == [first.fingerprint]
    pictures = {name: count for name, count in read.items() if name.endswith(".png")}
    assert pictures == dict.fromkeys(NEW, 2), "to list it, and to store it"
    assert not [name for name in read if name.endswith(".tar")]
    assert index.shards[:2] == before.shards and len(index.shards) == 3
    assert index.additions[0].content_hash == before.content_hash
    new_set = Store(f"{in_bucket}/w/shards/{second.fingerprint}")
    assert [e.key for e in new_set.entries() if e.key.endswith(".tar")] == [index.shards[2].name]

    come(tiny_source, in_bucket, "green/last.png")
    third, index = sharded(growing(on("c")))
    assert [plan.fingerprint for plan in third.before] == [first.fingerprint, second.fingerprint]
    assert index == Index.load(shard_here(beside.data, beside.workspace)), "as in a folder"

    read.clear()
    again, same = sharded(growing(on("d")))
    assert (again.fingerprint, same) == (third.fingerprint, index)
    assert not [name for name in read if name.endswith((".tar", ".png"))], "nothing is new"

    # a machine that trains fetches the shards of all three, but for those that it has
    for machine, lacks in (("e", 4), ("a", 2)):
        folder = finished(growing(on(machine)))
        read.clear()
        assert all(shard_cache.fetch(folder, info) for info in index.shards)
        assert sum(name.endswith(".tar") for name in read.elements()) == lacks
        index.verify(folder)


@pytest.mark.fault(
    "a shard, the index, the list of links or the record of a set that has grown in a bucket, "
    "gone or damaged",
    "it is refused where it is read; sharding writes it again, with the same bytes",
)
@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_a_damaged_part_is_refused_and_written_again(
    on: On,
    in_bucket: str,
    tiny_source: Path,
    damage: str,
    record_property: Callable[[str, object], None],
) -> None:
    slowest = 0.0
    first, _ = sharded(growing(on("a")))
    come(tiny_source, in_bucket, *NEW)
    second, index = sharded(growing(on("a")))
    for name in ("shard-000001.tar", INDEX_NAME, shard_cache.LINKS, RECORD_NAME):
        plan = first if name.endswith(".tar") else second
        store = Store(f"{in_bucket}/w/shards/{plan.fingerprint}")
        whole = store.read(name)
        store.delete(name) if damage == "gone" else store.write(name, whole[:-9])
        if name != RECORD_NAME:  # which training does not read
            with pytest.raises(UserError, match=r"is missing|is damaged|other bytes|no finished"):
                folder = finished(growing(on(f"trains, {name}")))
                for info in index.shards:
                    shard_cache.fetch(folder, info)
        begun = time.monotonic()
        again, mended = sharded(growing(on(f"shards, {name}")))
        slowest = max(slowest, time.monotonic() - begun)
        assert (again.fingerprint, mended) == (second.fingerprint, index), name
        assert store.read(name) == whole, name
    record_property("recovered_s", slowest)
    record_property("lost", "nothing while the source has the images")


def test_a_workspace_in_a_folder_has_none(tiny_source: Path, tmp_path: Path) -> None:
    assert StoredShards.of(tiny_config(tiny_source, tmp_path), tmp_path) is None
