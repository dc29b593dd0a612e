"""Shards in a bucket: fetched when they are read, verified on arrival, bounded in bytes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
import torch

from gan_train.data import shard_cache
from gan_train.data.index import INDEX_NAME, DamagedShard, Index
from gan_train.data.loader import Loader, read_images
from gan_train.data.order import Order
from gan_train.files.store import Store
from tests.unit.data.pictures import stored

SAMPLES = 61

Data = tuple[Index, Path, Store]


@pytest.fixture
def data(in_bucket: str, tmp_path: Path) -> Data:
    """61 images of 8x8 in 7 shards: their index, their folder, and the same in a bucket."""
    (tmp_path / "data").mkdir()
    index, folder = stored(tmp_path / "data", SAMPLES, shard_images=9)
    store = Store(in_bucket) / "shards/x"
    for name in (INDEX_NAME, *(shard.name for shard in index.shards)):
        store.send(folder / name, name)
    return index, folder, store


def shards_in(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("shard-*.tar")}


def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    fetched: list[str] = []
    fetch = Store.fetch

    def counting(self: Store, key: str, path: Path) -> str:
        fetched.append(key)
        return fetch(self, key, path)

    monkeypatch.setattr(Store, "fetch", counting)
    return lambda: [name for name in fetched if name.endswith(".tar")]


def batches(index: Index, folder: Path, **changes: int) -> list[torch.Tensor]:
    loader = Loader(index, folder, **{"seed": 5, "lanes": 12, "block": 4, "grain": 2, **changes})
    return [loaded.images for loaded in islice(loader.batches(0, 24, 8), 6)]


def test_training_sees_the_same_images(data: Data, tmp_path: Path) -> None:
    index, folder, store = data
    copy = shard_cache.open_folder(tmp_path / "copy", store, most_gb=1)
    assert shards_in(copy) == set() and Index.load(copy) == index
    pairs = zip(batches(index, folder), batches(Index.load(copy), copy), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_only_what_is_read_is_fetched_and_once(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, _, store = data
    fetched = counted(monkeypatch)
    copy = shard_cache.open_folder(tmp_path / "copy", store, most_gb=1)
    read_images(index, copy, 0, 12)
    assert shards_in(copy) == {index.shards[0].name, index.shards[1].name}
    read_images(index, copy, 0, 12)
    assert fetched() == [index.shards[0].name, index.shards[1].name]


@pytest.mark.fault(
    "a shard in a bucket that is damaged or missing where it is fetched",
    "fetched once more, and then refused by name; no damaged copy stays",
)
def test_a_damaged_arrival_is_fetched_again_and_then_refused(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, folder, store = data
    name = index.shards[2].name
    whole = (folder / name).read_bytes()
    flipped = bytes([*whole[:700], whole[700] ^ 1, *whole[701:]])
    store.write(name, flipped)
    copy = shard_cache.open_folder(tmp_path / "copy", store, most_gb=1)
    with pytest.raises(DamagedShard, match=f"{name} has other bytes than the index says"):
        read_images(index, copy, 18, 9)
    assert shards_in(copy) == set()
    fetch, tries = Store.fetch, list[str]()

    def mended(self: Store, key: str, path: Path) -> str:
        tries.append(key)
        if len(tries) == 2:
            store.write(name, whole)
        return fetch(self, key, path)

    monkeypatch.setattr(Store, "fetch", mended)
    read_images(index, copy, 18, 9)
    assert tries == [name, name]
    store.delete(index.shards[3].name)
    with pytest.raises(DamagedShard, match=rf"{index.shards[3].name} is missing"):
        read_images(index, copy, 27, 9)


@pytest.mark.fault(
    "a bit that flips in a node's copy of a shard after it arrived",
    "the copy is discarded and fetched once more; only if that is damaged, too, it is refused",
)
def test_a_copy_that_is_damaged_later_is_fetched_again(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, folder, store = data
    fetched = counted(monkeypatch)
    copy = shard_cache.open_folder(tmp_path / "copy", store, most_gb=1)
    whole, _ = read_images(index, copy, 0, 9)
    name = index.shards[0].name
    flipped = bytearray((folder / name).read_bytes())
    flipped[700] ^= 1
    (copy / name).write_bytes(flipped)
    assert torch.equal(read_images(index, copy, 0, 9)[0], whole)
    assert fetched() == [name, name]
    assert (copy / name).read_bytes() == (folder / name).read_bytes()
    (copy / name).write_bytes(flipped)
    store.write(name, bytes(flipped))
    with pytest.raises(DamagedShard, match=f"{name} has other bytes than the index says"):
        read_images(index, copy, 0, 9)
    assert shards_in(copy) == set()


def test_the_folder_keeps_to_its_limit(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, _, store = data
    fetched = counted(monkeypatch)
    three = sum(shard.bytes for shard in index.shards[:3])
    copy = shard_cache.open_folder(tmp_path / "copy", store, most_gb=three / 1e9)
    for shard in range(5):
        read_images(index, copy, shard * 9, 9)
        total = sum((copy / name).stat().st_size for name in shards_in(copy))
        assert total <= three
    assert shards_in(copy) == {shard.name for shard in index.shards[2:5]}
    read_images(index, copy, 0, 9)  # an evicted one comes back
    assert fetched()[-1] == index.shards[0].name


def test_the_next_shards_are_fetched_ahead(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, _, store = data
    wanted: list[int] = []
    monkeypatch.setattr(shard_cache.Ahead, "want", lambda self, shard: wanted.append(shard))
    copy = shard_cache.open_folder(tmp_path / "copy", store, most_gb=1)
    loader = Loader(index, copy, seed=5, lanes=1, block=4, grain=1)
    images = loader.batches(0, 4, 8)
    next(images)
    order = Order(tuple(shard.samples for shard in index.shards), 5, 1, 4, 1)
    stream = order.epoch(0).stream(0, SAMPLES) // 9  # the shard of each place; all have 9 images
    assert {int(stream[0]), int(stream[4]), int(stream[4 + 8])} <= set(wanted)


def test_later_is_the_sample_that_lies_behind(data: Data) -> None:
    index, *_ = data
    order = Order(tuple(shard.samples for shard in index.shards), 5, 3, 4, 2)
    epoch = order.epoch(1)
    for lane in range(3):
        start, end = int(epoch.starts[lane]), int(epoch.starts[lane + 1])
        stream = epoch.stream(start, end).tolist()
        behind = 0
        for number in range(4):
            behind += len(epoch.block(lane, number).reading)
            for distance in (0, 1, 9):
                place = behind - 1 + distance
                expected = stream[place] if place < len(stream) else None
                assert epoch.later(lane, number, distance) == expected
