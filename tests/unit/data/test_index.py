"""The index on disk and in memory: whole or refused, and small."""

from __future__ import annotations

import pickle
import tracemalloc
from array import array
from pathlib import Path

import pytest

from gan_train.data.index import DamagedShard, Index, ShardInfo, content_hash
from gan_train.errors import UserError
from tests.unit.data.pictures import stored


def test_verify_names_the_damaged_shard(tmp_path: Path) -> None:
    index, directory = stored(tmp_path, 25)
    index.verify(directory)
    tar = directory / "shard-000001.tar"
    whole = tar.read_bytes()
    second = index.shards[1].offsets[1]
    cases = {
        "bytes, recorded": whole[:second],
        "SHA-256": whole[:second] + bytes(1024) + whole[second + 1024 :],
        "not the recorded one": whole[:-5] + b"\1" + whole[-4:],
    }
    for message, data in cases.items():
        tar.write_bytes(data)
        with pytest.raises(DamagedShard, match=rf"shard-000001\.tar is damaged: .*{message}.*run"):
            index.verify(directory)
    tar.unlink()
    with pytest.raises(DamagedShard, match=r"shard-000001\.tar is missing"):
        index.verify(directory)


def test_index_on_disk(tmp_path: Path) -> None:
    index, directory = stored(tmp_path, 25)
    assert Index.load(directory) == index
    text = (directory / "index.json").read_text()
    index.save(tmp_path)
    assert (tmp_path / "index.json").read_text() == text
    for old, new, message in (
        ('"samples":25', '"samples":24', "do not add up"),
        ('"resize":"lanczos"', '"resize":"box"', "content_hash"),
        ("shard-000001.tar", "../shard-000001.tar", "pattern"),
        ('"version":1', '"version":2', "version"),
        ('"quarantined":0,', "", "quarantined"),
        ('"offsets":[0,', '"offsets":[-1,', "whole numbers from 0 on"),
        ('"offsets":[0,', '"offsets":[0.5,', "whole numbers from 0 on"),
        ('"offsets":[0,', '"offsets":["0",', "whole numbers from 0 on"),
        ('"offsets":[0,', '"offsets":[', "one offset per sample"),
        ('"offsets":[0,', '"offsets":[99999999,', "do not ascend"),
        ('"checksums":"', '"checksums":"AAAA', "one checksum per sample|multiple"),
        ('"checksums":"', '"checksums":"?', "base64"),
        ('"checksums":"', '"checksums":7,"more":"', "base64"),
        ('"offsets":[', '"offsets":7,"more":[', "must be a list"),
        ("{", "", "JSON"),
    ):
        assert old in text
        (tmp_path / "index.json").write_text(text.replace(old, new, 1))
        with pytest.raises(UserError, match=rf"damaged: .*{message}"):
            Index.load(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        Index.load(tmp_path / "nowhere")
    assert ShardInfo.model_validate(index.shards[0].model_dump()) == index.shards[0]


def test_an_index_takes_twelve_bytes_an_image(tmp_path: Path) -> None:
    """Every process that reads images has one. As objects of Python, offsets take 40 bytes each."""
    images, shards = 100_000, 10
    one = ShardInfo(
        name="shard-000000.tar",
        samples=images // shards,
        bytes=10**9,
        sha256="0" * 64,
        offsets=tuple(range(10**6, 10**6 + images // shards)),
        checksums=array("I", range(images // shards)),
    )
    infos = tuple(one.model_copy(update={"name": f"shard-{n:06d}.tar"}) for n in range(shards))
    index = Index(
        content_hash=content_hash(infos, {}),
        samples=images,
        resolution=8,
        channels=3,
        classes=(),
        class_counts=(),
        transform={},
        quarantined=0,
        shards=infos,
    )
    index.save(tmp_path)
    tracemalloc.start()
    try:
        loaded = Index.load(tmp_path)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert loaded == index
    assert held < 12 * images + 50_000, held / images
    assert len(pickle.dumps(loaded)) < 12 * images + 50_000  # sent to every loader process
