"""Objects in a real S3 server: whole, conditional, and tried again when the server fails."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from gan_train.errors import UserError
from gan_train.files import store as module
from gan_train.files.store import Entry, Store, StoreError, attach, local_copy, origin_of, path_of
from tests.bucket import Faults


@pytest.fixture
def faulty(
    in_bucket: str, s3_port: int, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Store, Faults]]:
    """A store behind a proxy, which is tried again for a second at most."""
    proxy = Faults(s3_port)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
    monkeypatch.setattr(module, "_PATIENCE", timedelta(seconds=1))
    yield Store(in_bucket), proxy
    proxy.close()


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("runs", Path("runs")),
        ("/a:b/c", Path("/a:b/c")),
        ("file:///data/my%20runs", Path("/data/my runs")),
        ("s3://bucket/team", None),
        ("gs://bucket", None),
        ("az://container/x", None),
    ],
)
def test_paths_and_addresses(place: str, expected: Path | None) -> None:
    assert path_of(place) == expected


@pytest.mark.parametrize("place", ["http://host/x", "pipe://ls", "s3:///x", "file://other/x"])
def test_other_addresses_are_refused(place: str) -> None:
    with pytest.raises(UserError, match=r"allowed: a path.*s3://bucket/folder"):
        path_of(place)


def test_objects(in_bucket: str, tmp_path: Path) -> None:
    store = Store(in_bucket) / "part"
    assert store.look("a/1") is None and store.entries() == []
    with pytest.raises(FileNotFoundError):
        store.read("a/1")
    store.write("a/1", b"one")
    big = tmp_path / "big"
    big.write_bytes(bytes(range(256)) * 80_000)  # 20 MB: sent and fetched in parts
    store.send(big, "a/b/2")
    store.write("c", b"")
    assert [(entry.key, entry.size) for entry in store.entries()] == [
        ("a/1", 3),
        ("a/b/2", 20_480_000),
        ("c", 0),
    ]
    assert [entry.key for entry in store.entries("a", after="a/1")] == ["a/b/2"]
    assert store.folders("a") == ["b"]
    back = tmp_path / "new" / "back"
    assert store.fetch("a/b/2", back) == hashlib.sha256(big.read_bytes()).hexdigest()
    assert back.read_bytes() == big.read_bytes()
    assert Store(in_bucket).read("part/a/1") == b"one"
    store.delete("c")
    store.delete("c")
    assert store.look("c") is None


def test_of_many_that_create_an_object_one_succeeds(in_bucket: str) -> None:
    store, won = Store(in_bucket), list[int]()

    def create(number: int) -> None:
        if store.create("one", str(number).encode()):
            won.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and store.read("one") == str(won[0]).encode()


def test_an_object_that_has_changed_is_not_replaced(in_bucket: str) -> None:
    store = Store(in_bucket)
    store.write("x", b"first")
    seen = store.look("x")
    assert isinstance(seen, Entry)
    assert store.replace("x", b"second", seen.tag)
    assert not store.replace("x", b"third", seen.tag)
    assert store.read("x") == b"second"
    assert not store.replace("gone", b"", seen.tag)


def test_throttling_and_cut_connections_are_overcome(
    faulty: tuple[Store, Faults], tmp_path: Path
) -> None:
    store, faults = faulty
    data = bytes(1000)
    faults.fail("PUT", "/a$", 503, times=2)
    store.write("a", data)
    faults.fail("GET", "/a$", 503, times=1)
    faults.fail("GET", "/a$", "cut", times=1)
    store.fetch("a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == data
    assert faults.injected == 4


def test_a_refusal_is_told_and_leaves_what_was_there(
    faulty: tuple[Store, Faults], tmp_path: Path
) -> None:
    store, faults = faulty
    store.write("a", b"before")
    (tmp_path / "new").write_bytes(b"after")
    faults.fail("PUT", "/a$", 403, times=1)
    with pytest.raises(StoreError, match="/team/a: "):
        store.send(tmp_path / "new", "a")
    assert store.read("a") == b"before"
    faults.fail("GET", "/a$", 503, times=1000)
    with pytest.raises(StoreError):
        store.fetch("a", tmp_path / "fetched")
    assert not list(tmp_path.glob("fetched*"))


def test_check_names_the_remedy(faulty: tuple[Store, Faults]) -> None:
    store, faults = faulty
    store.check()
    faults.fail("GET", "", 403, times=1)
    with pytest.raises(UserError, match="AWS_ENDPOINT_URL"):
        store.check()


def test_a_local_copy_knows_its_origin(in_bucket: str, tmp_path: Path) -> None:
    folder = local_copy(in_bucket)
    assert folder.is_relative_to(tmp_path / "copies") and origin_of(folder) is None
    assert local_copy(f"{in_bucket}/") == folder != local_copy(f"{in_bucket}2")
    attach(folder, Store(in_bucket))
    attach(folder, Store(in_bucket))
    origin = origin_of(folder)
    assert origin is not None and origin.url == in_bucket
