"""Data sets of several parts: two sources, pairs by name, and images that are held out."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from gan_train.adversary import Adversary, Domain
from gan_train.config import DataConfig
from gan_train.data.feed import Feed, check_data
from gan_train.data.index import Index
from gan_train.data.loader import read_images
from gan_train.data.planning import plan_shards
from gan_train.data.sharding import shard
from gan_train.errors import UserError
from gan_train.images.resize import bicubic_downsample


def picture(value: int) -> bytes:
    """One 8x8 grey picture, all of one value."""
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def source(path: Path, values: dict[str, int]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in values.items():
            archive.writestr(f"top/{name}.png", picture(value))
    return path


@pytest.fixture
def two(tmp_path: Path) -> dict[str, Any]:
    """Source A has 0 to 39, source B 100 to 139 under the same names, and ten more of its own."""
    a = source(tmp_path / "a.zip", {f"x/{n}": n for n in range(40)})
    b = source(tmp_path / "b.zip", {f"x/{n}": 100 + n for n in range(40)} | {
        f"only/{n}": 200 + n for n in range(10)
    })  # fmt: skip
    return {"source": str(a), "second": {"source": str(b)}, "resolution": 8, "colour": "grey"}


def parts(data: dict[str, Any], workspace: Path, **changes: Any) -> dict[str, list[int]]:
    """The values of the images in every part, in stored order."""
    config = DataConfig(**data, **changes, shard_images=7, lanes=4)
    directory = shard(config, workspace)
    index = Index.load(directory)
    index.verify(directory)
    found = {}
    for name in ("A", "B", "A_held_out", "B_held_out"):
        part = index.part(name)
        if part is not None:
            pixels = read_images(part, directory, 0, part.samples)[0]
            found[name] = pixels[:, 0, 0, 0].tolist()
    assert sum(map(len, found.values())) == index.samples
    return found


def test_two_sources(two: dict[str, Any], tmp_path: Path) -> None:
    found = parts(two, tmp_path, held_out=0.1)
    assert [len(found[name]) for name in ("A", "A_held_out", "B", "B_held_out")] == [36, 4, 45, 5]
    assert sorted(found["A"] + found["A_held_out"]) == list(range(40))
    assert min(found["B"] + found["B_held_out"]) == 100
    assert found["A"] != sorted(found["A"])


def test_pairs_are_held_out_together_and_never_trained_on(
    two: dict[str, Any], tmp_path: Path
) -> None:
    two["second"]["pairs"] = "names"
    found = parts(two, tmp_path, held_out=0.2)
    assert len(found["A_held_out"]) == 8
    assert [b - a for a, b in zip(found["A_held_out"], found["B_held_out"], strict=True)] == [
        100
    ] * 8
    trained_a = set(found["A"])
    trained_b = {value - 100 for value in found["B"] if value < 200}
    assert not trained_a & trained_b
    assert not (trained_a | trained_b) & set(found["A_held_out"])
    assert len(trained_a) == len(trained_b) == 16
    assert {value for value in found["B"] if value >= 200} == set(range(200, 210))


def test_pairs_to_train_on_stay_together(two: dict[str, Any], tmp_path: Path) -> None:
    two["second"]["pairs"] = "training"
    config = DataConfig(**two, lanes=4, block=4)
    directory = shard(config, tmp_path)
    feed = Feed(config, 5, Index.load(directory), directory, Pairs(), 0, 1)
    stream = feed.batches(32, 8, 8)
    for _, loaded in zip(range(12), stream, strict=False):
        shown = loaded.images[:, 0, 0, 0].int()
        assert torch.equal(loaded.beside["other"][:, 0, 0, 0].int(), shown + 100)
    stream.close()


def test_class_folders_of_one_source(tmp_path: Path) -> None:
    path = source(
        tmp_path / "c.zip",
        {f"horse/{n}": n for n in range(20)} | {f"zebra/{n}": 100 + n for n in range(30)},
    )
    data = {"source": str(path), "resolution": 8, "colour": "grey", "only_classes": ["horse"]}
    found = parts(data, tmp_path, second={"only_classes": ["zebra"]})
    assert sorted(found["A"]) == list(range(20))
    assert sorted(found["B"]) == list(range(100, 130))


def test_other_settings_give_other_data(two: dict[str, Any], tmp_path: Path) -> None:
    def named(**changes: Any) -> str:
        return plan_shards(DataConfig(**{**two, **changes}), None, tmp_path).fingerprint

    names = {
        named(),
        named(held_out=0.1),
        named(held_out=0.2),
        named(second=two["second"] | {"pairs": "names"}),
        named(second=None),
    }
    assert len(names) == 5


def test_a_damaged_partner_is_named(two: dict[str, Any], tmp_path: Path) -> None:
    with zipfile.ZipFile(two["second"]["source"], "a") as archive:
        archive.writestr("top/x/extra.png", b"no picture")
    with zipfile.ZipFile(two["source"], "a") as archive:
        archive.writestr("top/x/extra.png", picture(77))
    two["second"]["pairs"] = "training"
    with pytest.raises(UserError, match=r"extra\.png \(not an image\) has a partner"):
        parts(two, tmp_path, max_bad_fraction=0.5)


def test_sources_without_common_names(tmp_path: Path) -> None:
    a = source(tmp_path / "a.zip", {f"x/{n}": n for n in range(4)})
    b = source(tmp_path / "b.zip", {f"y/z{n}": n for n in range(4)})
    second = {"source": str(b), "pairs": "names"}
    config = DataConfig(source=str(a), second=second, resolution=8)
    with pytest.raises(UserError, match="no file name in common"):
        plan_shards(config, None, tmp_path)


class Pairs(Adversary):
    paired = False

    def translate(self, image: Tensor, to: Domain) -> Tensor:
        return image


class Partners(Pairs):
    paired = True


class Larger(Adversary):
    scale, reach = 2, 0

    def upscale(self, low: Tensor) -> Tensor:
        return low


class Latents(Adversary):
    z_dim, conditional = 1, False

    def sample(self, z: Tensor, label: Tensor | None, truncation: float = 1.0) -> Tensor:
        return z


def test_domains_have_orders_of_their_own(two: dict[str, Any], tmp_path: Path) -> None:
    """Each image once an epoch of its own, whatever the number of workers."""
    config = DataConfig(**two, lanes=4, block=4)
    directory = shard(config, tmp_path)
    index = Index.load(directory)

    def shown(rank: int, world: int) -> list[tuple[list[int], list[int]]]:
        stream = Feed(config, 5, index, directory, Pairs(), rank, world).batches(0, 10 * world, 8)
        batches = [loaded for _, loaded in zip(range(20 // world), stream, strict=False)]
        stream.close()
        return [
            (b.images[:, 0, 0, 0].tolist(), b.beside["other"][:, 0, 0, 0].tolist()) for b in batches
        ]

    alone = shown(0, 1)
    assert sorted([value for a, _ in alone[:4] for value in a]) == list(range(40))
    assert sorted([value for _, b in alone[:5] for value in b]) == [
        *range(100, 140),
        *range(200, 210),
    ]
    assert [b - 100 for b in alone[0][1]] != alone[0][0]
    first, second = shown(0, 2), shown(1, 2)
    for number in range(10):
        for side in (0, 1):
            both = alone[2 * number][side] + alone[2 * number + 1][side]
            assert sorted(first[number][side] + second[number][side]) == sorted(both)


def test_small_pictures_stand_beside_large_ones(two: dict[str, Any], tmp_path: Path) -> None:
    config = DataConfig(**(two | {"second": None}), held_out=0.1, lanes=4)
    directory = shard(config, tmp_path)
    stream = Feed(config, 5, Index.load(directory), directory, Larger(), 0, 1).batches(0, 8, 8)
    loaded = next(stream)
    stream.close()
    assert torch.equal(loaded.beside["low"], bicubic_downsample(loaded.images, 2))
    assert loaded.beside["low"].shape == (8, 1, 4, 4)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        (Pairs(), {"second": None}, "data.second is empty"),
        (Latents(), {}, "data.second is for families that translate"),
        (Latents(), {"second": None, "held_out": 0.1}, "data.held_out=0.1"),
        (Partners(), {}, "data.second.pairs is `none`, but a loss compares with the true partner"),
    ],
)
def test_a_family_gets_the_parts_that_it_can_use(
    two: dict[str, Any], family: Adversary, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        check_data(DataConfig(**{**two, **changes}), family)


def test_classes_and_parts_exclude_each_other(two: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"with data\.second or data\.held_out, allowed: none"):
        DataConfig(**two, classes="folder")
