"""A set that grows: new images get shards of their own, and what is there is neither read nor
written; whatever else changed, all is sharded anew."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gan_train.data import growth
from gan_train.data.index import Index, content_hash
from gan_train.data.loader import Loader, read_images
from gan_train.data.planning import plan_shards
from gan_train.data.sharding import shard, verified_index, write_shard
from gan_train.errors import UserError
from gan_train.files import digests
from gan_train.metrics.real import order_in_words, read_places
from tests.unit.data.pictures import class_files, config, encoded, noise, write_folder
from tests.unit.data.test_sharding import shuffled
from tests.unit.opened import opened


@pytest.fixture(autouse=True)
def old_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of a source count as settled at once, as if they were written long ago."""
    monkeypatch.setattr(digests, "RESOLUTION_NS", 0)


def source(root: Path, count: int) -> Path:
    """A folder of so many pictures; those that are there stay as they are."""
    files = {n: data for n, data in class_files(count).items() if not (root / n).exists()}
    return write_folder(root, files)


def stamps(directory: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of each shard that lies in the folder."""
    found = {path.name: path.stat() for path in sorted(directory.glob("*.tar"))}
    return {name: (status.st_ino, status.st_mtime_ns) for name, status in found.items()}


def sets(workspace: Path) -> list[str]:
    return sorted(path.name for path in (workspace / "shards").iterdir())


def test_only_new_images_are_sharded(tmp_path: Path) -> None:
    data = config(source(tmp_path / "s", 25), grow=True)
    first = shard(data, tmp_path / "w")
    before = Index.load(first)
    assert before.additions == ()
    kept = stamps(first)

    source(tmp_path / "s", 37)
    new = sorted(class_files(37).keys() - class_files(25).keys())
    with opened(tmp_path / "s") as pictures, opened(tmp_path / "w") as written:
        second = shard(data, tmp_path / "w")
    assert pictures == dict.fromkeys(new, 2), "to list it, and to store it"
    tars = {name: count for name, count in written.items() if name.endswith(".tar")}
    fresh = [f"shards/{second.name}/shard-{number:06d}.tar" for number in (3, 4)]
    assert tars == dict.fromkeys(fresh, 1), "no shard that was there is read"

    assert second != first and stamps(first) == kept
    assert {name: stamps(second)[name] for name in kept} == kept
    index = Index.load(second)
    index.verify(second)
    assert index.shards[:3] == before.shards
    assert (index.samples, index.class_counts) == (37, (13, 12, 12))
    assert [(a.shards, a.samples) for a in index.additions] == [(3, 25), (2, 12)]
    assert index.additions[0].content_hash == before.content_hash
    assert index.additions[1].content_hash == content_hash(index.shards[3:], index.transform)
    assert index.content_hash == content_hash(index.shards, index.transform)
    assert Index.load(first) == before, "a run on the first set finds it unchanged"

    manifest = [
        json.loads(line)["path"] for line in (second / "manifest.jsonl").read_text().splitlines()
    ]
    assert sorted(manifest) == sorted(class_files(37)) and sorted(manifest[25:]) == new
    loader = Loader(index, second, seed=0, lanes=4, block=4, grain=1)
    shown = next(loader.batches(0, 37, 8)).images
    assert len({image.numpy().tobytes() for image in shown}) == 37, "an epoch shows each once"

    with opened(tmp_path) as anything:
        assert shard(data, tmp_path / "w") == second
    assert not [name for name in anything if name.endswith((".tar", ".png"))]


def test_a_first_set_is_the_one_that_does_not_grow(tmp_path: Path) -> None:
    """A recipe may begin to grow at any time, from the set that it has."""
    root = source(tmp_path / "s", 25)
    plain = shard(config(root), tmp_path / "w")
    whole = (plain / "index.json").read_bytes()
    assert not (plain / growth.RECORD_NAME).exists()
    kept = stamps(plain)
    assert shard(config(root, grow=True), tmp_path / "w") == plain
    assert (plain / "index.json").read_bytes() == whole and stamps(plain) == kept
    source(root, 26)
    grown = shard(config(root, grow=True), tmp_path / "w")
    assert Index.load(grown).additions[0].shards == 3
    anew = shard(config(root), tmp_path / "w")
    assert Index.load(anew).additions == ()
    assert Index.load(anew).content_hash != Index.load(grown).content_hash


def test_the_same_history_gives_the_same_bytes(tmp_path: Path) -> None:
    """In any order of tasks, from a folder anywhere, and after three sets in a row."""
    found = []
    for place, spread in (("one", map), ("two", shuffled)):
        for count in (25, 37, 40):
            data = config(source(tmp_path / place / "s", count), grow=True)
            directory = shard(data, tmp_path / place / "w", map=spread)
        assert [a.samples for a in Index.load(directory).additions] == [25, 12, 3]
        whole = {path.name: path.read_bytes() for path in directory.iterdir()}
        whole[growth.RECORD_NAME] = whole[growth.RECORD_NAME].partition(b"\n")[2]
        found.append(whole)  # but the record's head, which holds the place of the source
    assert found[0] == found[1]


def gone(root: Path) -> str:
    (root / "top/a/0003.png").unlink()
    return "top/a/0003.png is gone or changed"


def changed(root: Path) -> str:
    for number in (0, 3):
        (root / f"top/a/{number:04d}.png").write_bytes(encoded(noise(500 + number)))
    return "top/a/0000.png and 1 more of its images are gone or changed"


def another_class(root: Path) -> str:
    write_folder(root, {"top/aa/1.png": encoded(noise(100))})
    return "the classes are not those it had"


@pytest.mark.parametrize("change", [gone, changed, another_class])
def test_what_is_not_growth_is_sharded_anew_and_said(
    tmp_path: Path, change: Callable[[Path], str], caplog: pytest.LogCaptureFixture
) -> None:
    root = source(tmp_path / "s", 25)
    data = config(root, grow=True)
    first = shard(data, tmp_path / "w")
    source(root, 30)
    time.sleep(0.02)  # more than the step of the clock that gives files their times
    said = change(root)
    with caplog.at_level(logging.WARNING):
        plan = plan_shards(data, None, tmp_path / "w")
    assert said in plan.fault and plan.before == ()
    assert "sharded anew" in caplog.text and said in caplog.text
    directory = shard(data, tmp_path / "w")
    assert Index.load(directory).additions == ()
    assert plan_shards(config(root), None, tmp_path / "w").directory == directory
    caplog.clear()
    source(root, 33) if change is not gone else write_folder(
        root, {"top/a/new.png": encoded(noise(99))}
    )
    if change is changed:
        change(root)
    grown = plan_shards(data, None, tmp_path / "w")
    assert [one.directory for one in grown.before] == [directory], "it grows from the new set"
    assert first.exists() and not grown.fault and not caplog.text


def test_an_image_that_came_late_and_goes_costs_what_came_with_it(tmp_path: Path) -> None:
    root = source(tmp_path / "s", 25)
    data = config(root, grow=True)
    first = shard(data, tmp_path / "w")
    source(root, 30)
    shard(data, tmp_path / "w")
    (root / "top/a/0027.png").unlink()
    plan = plan_shards(data, None, tmp_path / "w")
    assert [one.directory for one in plan.before] == [first] and plan.images == 29
    assert "top/a/0027.png is gone or changed" in plan.fault


@pytest.mark.parametrize("damage", ["record", "folder", "link", "shard", "own record"])
def test_damage_is_noticed(tmp_path: Path, damage: str) -> None:
    root = source(tmp_path / "s", 25)
    data = config(root, grow=True)
    first = shard(data, tmp_path / "w")
    source(root, 37)
    second = shard(data, tmp_path / "w")
    bytes_ = (second / "shard-000001.tar").read_bytes()
    if damage in ("record", "folder"):
        record = first / growth.RECORD_NAME
        if damage == "folder":
            shutil.rmtree(first)
        else:
            record.write_bytes(record.read_bytes()[:-9])
        plan = plan_shards(data, None, tmp_path / "w")
        assert plan.before == () and f"set {first.name} is gone or damaged" in plan.fault
        return
    if damage == "own record":
        own = second / growth.RECORD_NAME
        whole = own.read_bytes()
        own.write_bytes(whole[:-9])
        assert "is gone or damaged" in plan_shards(data, None, tmp_path / "w").fault
        assert shard(data, tmp_path / "w") == second and own.read_bytes() == whole
        assert not plan_shards(data, None, tmp_path / "w").fault
        return
    if damage == "link":
        (second / "shard-000001.tar").unlink()
    else:
        (first / "shard-000001.tar").write_bytes(bytes_[:2048])
    assert verified_index(plan_shards(data, None, tmp_path / "w")) is None
    assert shard(data, tmp_path / "w") == second
    assert (second / "shard-000001.tar").read_bytes() == bytes_
    Index.load(second).verify(second)


def test_a_killed_growth_is_completed(tmp_path: Path) -> None:
    root = source(tmp_path / "s", 25)
    data = config(root, grow=True)
    shard(data, tmp_path / "w")
    source(root, 45)
    plan = plan_shards(data, None, tmp_path / "w")
    assert plan.done == (0, 1, 2) and plan.shards == 5
    write_shard(list(plan.tasks())[4])
    again = plan_shards(data, None, tmp_path / "w")
    assert again.done == (0, 1, 2, 4) and again.directory == plan.directory
    assert Index.load(shard(data, tmp_path / "w")).samples == 45


def test_bad_files_of_every_addition_are_in_the_report(tmp_path: Path) -> None:
    root = source(tmp_path / "s", 25)
    data = config(root, grow=True, max_bad_fraction=0.1)
    (root / "top/a/bad.png").write_bytes(b"no picture")
    shard(data, tmp_path / "w")
    source(root, 27)
    (root / "top/b/bad.png").write_bytes(b"nor this")
    directory = shard(data, tmp_path / "w")
    report = json.loads((directory / "quarantine.json").read_bytes())
    assert [entry["path"] for entry in report["quarantine"]] == ["top/a/bad.png", "top/b/bad.png"]
    assert Index.load(directory).quarantined == 2
    (root / "top/c/bad.png").write_bytes(b"all that came is bad")
    last = shard(data, tmp_path / "w")
    assert last != directory
    assert Index.load(last).content_hash == Index.load(directory).content_hash


def test_every_addition_holds_out_its_share(tmp_path: Path) -> None:
    root = source(tmp_path / "s", 20)
    data = config(root, grow=True, classes="none", held_out=0.2)
    shard(data, tmp_path / "w")
    source(root, 40)
    plan = plan_shards(data, None, tmp_path / "w")
    assert plan.sizes == {"A": 32, "A_held_out": 8} and plan.images == 40
    index = Index.load(shard(data, tmp_path / "w"))
    held_out = index.part("A_held_out")
    assert held_out is not None and [a.samples for a in held_out.additions] == [4, 4]


def test_real_images_to_compare_with_are_of_every_addition(tmp_path: Path) -> None:
    """Scores take the first N: in stored order these would be the images that came first."""
    root = source(tmp_path / "s", 40)
    data = config(root, grow=True)
    first = shard(data, tmp_path / "w")
    assert order_in_words(Index.load(first)) == "stored order"
    source(root, 80)
    directory = shard(data, tmp_path / "w")
    index = Index.load(directory)
    assert order_in_words(index) == "a random order"
    stored, _ = read_images(index, directory, 0, 80)
    place_of = {image.numpy().tobytes(): place for place, image in enumerate(stored)}
    pixels, labels = read_places(index, directory, torch.arange(20))
    places = [place_of[image.numpy().tobytes()] for image in pixels]
    assert 5 <= sum(place >= 40 for place in places) <= 15
    more, more_labels = read_places(index, directory, torch.arange(10, 80))
    assert torch.equal(pixels[10:], more[:10])
    assert labels is not None and more_labels is not None
    assert torch.equal(labels[10:], more_labels[:10])
    all_labels = read_images(index, directory, 0, 80)[1]
    assert all_labels is not None and labels.tolist() == all_labels[places].tolist()
    assert len({image.numpy().tobytes() for image in [*pixels[:10], *more]}) == 80


def test_sets_of_other_settings_or_sources_are_left_alone(tmp_path: Path) -> None:
    shard(config(source(tmp_path / "s", 25), grow=True), tmp_path / "w")
    source(tmp_path / "s", 30)
    for other in (
        config(tmp_path / "s", grow=True, resize="box"),
        config(source(tmp_path / "other", 30), grow=True),
        config(tmp_path / "s"),
    ):
        plan = plan_shards(other, None, tmp_path / "w")
        assert plan.before == () and not plan.fault


def test_two_domains_do_not_grow(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.grow is true: with data\.second, allowed: false"):
        config(tmp_path, grow=True, classes="none", second={"only_classes": ("b",)})


def test_an_index_whose_additions_do_not_fit_is_refused(tmp_path: Path) -> None:
    root = source(tmp_path / "s", 25)
    shard(config(root, grow=True), tmp_path / "w")
    source(root, 37)
    directory = shard(config(root, grow=True), tmp_path / "w")
    path = directory / "index.json"
    tree = json.loads(path.read_bytes())
    tree["additions"][0]["shards"] = 2
    path.write_text(json.dumps(tree))
    with pytest.raises(UserError, match="`additions` does not belong to the shards"):
        Index.load(directory)
