"""Shards: the same bytes whoever writes them, complete after a kill, honest about bad files."""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from gan_train.data.index import Index
from gan_train.data.planning import ShardTask, plan_shards
from gan_train.data.sharding import (
    ShardReceipt,
    expected_bytes,
    finish_shards,
    shard,
    verified_index,
    write_shard,
)
from gan_train.errors import UserError
from gan_train.files.atomic import aside, remove_leftovers
from tests.unit.data.pictures import (
    class_files,
    config,
    encoded,
    noise,
    stored,
    write_folder,
    write_zip,
)


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def shuffled(
    function: Callable[[ShardTask], ShardReceipt], tasks: Iterable[ShardTask]
) -> list[ShardReceipt]:
    given = list(tasks)
    return [function(task) for task in random.Random(0).sample(given, k=len(given))]


@pytest.mark.parametrize("start", ["fork", "forkserver"])
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_any_number_of_workers_writes_the_same_bytes(tmp_path: Path, start: str) -> None:
    source = config(write_zip(tmp_path / "a.zip", class_files(95)))
    alone = contents(shard(source, tmp_path / "one"))
    assert sorted(name for name in alone if name.endswith(".tar")) == [
        f"shard-{number:06d}.tar" for number in range(10)
    ]
    context = multiprocessing.get_context(start)
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        assert contents(shard(source, tmp_path / "two", map=pool.map)) == alone
    assert contents(shard(source, tmp_path / "three", map=shuffled)) == alone


def test_folder_and_zip_of_the_same_pictures_are_the_same_data(tmp_path: Path) -> None:
    files = class_files(12)
    folder = shard(config(write_folder(tmp_path / "f", files)), tmp_path / "one")
    zipped = shard(config(write_zip(tmp_path / "a.zip", files)), tmp_path / "two")
    assert folder.name == zipped.name and contents(folder) == contents(zipped)


def test_what_a_shard_holds(tmp_path: Path) -> None:
    files = class_files(25)
    directory = shard(config(write_zip(tmp_path / "a.zip", files)), tmp_path)
    index = Index.load(directory)
    assert (index.samples, index.resolution, index.channels) == (25, 8, 3)
    assert index.classes == ("a", "b", "c") and index.image_shape.classes == index.classes
    assert [info.samples for info in index.shards] == [10, 10, 5]
    manifest = [
        json.loads(line) for line in (directory / "manifest.jsonl").read_text().splitlines()
    ]
    assert sorted(line["path"] for line in manifest) == sorted(files)  # no duplicates
    assert [line["path"] for line in manifest] != sorted(files)  # a mix of classes
    sources = {line["key"]: line["path"] for line in manifest}
    for number, info in enumerate(index.shards):
        path = directory / info.name
        with tarfile.open(path) as tar:
            members = tar.getmembers()
            for place, (label, image) in enumerate(zip(members[::2], members[1::2], strict=True)):
                key = f"{number:06d}-{place:06d}"
                assert (label.name, image.name) == (f"{key}.cls", f"{key}.png")
                assert label.offset == info.offsets[place]
                assert (label.mtime, label.uname, label.gname) == (0, "gan-train", "gan-train")
                content, original = tar.extractfile(image), sources[key]
                assert content is not None and content.read() == files[original]
                text = tar.extractfile(label)
                assert text is not None
                assert index.classes[int(text.read())] == original.split("/")[1]


def test_the_folder_s_name_and_the_manifest_are_those_of_json(tmp_path: Path) -> None:
    """A shard folder is found again by its name, whatever the version that wrote it."""
    names = ["top/a/1.png", 'top/a/"q"\\.png', "top/b/ä ö \u2028.png", "top/b/\x7f\t.png"]
    source = config(write_folder(tmp_path / "f", {n: encoded(noise(1)) for n in names}))
    plan = plan_shards(source, None, tmp_path)
    pixels = {"resolution", "colour", "resize", "crop", "background", "classes", "only_classes"}
    identity = source.model_dump(mode="json", include=pixels)
    recipe = [1, identity, source.shard_images, source.max_pixels]
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode())
    for entry in sorted(entry.file for entry in plan.parts["A"]):
        digest.update(json.dumps([entry.path, entry.size, entry.crc]).encode())
    assert plan.directory.name == digest.hexdigest()[:16]
    lines = (shard(source, tmp_path) / "manifest.jsonl").read_text().splitlines()
    assert lines == [json.dumps(json.loads(line)) for line in lines]
    assert sorted(json.loads(line)["path"] for line in lines) == sorted(names)


def test_unlabelled_data_has_no_class_members(tmp_path: Path) -> None:
    index, directory = stored(tmp_path, 5, classes="none")
    assert index.classes == ()
    with tarfile.open(directory / "shard-000000.tar") as tar:
        assert [name for name in tar.getnames() if not name.endswith(".png")] == []


def test_a_second_run_verifies_and_writes_nothing(tmp_path: Path) -> None:
    source = config(write_zip(tmp_path / "a.zip", class_files(25)))
    calls: list[int] = []

    def counting(
        function: Callable[[ShardTask], ShardReceipt], tasks: Iterable[ShardTask]
    ) -> Iterator[ShardReceipt]:
        for task in tasks:
            calls.append(task.number)
            yield function(task)

    told: list[ShardReceipt] = []
    directory = shard(source, tmp_path, map=counting, progress=told.append)
    assert calls == [0, 1, 2] and [receipt.number for receipt in told] == calls
    before = {path: path.stat().st_mtime_ns for path in directory.iterdir()}
    assert shard(source, tmp_path, map=counting) == directory
    assert calls == [0, 1, 2]
    assert {path: path.stat().st_mtime_ns for path in directory.iterdir()} == before


@pytest.mark.parametrize(
    "change", ["resolution", "resize", "shard_images", "only_classes", "colour"]
)
def test_another_configuration_goes_to_another_folder(tmp_path: Path, change: str) -> None:
    changed = {
        "resolution": 4,
        "resize": "box",
        "shard_images": 7,
        "only_classes": ("a",),
        "colour": "grey",
    }[change]
    zipped = write_zip(tmp_path / "a.zip", class_files(12))
    first = Index.load(shard(config(zipped), tmp_path))
    second = Index.load(shard(config(zipped, **{change: changed}), tmp_path))
    assert len(list((tmp_path / "shards").iterdir())) == 2
    assert first.content_hash != second.content_hash


def test_another_content_goes_to_another_folder(tmp_path: Path) -> None:
    files = class_files(12)
    one = shard(config(write_zip(tmp_path / "a.zip", files)), tmp_path)
    files["top/a/0000.png"] = encoded(noise(999))
    assert shard(config(write_zip(tmp_path / "b.zip", files)), tmp_path) != one


@pytest.mark.fault(
    "a shard, its receipt or the index cut, flipped or gone between two commands",
    "found by the next one, which writes anew what is damaged, and nothing else",
)
@pytest.mark.parametrize("damage", ["cut", "flip", "gone", "index", "receipt"])
def test_what_is_damaged_is_found_and_written_anew(tmp_path: Path, damage: str) -> None:
    source = config(write_zip(tmp_path / "a.zip", class_files(25)))
    directory = shard(source, tmp_path)
    whole = contents(directory)
    tar, untouched = directory / "shard-000001.tar", directory / "shard-000000.tar"
    before = untouched.stat().st_mtime_ns
    if damage == "cut":
        tar.write_bytes(whole[tar.name][:2048])
    elif damage == "flip":
        tar.write_bytes(whole[tar.name].replace(b"IDAT", b"IDAU", 1))
    elif damage == "gone":
        tar.unlink()
    else:
        name = "index.json" if damage == "index" else "shard-000001.json"
        (directory / name).write_bytes(whole[name][:50])
    assert verified_index(plan_shards(source, None, tmp_path)) is None
    shard(source, tmp_path)
    assert contents(directory) == whole
    assert untouched.stat().st_mtime_ns == before  # only what was damaged


def test_a_folder_given_for_other_data_is_not_taken_for_finished(tmp_path: Path) -> None:
    for name, count in (("a.zip", 12), ("b.zip", 30)):
        source = config(write_zip(tmp_path / name, class_files(count)))
        plan = plan_shards(source, tmp_path / "mine", tmp_path)
        assert plan.directory == tmp_path / "mine"
        assert verified_index(plan) is None
        index = finish_shards(plan, map(write_shard, plan.tasks()))
        assert index.samples == count and verified_index(plan) == index


def test_leftovers_of_a_killed_writer_are_removed_and_the_rest_completed(tmp_path: Path) -> None:
    source = config(write_zip(tmp_path / "a.zip", class_files(45)))
    expected = contents(shard(source, tmp_path / "reference"))
    plan = plan_shards(source, None, tmp_path)
    write_shard(list(plan.tasks())[3])
    (plan.directory / "shard-000001.tar").write_bytes(b"a tar without a receipt")
    (plan.directory / "shard-000002.tar.1-abc.part").write_bytes(b"half")
    assert plan_shards(source, None, tmp_path).done == (3,)
    assert contents(shard(source, tmp_path)) == expected


def test_leftovers_that_are_being_written_are_left_alone(tmp_path: Path) -> None:
    with aside(tmp_path / "file") as file:
        file.write(b"whole")
        remove_leftovers(tmp_path)
    assert contents(tmp_path) == {"file": b"whole"}
    with pytest.raises(KeyError), aside(tmp_path / "file"):
        raise KeyError
    assert contents(tmp_path) == {"file": b"whole"}


SCRIPT = """
import sys
from pathlib import Path
from gan_train.config import DataConfig
from gan_train.data.sharding import shard
shard(DataConfig.model_validate_json(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.mark.slow
def test_a_killed_run_completes_without_duplicates(tmp_path: Path) -> None:
    large = {f"a/{n}.png": encoded(noise(n, (256, 256)), compress_level=1) for n in range(60)}
    source = config(write_zip(tmp_path / "a.zip", large), shard_images=4, resolution=128)
    expected = contents(shard(source, tmp_path / "reference"))
    for tars in (2, 6):  # killed twice, at different places
        command = [sys.executable, "-c", SCRIPT, source.model_dump_json(), str(tmp_path / "w")]
        with subprocess.Popen(command) as process:
            while len(list(tmp_path.glob("w/shards/*/*.tar"))) < tars and process.poll() is None:
                time.sleep(0.002)
            os.kill(process.pid, signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL  # it was in the midst of its work
    assert not list(tmp_path.glob("w/shards/*/index.json"))
    assert contents(shard(source, tmp_path / "w")) == expected


BAD = {
    "top/a/empty.png": b"",
    "top/a/text.png": b"no picture",
    "top/b/cut.jpg": encoded(noise(1, (31, 31)), "JPEG")[:900],
    "top/b/large.png": encoded(noise(1, (40, 40))),
    "top/readme.txt": b"hello",
    "top/outside.png": encoded(noise(2)),
}


def test_bad_files_are_quarantined(tmp_path: Path) -> None:
    files = {**class_files(14), **BAD}
    source = write_zip(tmp_path / "a.zip", files)
    settings = {"max_pixels": 1000, "max_bad_fraction": 0.3, "shard_images": 6}
    directory = shard(config(source, **settings), tmp_path)
    index = Index.load(directory)
    report = json.loads((directory / "quarantine.json").read_bytes())
    reasons = {entry["path"]: entry["reason"] for entry in report["quarantine"]}
    assert index.samples == 14 and index.quarantined == 6
    assert (report["quarantined"], report["files"]) == (6, 20)
    assert reasons["top/a/empty.png"] == "empty file"
    assert reasons["top/a/text.png"] == "not an image"
    assert "truncated" in reasons["top/b/cut.jpg"]
    assert reasons["top/b/large.png"] == "40x40 pixels, allowed are 1000"
    assert reasons["top/readme.txt"] == "not an image by its name"
    assert reasons["top/outside.png"] == "lies in no class folder"
    for info in index.shards:  # keys stay contiguous
        with tarfile.open(directory / info.name) as tar:
            keys = [name[7:13] for name in tar.getnames() if name.endswith("cls")]
            assert keys == [f"{place:06d}" for place in range(info.samples)]
    index.verify(directory)


def test_too_many_bad_files_fail_with_a_report(tmp_path: Path) -> None:
    source = write_zip(tmp_path / "a.zip", {**class_files(14), **BAD})
    strict = config(source, max_pixels=1000, max_bad_fraction=0.2)
    with pytest.raises(UserError, match=r"6 of 20 .*30\.0%.*allows 20\.0%") as error:
        shard(strict, tmp_path)
    (directory,) = (tmp_path / "shards").iterdir()
    assert str(directory / "quarantine.json") in str(error.value)
    assert json.loads((directory / "quarantine.json").read_bytes())["quarantined"] == 6
    assert not (directory / "index.json").exists()
    lenient = config(source, max_pixels=1000, max_bad_fraction=0.5)
    assert shard(lenient, tmp_path) == directory
    with pytest.raises(UserError, match="6 of 20"):  # also when the shards are there already
        shard(strict, tmp_path)


def test_shards_whose_files_are_all_bad(tmp_path: Path) -> None:
    files = class_files(9)
    plan = plan_shards(config(write_zip(tmp_path / "a.zip", files)), None, tmp_path)
    for entry in plan.parts["A"][3:6]:
        files[entry.file.path] = b"bad"
    source = config(write_zip(tmp_path / "b.zip", files), shard_images=3, max_bad_fraction=0.5)
    directory = shard(source, tmp_path)
    assert [info.name[6:12] for info in Index.load(directory).shards] == ["000000", "000002"]
    assert not (directory / "shard-000001.tar").exists()
    assert shard(source, tmp_path) == directory

    bad = write_zip(tmp_path / "c.zip", {f"a/{n}.png": b"bad" for n in range(4)})
    with pytest.raises(UserError, match=r"4 of 4 files are no usable images"):
        shard(config(bad, max_bad_fraction=1.0), tmp_path)


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (["a/1.png", "b/1.png"], ("a", "b")),
        (["top/b/1.png", "top/a/1.png"], ("a", "b")),
        (["top/train/a/1.png", "top/test/a/1.png", "top/test/b/2.png"], ("a", "b")),
        (["faces/1.png", "faces/2.png"], ("faces",)),
        (["top/a/1.png", "top/b/1.png", "top/notes/x.txt", "top/readme.md"], ("a", "b")),
        (["ä ö/1.png", "b.c/1.png"], ("b.c", "ä ö")),
    ],
)
def test_class_of_an_image_is_its_folder(
    tmp_path: Path, names: list[str], classes: tuple[str, ...]
) -> None:
    files = {name: encoded(noise(number)) for number, name in enumerate(names)}
    plan = plan_shards(config(write_zip(tmp_path / "a.zip", files)), None, tmp_path)
    assert plan.classes == classes
    for entry in plan.parts["A"]:
        assert entry.file.path.split("/")[-2] == classes[entry.label]


def test_only_classes(tmp_path: Path) -> None:
    source = write_zip(tmp_path / "a.zip", class_files(30))
    plan = plan_shards(config(source, only_classes=("c", "a")), None, tmp_path)
    assert plan.classes == ("a", "c") and plan.images == 20
    unlabelled = config(source, only_classes=("b",), classes="none")
    plan = plan_shards(unlabelled, None, tmp_path)
    assert plan.classes == () and {entry.file.path[4] for entry in plan.parts["A"]} == {"b"}
    with pytest.raises(UserError, match=r"only_classes names z, which .* has not; it has a, b, c"):
        plan_shards(config(source, only_classes=("a", "z")), None, tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"1.png": b"x", "2.png": b"y"}, "no class folders; use 'none'"),
        ({"readme.txt": b"x"}, "holds no images"),
        ({}, "holds no images"),
    ],
)
def test_sources_without_classes_or_images(
    tmp_path: Path, files: dict[str, bytes], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        plan_shards(config(write_zip(tmp_path / "a.zip", files)), None, tmp_path)


def test_plan_writes_nothing_and_knows_what_to_expect(tmp_path: Path) -> None:
    source = config(write_zip(tmp_path / "a.zip", class_files(45)))
    plan = plan_shards(source, None, tmp_path / "workspace")
    assert (plan.images, plan.shards, plan.done) == (45, 5, ())
    assert not (tmp_path / "workspace").exists()
    index = Index.load(shard(source, tmp_path / "workspace"))
    actual = sum(info.bytes for info in index.shards)
    assert 0.5 * actual < expected_bytes(plan) <= actual
    assert plan_shards(source, None, tmp_path / "workspace").done == (0, 1, 2, 3, 4)


def test_a_task_is_as_large_as_its_shard(tmp_path: Path) -> None:
    """Another process is sent a task a shard: with all images in each, a thousand shards would take
    a thousand times as long to send as the plan."""
    few, many = (
        plan_shards(config(write_zip(tmp_path / f"{n}.zip", class_files(n))), None, tmp_path)
        for n in (20, 200)
    )
    sizes = [len(pickle.dumps(task)) for plan in (few, many) for task in plan.tasks()]
    assert len(sizes) == few.shards + many.shards == 22
    assert max(sizes) < 1.1 * min(sizes)
    entries = [entry for task in many.tasks() for entry in task.entries]
    assert entries == list(many.parts["A"])
    assert [task.number for task in many.tasks()] == list(range(20))


def test_a_source_that_changed_since_the_plan_is_refused(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "f", class_files(12))
    plan = plan_shards(config(root), None, tmp_path)
    (root / plan.parts["A"][0].file.path).write_bytes(encoded(noise(500)))
    with pytest.raises(UserError, match="changed while it was read"):
        write_shard(next(plan.tasks()))
    assert not list(plan.directory.glob("*"))


def test_original_bytes_are_stored(tmp_path: Path) -> None:
    files = {"a/1.jpg": encoded(noise(1), "JPEG"), "a/2.webp": encoded(noise(2), "WEBP")}
    directory = shard(config(write_zip(tmp_path / "a.zip", files)), tmp_path)
    with tarfile.open(directory / "shard-000000.tar") as tar:
        for member in tar:
            if not member.name.endswith("cls"):
                original = next(n for n in files if n.endswith(member.name.split(".")[-1]))
                content = tar.extractfile(member)
                assert isinstance(content, io.BufferedReader) and content.read() == files[original]
