"""Batches: the same whoever loads them and wherever they start, and loud about damaged shards."""

from __future__ import annotations

import multiprocessing
import shutil
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gan_train.data import reader
from gan_train.data.index import DamagedShard, Index
from gan_train.data.loader import LoadedBatch, Loader, downsample, read_images
from gan_train.data.reader import open_shard, read_range
from gan_train.data.sharding import shard
from gan_train.data.tars import in_tar
from gan_train.errors import UserError
from tests.unit.data.pictures import (
    config,
    encoded,
    noise,
    stored,
    without_checksums,
    write_zip,
)

SAMPLES = 61  # a prime: divides nothing

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Index, Path]:
    """61 images of 8x8 in three classes, in 7 shards."""
    return stored(tmp_path_factory.mktemp("data"), SAMPLES, shard_images=9)


def loader(data: tuple[Index, Path], **changes: Any) -> Loader:
    settings = {"seed": 5, "lanes": 12, "block": 4, "grain": 2, **changes}
    return Loader(*data, **settings)


def take(batches: Iterator[LoadedBatch], count: int) -> list[LoadedBatch]:
    return list(islice(batches, count))


def joined(batches: list[LoadedBatch]) -> tuple[Tensor, Tensor, Tensor]:
    """Images, labels and positions of all batches, by position."""
    positions = torch.cat([batch.positions for batch in batches])
    order = positions.argsort()
    labels = torch.cat([batch.labels for batch in batches if batch.labels is not None])
    return torch.cat([b.images for b in batches])[order], labels[order], positions[order]


def numbers(data: tuple[Index, Path], images: Tensor) -> list[int]:
    """The stored number of every image, known by its pixels."""
    known, _ = read_images(*data, 0, SAMPLES)
    table = {image.numpy().tobytes(): number for number, image in enumerate(known)}
    assert len(table) == SAMPLES
    return [table[image.numpy().tobytes()] for image in images]


@pytest.fixture(scope="module")
def reference(data: tuple[Index, Path]) -> tuple[Tensor, Tensor, Tensor]:
    """The first 240 images of training, almost four epochs."""
    return joined(take(loader(data).batches(0, 24, 8), 10))


def test_each_image_once_an_epoch(
    data: tuple[Index, Path], reference: tuple[Tensor, Tensor, Tensor]
) -> None:
    images, labels, positions = reference
    assert images.dtype == torch.uint8 and images.shape == (240, 3, 8, 8)
    assert labels.dtype == positions.dtype == torch.int64
    assert positions.tolist() == list(range(240))
    shown = numbers(data, images)
    for epoch in range(3):
        seen = shown[epoch * SAMPLES : (epoch + 1) * SAMPLES]
        assert sorted(seen) == list(range(SAMPLES))
    assert shown[:SAMPLES] != shown[SAMPLES : 2 * SAMPLES]


def test_labels_belong_to_the_images(
    data: tuple[Index, Path], reference: tuple[Tensor, Tensor, Tensor]
) -> None:
    _, known = read_images(*data, 0, SAMPLES)
    assert known is not None and len(set(known.tolist())) == 3
    assert [int(known[n]) for n in numbers(data, reference[0])] == reference[1].tolist()


@pytest.mark.parametrize("cache_mb", [0, 512])
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_the_global_order_is_the_same_on_any_number_of_ranks(
    data: tuple[Index, Path],
    reference: tuple[Tensor, Tensor, Tensor],
    world: int,
    cache_mb: int,
) -> None:
    batches = []
    for rank in range(world):
        one = loader(data, rank=rank, world_size=world, cache_mb=cache_mb)
        mine = take(one.batches(0, 24, 8), 10)
        assert all(len(batch.positions) == 24 // world for batch in mine)
        assert all((batch.positions.diff() > 0).all() for batch in mine)
        for batch in mine:  # grains stay together
            assert (batch.positions[0::2] + 1 == batch.positions[1::2]).all()
        batches += mine
    assert all(map(torch.equal, joined(batches), reference))


@pytest.mark.parametrize("cache_mb", [0, 512])
@pytest.mark.parametrize("workers", [1, 2, 3, 40])  # 40: more than there are lanes
def test_loader_workers_do_not_change_the_order(
    data: tuple[Index, Path],
    reference: tuple[Tensor, Tensor, Tensor],
    workers: int,
    cache_mb: int,
) -> None:
    rank = {"rank": 1, "world_size": 3} if workers == 40 else {}  # 4 lanes are this rank's
    other = loader(data, workers=workers, cache_mb=cache_mb, **rank)
    mine = joined(take(other.batches(24, 24, 8), 9))
    expected = loader(data, **rank)
    assert all(map(torch.equal, mine, joined(take(expected.batches(24, 24, 8), 9))))
    if not rank:
        assert torch.equal(mine[0], reference[0][24:])


@pytest.mark.parametrize("cache_mb", [0, 512])
@pytest.mark.parametrize("start", [2, 60, 122, 190])
def test_a_restart_goes_on_where_it_was(
    data: tuple[Index, Path],
    reference: tuple[Tensor, Tensor, Tensor],
    start: int,
    cache_mb: int,
) -> None:
    batches = take(loader(data, cache_mb=cache_mb).batches(start, 10, 8), 5)
    expected = [tensor[start : start + 50] for tensor in reference]
    assert all(map(torch.equal, joined(batches), expected))


def test_large_images_are_read_one_by_one_and_not_held(
    data: tuple[Index, Path],
    reference: tuple[Tensor, Tensor, Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """48 blocks of 64 images of a megabyte would take three gigabytes in every loader."""
    counts: list[int] = []
    usual = reader.read_range

    def counting(*arguments: Any) -> list[reader.Encoded]:
        counts.append(arguments[-1])
        return usual(*arguments)

    monkeypatch.setattr(reader, "read_range", counting)
    first = joined(take(loader(data, cache_mb=0).batches(0, 24, 8), 9))
    assert max(counts) == 4  # whole blocks
    counts.clear()
    monkeypatch.setattr(reader, "LARGE_BLOCK", 1)
    assert all(map(torch.equal, joined(take(loader(data, cache_mb=0).batches(0, 24, 8), 9)), first))
    assert set(counts) == {1} and 9 * 24 <= len(counts) <= 11 * 24  # a thread reads ahead
    assert torch.equal(first[0], reference[0][: 9 * 24])


def test_fewer_shards_than_ranks(tmp_path: Path) -> None:
    few = stored(tmp_path, 20, shard_images=20)
    assert len(few[0].shards) == 1
    batches: list[LoadedBatch] = []
    for rank in range(4):
        batches += take(loader(few, rank=rank, world_size=4).batches(0, 8, 8), 5)
    alone = take(loader(few).batches(0, 8, 8), 5)
    assert all(map(torch.equal, joined(batches), joined(alone)))


def test_more_lanes_and_larger_batches_than_images(tmp_path: Path) -> None:
    few = stored(tmp_path, 5)
    for workers in (0, 2):
        batches = take(loader(few, lanes=48, workers=workers, cache_mb=0).batches(0, 64, 8), 5)
        images = joined(batches)[0]
        seen = Counter(image.numpy().tobytes() for image in images)
        assert len(seen) == 5 and set(seen.values()) == {64}


@pytest.mark.parametrize("workers", [0, 2])
def test_resolution_and_batch_change_on_the_way(
    data: tuple[Index, Path], reference: tuple[Tensor, Tensor, Tensor], workers: int
) -> None:
    images = reference[0]
    for cache_mb in (0, 512):
        one = loader(data, cache_mb=cache_mb, workers=workers)
        small = joined(take(one.batches(0, 12, 2), 3))[0]
        sums = images[:36].reshape(36, 3, 2, 4, 2, 4).long().sum((3, 5))
        assert torch.equal(small.long(), (sums + 8) // 16)  # mean of 4x4, halves up
        large = joined(take(one.batches(36, 6, 8), 30))[0]
        assert torch.equal(large, images[36:216])


@pytest.mark.parametrize("workers", [0, 2])
def test_mirror_depends_on_the_position_alone(
    data: tuple[Index, Path], reference: tuple[Tensor, Tensor, Tensor], workers: int
) -> None:
    batches = take(loader(data, mirror=True, workers=workers).batches(0, 12, 8), 20)
    images, _, _ = joined(batches)
    flipped = torch.tensor(
        [torch.equal(a, b.flip(-1)) for a, b in zip(images, reference[0], strict=True)]
    )
    assert 0.35 < flipped.float().mean() < 0.65
    assert torch.equal(images[~flipped], reference[0][~flipped])
    if not workers:
        again = take(loader(data, mirror=True, rank=1, world_size=2).batches(100, 20, 8), 1)[0]
        assert torch.equal(again.images, images[again.positions])


def test_the_cache_spares_reading(tmp_path: Path) -> None:
    whole = stored(tmp_path, 40)
    for workers in (0, 2):
        one = loader(whole, workers=workers)
        batches = one.batches(0, 8, 8)
        first = take(batches, 10)  # two epochs
        hidden = whole[1].rename(tmp_path / "hidden")
        later = take(one.batches(0, 8, 4), 10) + take(batches, 3)
        hidden.rename(whole[1])
        assert torch.equal(joined(later[:10])[0], downsample(joined(first)[0], 4))
    expected = joined(take(loader(whole, cache_mb=0).batches(80, 8, 8), 3))
    assert all(map(torch.equal, joined(later[10:]), expected))


def test_unlabelled_data_has_no_labels(tmp_path: Path) -> None:
    plain = stored(tmp_path, 12, classes="none")
    assert take(loader(plain).batches(0, 4, 8), 1)[0].labels is None
    assert read_images(*plain, 0, 3)[1] is None


def test_grey_and_jpeg(tmp_path: Path) -> None:
    files = {f"a/{n}.jpg": encoded(noise(n, mode="L"), "JPEG", quality=95) for n in range(8)}
    directory = shard(config(write_zip(tmp_path / "a.zip", files), colour="grey"), tmp_path)
    grey = Index.load(directory), directory
    batch = take(loader(grey).batches(0, 8, 8), 1)[0]
    assert batch.images.shape == (8, 1, 8, 8)
    sources = {int(noise(n, mode="L").getpixel((0, 0))) for n in range(8)}  # type: ignore[arg-type]
    assert all(min(abs(int(i[0, 0, 0]) - s) for s in sources) < 30 for i in batch.images)


def test_read_images_reads_any_span_in_stored_order(data: tuple[Index, Path]) -> None:
    whole, labels = read_images(*data, 0, SAMPLES)
    assert whole.shape == (SAMPLES, 3, 8, 8) and labels is not None
    for start, count in ((0, 0), (0, 1), (7, 30), (SAMPLES - 1, 1), (9, 9)):
        part, of_part = read_images(*data, start, count)
        assert torch.equal(part, whole[start : start + count]) and of_part is not None
        assert torch.equal(of_part, labels[start : start + count])
    with pytest.raises(UserError, match="the data set has 61"):
        read_images(*data, 60, 2)


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({"world_size": 5}, (0, 20, 8), r"5 workers .* must divide the lanes: 1, 2, 3, 4, 6, 12"),
        ({}, (0, 7, 8), "batch of 7 .* a multiple of 2, such as 6 or 8"),
        ({"world_size": 4}, (0, 12, 8), "4 workers .* multiple of 8, such as 8 or 16"),
        ({"world_size": 4}, (4, 16, 8), "start at image 4: .* multiple of 8"),
        ({}, (0, 8, 16), "downsampled to 16"),
        ({}, (0, 8, 3), "must divide the stored"),
    ],
)
def test_what_does_not_fit_is_refused_at_once(
    data: tuple[Index, Path],
    changes: dict[str, int],
    arguments: tuple[int, int, int],
    message: str,
) -> None:
    with pytest.raises(UserError, match=message):
        loader(data, **changes).batches(*arguments)


def damaged(data: tuple[Index, Path], folder: Path, kind: str) -> tuple[Index, Path]:
    """A copy whose shard 3 is broken in a way that WebDataset alone reads without an error."""
    index, directory = data
    copy = Path(shutil.copytree(directory, folder / "copy"))
    tar = copy / index.shards[3].name
    whole, (fourth, fifth, sixth) = tar.read_bytes(), index.shards[3].offsets[4:7]
    labels = in_tar(1)  # before the images of their samples
    interleaved = b"".join(
        whole[begin:end]
        for begin, end in (
            (fourth, fourth + labels),
            (fifth, fifth + labels),
            (fourth + labels, fifth),
            (fifth + labels, sixth),
        )
    )
    tar.write_bytes(
        {
            "cut at a member": whole[:fourth],
            "cut within a member": whole[: fourth + 1400],
            "zeroed": whole[:fourth] + bytes(1024) + whole[fourth + 1024 :],
            "header": whole[:fourth] + b"1" + whole[fourth + 1 :],
            "pixels": whole.replace(b"IDAT", b"IDAU", 1),
            "label": whole[: fourth + 512] + b"7" + whole[fourth + 513 :],
            "interleaved keys": whole[:fourth] + interleaved + whole[sixth:],
            "swapped samples": whole[:fourth]
            + whole[fifth:sixth]
            + whole[fourth:fifth]
            + whole[sixth:],
            "swapped shards": (copy / index.shards[2].name).read_bytes(),
        }[kind]
    )
    return index, copy


DAMAGE = (
    *("cut at a member", "cut within a member", "zeroed", "header", "pixels", "label"),
    *("interleaved keys", "swapped samples", "swapped shards"),
)


@pytest.mark.fault(
    "a shard cut at a member or within one, zeroed in the middle, with other bytes in a header, "
    "label or image, with keys interleaved, with samples or shards swapped",
    "found as it is read, also in a set from before there were checksums: the error names shard "
    "and remedy",
)
@pytest.mark.parametrize("checksums", [True, False])
@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_shard_is_an_error_that_names_it(
    data: tuple[Index, Path], tmp_path: Path, kind: str, checksums: bool
) -> None:
    index, copy = damaged(data, tmp_path, kind)
    broken = index if checksums else without_checksums(index), copy
    with pytest.raises(DamagedShard, match=r"shard-000003\.tar.* is damaged.*gan-train shard"):
        take(loader(broken, cache_mb=0).batches(0, 12, 8), 6)
    with pytest.raises(DamagedShard, match=r"shard-000003\.tar.* is damaged"):
        read_images(*broken, 0, SAMPLES)


def test_damage_in_a_worker_process_is_the_same_error(
    data: tuple[Index, Path], tmp_path: Path
) -> None:
    broken = damaged(data, tmp_path, "zeroed")
    with pytest.raises(DamagedShard, match=r"^[^\n]*shard-000003\.tar is damaged[^\n]*$"):
        take(loader(broken, workers=2).batches(0, 12, 8), 6)
    (broken[1] / "shard-000003.tar").unlink()
    with pytest.raises(DamagedShard, match=r"shard-000003\.tar is missing"):
        take(loader(broken).batches(0, 12, 8), 6)


@pytest.mark.slow
def test_a_killed_worker_process_is_an_error_and_no_hang(data: tuple[Index, Path]) -> None:
    batches = loader(data, workers=2, cache_mb=0).batches(0, 12, 8)
    take(batches, 1)
    victim = multiprocessing.active_children()[0]
    victim.kill()
    with pytest.raises(RuntimeError, match="worker"):
        take(batches, 1000)


@pytest.mark.parametrize("classes", ["folder", "none"])
def test_tars_with_other_headers_are_read_by_webdataset(tmp_path: Path, classes: str) -> None:
    """As a tool that copies shards may write them: the samples are what counts."""
    index, directory = stored(tmp_path, 9, classes=classes)
    expected = read_range(index, directory, 0, 0, 9)
    tar = directory / index.shards[0].name
    whole = bytearray(tar.read_bytes())
    for offset in index.shards[0].offsets:
        header = whole[offset : offset + 512].replace(b"gan-train", b"other\0\0\0\0")
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        whole[offset : offset + 512] = header
    assert whole != tar.read_bytes()
    tar.write_bytes(whole)
    before_checksums = without_checksums(index)
    assert read_range(before_checksums, directory, 0, 0, 9) == expected
    assert read_range(before_checksums, directory, 0, 3, 2) == expected[3:5]
    with pytest.raises(DamagedShard, match="sample 000000-000000 has other bytes"):
        read_range(index, directory, 0, 0, 9)


def test_foreign_members_are_never_looked_at(data: tuple[Index, Path], tmp_path: Path) -> None:
    """A member that WebDataset's `.decode()` would unpickle is dropped by the allow-list."""
    index, directory = data
    copy = Path(shutil.copytree(directory, tmp_path / "copy"))
    tar = copy / index.shards[0].name
    whole = tar.read_bytes()
    assert b"000000-000000.cls" in whole
    renamed = bytearray(whole)
    header = renamed[:512].replace(b"000000-000000.cls", b"000000-000000.pyd")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    renamed[:512] = header
    tar.write_bytes(renamed)
    with pytest.raises(DamagedShard, match="has not the members"):
        read_range(without_checksums(index), copy, 0, 0, 1)


@pytest.mark.parametrize(
    "url", ["pipe:touch x", "http://host/x.tar", "s3://b/x.tar", "file://host/x", "gs:x"]
)
def test_only_files_are_opened(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="allowed are plain paths and file://"):
        open_shard(url)
    assert list(tmp_path.iterdir()) == []


def test_paths_and_file_urls_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "a b:c%.tar"
    (tmp_path / name).write_bytes(b"content")
    monkeypatch.chdir(tmp_path)
    for url in (str(tmp_path / name), (tmp_path / name).as_uri(), f"./{name}"):
        with open_shard(url) as file:
            assert file.read() == b"content"


def test_shrinking_is_exact_at_the_largest_factor() -> None:
    image = torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (1, 1, 1024, 1024), np.uint8)
    )
    assert downsample(image, 1024) is image
    sums = image.reshape(4, 256, 4, 256).long().sum((1, 3))
    assert torch.equal(downsample(image, 4)[0, 0].long(), (sums + 2**15) // 2**16)
    assert downsample(torch.full((1, 1, 8, 8), 255, dtype=torch.uint8), 1).item() == 255
    assert downsample(torch.zeros(0, 1, 8, 8, dtype=torch.uint8), 4).shape == (0, 1, 4, 4)


def test_loading_leaves_the_global_generator_alone(data: tuple[Index, Path]) -> None:
    before = torch.get_rng_state()
    for workers in (0, 1):
        take(loader(data, workers=workers).batches(0, 12, 8), 2)
    assert torch.equal(torch.get_rng_state(), before)
