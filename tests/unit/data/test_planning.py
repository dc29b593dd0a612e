"""A source is read once to be listed and once to be sharded; after that nothing is, unless it
changed, an interval has passed, or it is asked for."""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from gan_train import recipes
from gan_train.config import DataConfig
from gan_train.data import sources
from gan_train.data.planning import plan_shards
from gan_train.data.sharding import expected_bytes, shard, verified_index
from gan_train.files import digests
from tests.unit.data.pictures import class_files, config, encoded, noise, write_folder
from tests.unit.data.test_sources import write_tar
from tests.unit.opened import opened


@pytest.fixture(autouse=True)
def old_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of a source count as settled at once, as if they were written long ago."""
    monkeypatch.setattr(digests, "RESOLUTION_NS", 0)


def whole_run(data: DataConfig, workspace: Path, verify: bool = False) -> Path:
    """What a command does with the source: plan, shard, look for the finished shards."""
    plan_shards(data, None, workspace, verify=verify)
    directory = shard(data, workspace, verify=verify)
    assert plan_shards(data, None, workspace).directory == directory
    return directory


def tars(counts: Counter[str]) -> list[int]:
    return [count for name, count in counts.items() if name.endswith(".tar")]


def test_every_file_of_a_folder_is_read_twice_and_then_never(tmp_path: Path) -> None:
    files = class_files(25)
    data = config(write_folder(tmp_path / "source", files))
    with opened(tmp_path / "source") as source, opened(tmp_path / "w") as workspace:
        directory = whole_run(data, tmp_path / "w")
    assert source == dict.fromkeys(files, 2)  # to list it, and to store it
    assert tars(workspace) == [1, 1, 1]  # the digest of what was written

    with opened(tmp_path / "source") as source, opened(tmp_path / "w") as workspace:
        assert whole_run(data, tmp_path / "w") == directory
    assert not source and not tars(workspace)


def test_both_domains_of_one_folder_are_listed_at_once(tmp_path: Path) -> None:
    files = class_files(24)
    root = write_folder(tmp_path / "source", files)
    second = {"only_classes": ("b",)}
    data = config(root, classes="none", only_classes=("a",), second=second)
    with opened(root) as source:
        plan_shards(data, None, tmp_path / "w")
    assert source == dict.fromkeys(files, 1)


def test_the_expected_size_is_told_by_a_few_files(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "source", class_files(45))
    plan = plan_shards(config(root), None, tmp_path / "w")
    with opened(root) as source:
        assert expected_bytes(plan) > 45 * 1024
    assert len(source) == 8


def add(root: Path) -> None:
    (root / "top/a/new.png").write_bytes(encoded(noise(100)))


def remove(root: Path) -> None:
    (root / "top/a/0000.png").unlink()


def replace(root: Path) -> None:
    """Other content of the same size, with the time of the old one."""
    path = root / "top/a/0000.png"
    data, status = bytearray(path.read_bytes()), path.stat()
    data[-5] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize(("change", "reads"), [(add, 1), (remove, 0), (replace, 1)])
def test_what_changed_in_a_folder_is_read_and_nothing_else(
    tmp_path: Path, change: Callable[[Path], None], reads: int
) -> None:
    root = write_folder(tmp_path / "source", class_files(12))
    before = plan_shards(config(root), None, tmp_path / "w")
    time.sleep(0.02)  # more than the step of the clock that gives files their times
    change(root)
    with opened(root) as source:
        after = plan_shards(config(root), None, tmp_path / "w")
    assert source.total() == reads
    assert after.fingerprint != before.fingerprint
    assert after.fingerprint == plan_shards(config(root), None, tmp_path / "other").fingerprint


@pytest.mark.parametrize("pack", [None, gzip.compress])
def test_a_tar_is_read_through_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack: Callable[[bytes], bytes] | None
) -> None:
    path = write_tar(tmp_path / "source.tar", class_files(25))
    if pack is not None:
        path.write_bytes(pack(path.read_bytes()))
    through: list[str] = []
    real_tar, real_digest = sources._Tar._read_through, digests._sha256
    monkeypatch.setattr(
        sources._Tar,
        "_read_through",
        lambda tar, file: through.append("listed") or real_tar(tar, file),
    )
    monkeypatch.setattr(
        digests, "_sha256", lambda file: through.append(file.name) or real_digest(file)
    )
    directory = whole_run(config(path), tmp_path / "w")
    assert through.count("listed") == 1
    assert through.count(str(path)) == (pack is not None)
    through.clear()
    assert whole_run(config(path), tmp_path / "w") == directory
    assert not through


def test_a_tar_that_was_just_unpacked_is_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "RESOLUTION_NS", 60_000_000_000)  # all files are recent
    path = write_tar(tmp_path / "plain.tar", class_files(12))
    packed = tmp_path / "source.tar.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    listed: list[Path] = []
    real = sources._Tar._read_through
    monkeypatch.setattr(
        sources._Tar, "_read_through", lambda tar, file: listed.append(tar._path) or real(tar, file)
    )
    for data in (config(packed), config(path)):
        for _ in range(2):
            plan_shards(data, None, tmp_path / "w")
    (unpacked,) = (tmp_path / "w" / "sources").glob("*.tar")
    assert listed == [unpacked, path, path]


def test_everything_is_read_again_on_request_and_after_an_interval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = class_files(25)
    root = write_folder(tmp_path / "source", files)
    workspace = tmp_path / "w"
    directory = shard(config(root), workspace)

    def reads(days: float, verify: bool) -> tuple[int, int]:
        with opened(root) as source, opened(workspace) as written:
            assert shard(config(root, verify_days=days), workspace, verify=verify) == directory
        return source.total(), sum(tars(written))

    assert reads(30, verify=False) == (0, 0)
    assert reads(30, verify=True) == (25, 3)
    assert reads(0, verify=False) == (25, 3)
    month = time.time() + 29 * 86400
    monkeypatch.setattr(time, "time", lambda: month)
    assert reads(30, verify=False) == (0, 0)
    later = month + 2 * 86400
    monkeypatch.setattr(time, "time", lambda: later)
    assert reads(30, verify=False) == (25, 3)
    assert reads(30, verify=False) == (0, 0)


def test_a_full_verification_finds_what_no_time_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that loses a bit changes neither size nor times; here times are not looked at."""
    real = digests.Stamp.of
    monkeypatch.setattr(
        digests.Stamp, "of", staticmethod(lambda s: real(s)._replace(modified=0, changed=0))
    )
    data = config(write_folder(tmp_path / "source", class_files(25)))
    directory = shard(data, tmp_path / "w")
    tar = directory / "shard-000001.tar"
    whole = tar.read_bytes()
    with tar.open("r+b") as file:
        file.seek(700)
        file.write(bytes([whole[700] ^ 1]))
    assert verified_index(plan_shards(data, None, tmp_path / "w")) is not None
    assert verified_index(plan_shards(data, None, tmp_path / "w", verify=True)) is None
    assert shard(data, tmp_path / "w", verify=True) == directory
    assert tar.read_bytes() == whole


def test_a_killed_run_does_not_read_its_finished_shards_again(tmp_path: Path) -> None:
    data = config(write_folder(tmp_path / "source", class_files(45)))
    directory = shard(data, tmp_path / "w")
    (directory / "index.json").unlink()
    (directory / "shard-000002.tar").unlink()
    with opened(tmp_path / "w") as workspace:
        shard(data, tmp_path / "w")
    assert {name: count for name, count in workspace.items() if name.endswith(".tar")} == {
        f"shards/{directory.name}/shard-000002.tar": 1
    }


def test_the_demos_data_are_what_they_were(tmp_path: Path) -> None:
    """Data sets that were sharded before are found again."""
    plan = plan_shards(recipes.load("demo").data, None, tmp_path)
    assert (plan.fingerprint, plan.images, plan.shards) == ("a2d7e0ad4b6d3415", 8897, 9)


def test_the_bytes_of_a_data_set_are_what_they_were(tmp_path: Path) -> None:
    part = ["data.only_classes=[Q, Z]", "data.shard_images=300"]
    directory = shard(recipes.load("demo", part).data, tmp_path)
    assert directory.name == "f33a33e554e7f676"
    digest = "dabc0bb75ddd0cb31dadd5e51c6af6af4cb202817c7ec455b51c3c97a8dcd0b9"
    # the index holds the digests of the shards; the checksums of their samples came later
    index = re.sub(rb'"checksums":"[^"]+",', b"", (directory / "index.json").read_bytes())
    assert hashlib.sha256(index).hexdigest() == digest
