"""A bit that flips in a shard after it was verified is noticed when it is read."""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch

from gan_train.config import DataConfig
from gan_train.data.index import DamagedShard, Index
from gan_train.data.loader import read_images
from gan_train.data.planning import plan_shards
from gan_train.data.reader import read_range
from gan_train.data.sharding import shard, verified_index
from gan_train.files.digests import VerifiedFiles
from tests.unit.data.pictures import config, encoded, noise, write_zip

FLIPS = 400


@pytest.fixture
def source(tmp_path: Path) -> DataConfig:
    """30 pictures of 8x8 in three classes: PNGs, JPEGs and WebPs, all stored as they are."""
    kinds = ("PNG", "JPEG", "WEBP")
    files = {f"{n % 2}/{n}.{kinds[n % 3]}": encoded(noise(n), kinds[n % 3]) for n in range(30)}
    return config(write_zip(tmp_path / "a.zip", files))


def rot(tar: Path, memory: Path, places: Iterable[int]) -> None:
    """Flip a bit of each of these bytes as a disk does it: the shard still counts as verified, for
    its times are the same as before. (Here they are not, so the memory is told the new ones.)"""
    known = VerifiedFiles(ours=True)
    digest = known.sha256(tar)
    data = bytearray(tar.read_bytes())
    for place in places:
        data[place] ^= 4
    tar.write_bytes(data)
    known = VerifiedFiles(memory / f"{tar.name}.jsonl", ours=True)
    known.value(tar.name, tar, lambda file: digest)
    known.save()


@pytest.mark.fault(
    "a random bit that flips in a shard after it was verified",
    "found when the sample is read, before it is decoded",
)
def test_every_flipped_bit_is_noticed(
    source: DataConfig, tmp_path: Path, record_property: pytest.RecordProperty
) -> None:
    directory = shard(source, tmp_path)
    index, draw = Index.load(directory), random.Random(0)
    noticed = 0
    for _ in range(FLIPS):
        number = draw.randrange(len(index.shards))
        info = index.shards[number]
        with (directory / info.name).open("r+b") as file:
            place = draw.randrange(info.bytes)
            file.seek(place)
            before = file.read(1)
            file.seek(place)
            file.write(bytes([before[0] ^ 1 << draw.randrange(8)]))
            file.flush()
            with pytest.raises(DamagedShard) as error:
                read_range(index, directory, number, 0, info.samples)
            sample = np.searchsorted(info.offsets, place, side="right") - 1
            noticed += f"sample {info.number:06d}-{sample:06d} has other bytes" in str(error.value)
            file.seek(place)
            file.write(before)
    assert noticed == FLIPS
    record_property("lost", f"{noticed} of {FLIPS} flips were noticed")
    assert len(read_images(index, directory, 0, 30)[0]) == 30


def test_the_remedy_mends_what_was_found(source: DataConfig, tmp_path: Path) -> None:
    directory = shard(source, tmp_path)
    index, whole = Index.load(directory), read_images(Index.load(directory), directory, 0, 30)[0]
    plan = plan_shards(source, None, tmp_path)
    tar = directory / index.shards[1].name
    rot(tar, plan.memory, [3000])
    assert verified_index(plan) == index, "the memory knows the shard"
    with pytest.raises(DamagedShard, match=r"run `gan-train shard --verify`"):
        read_images(index, directory, 0, 30)
    shard(source, tmp_path, verify=True)
    assert torch.equal(read_images(index, directory, 0, 30)[0], whole)


def strip_checksums(directory: Path) -> None:
    """Make the set one that was written before there were checksums."""
    for path in (*directory.glob("shard-*.json"), directory / "index.json"):
        value = json.loads(path.read_bytes())
        for info in value.get("shards") or [value["info"]]:
            del info["checksums"]
        path.write_text(json.dumps(value))


def test_a_set_from_before_gets_checksums(source: DataConfig, tmp_path: Path) -> None:
    directory = shard(source, tmp_path)
    new = {path.name: path.read_bytes() for path in directory.iterdir()}
    index, whole = Index.load(directory), read_images(Index.load(directory), directory, 0, 30)[0]
    strip_checksums(directory)
    old = Index.load(directory)
    assert old.content_hash == index.content_hash and not any(i.checksums for i in old.shards)
    assert torch.equal(read_images(old, directory, 0, 30)[0], whole)
    written = {path: path.stat().st_mtime_ns for path in directory.glob("*.tar")}
    assert shard(source, tmp_path) == directory
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == new
    assert {path: path.stat().st_mtime_ns for path in directory.glob("*.tar")} == written
    assert index.shards[0].checksums[1] == zlib.crc32(
        new[index.shards[0].name][slice(*index.shards[0].byte_range(1, 1))]
    )


def test_a_damaged_set_from_before_gets_no_checksums_of_the_damage(
    source: DataConfig, tmp_path: Path
) -> None:
    directory = shard(source, tmp_path)
    new = {path.name: path.read_bytes() for path in directory.iterdir()}
    strip_checksums(directory)
    rot(directory / "shard-000001.tar", plan_shards(source, None, tmp_path).memory, [3000])
    shard(source, tmp_path)
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == new
