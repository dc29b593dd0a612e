"""The ways to load and to convert a data set that `gan-train bench-data` compares.

Each loader gives endless batches of uint8 [n, 3, R, R] and labels int64 [n] in a shuffled order, as
a training would take them. The two that are not this project's are written as their documentation
has it.
"""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from webdataset.tariterators import group_by_keys, tar_file_expander

from gan_train.config import DataConfig
from gan_train.data.index import Index
from gan_train.data.loader import Loader
from gan_train.data.sharding import shard

BATCH = 64
Batches = Iterator[tuple[Tensor, Tensor | None]]


def _pixels(file: Any) -> Tensor:
    """The picture in a file, decoded by PIL, uint8 [3, R, R]."""
    with Image.open(file) as image:
        pixels = np.array(image.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def own(root: Path, workers: int = 0) -> Batches:
    """This project's loader, which decodes every image: nothing stays in memory."""
    shards = root / "shards"
    index = Index.load(shards)
    settings = DataConfig(source=str(root), resolution=index.resolution)
    loader = Loader(
        index,
        shards,
        seed=0,
        lanes=settings.lanes,
        block=settings.block,
        grain=4,
        workers=workers,
        cache_mb=0,
    )
    for batch in loader.batches(0, BATCH, index.resolution):
        yield batch.images, batch.labels


class _Folder(Dataset[tuple[Tensor, int]]):
    """A folder of class folders, listed when it is opened."""

    def __init__(self, root: Path) -> None:
        self._paths = [
            f"{folder}/{name}"
            for folder, _, names in os.walk(root)
            if not folder.endswith(".originals")
            for name in names
        ]

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        path = self._paths[number]
        return _pixels(path), int(path.split("/")[-2])


def folder(root: Path, workers: int = 0) -> Batches:
    """A plain folder, PIL, and PyTorch's DataLoader."""
    images = _Folder(root / "folder")
    while True:
        yield from DataLoader(images, BATCH, shuffle=True, num_workers=workers, drop_last=True)


def _open_shards(shards: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    # WebDataset's own stage leaves a shard open when a loader is dropped
    for named in shards:
        with Path(named["url"]).open("rb") as stream:
            yield {**named, "stream": stream}


def webdataset_loader(root: Path, workers: int = 0) -> Batches:
    """WebDataset's own loader on the same shards: shards in random order, a shuffle buffer of half
    as many images as this project's lanes hold at most, PIL. (Its `decode` would unpickle; `map`
    does not.)"""
    urls = [str(path) for path in sorted((root / "shards").glob("*.tar"))]
    samples = webdataset.DataPipeline(
        webdataset.SimpleShardList(urls),
        webdataset.shuffle(len(urls)),
        webdataset.split_by_worker,
        _open_shards,
        tar_file_expander,
        group_by_keys,
        webdataset.shuffle(1536),
        webdataset.map(lambda sample: (_pixels(io.BytesIO(sample["png"])), int(sample["cls"]))),
        webdataset.batched(BATCH, partial=False),
    )
    while True:
        for images, labels in webdataset.WebLoader(samples, batch_size=None, num_workers=workers):
            yield torch.as_tensor(images), torch.as_tensor(labels)


LOADERS: dict[str, Callable[[Path, int], Batches]] = {
    "gan-train": own,
    "folder, PIL": folder,
    "WebDataset": webdataset_loader,
}
"""The loaders by name, the project's own first."""


def convert(source: Path, target: Path, side: int, per_shard: int) -> int:
    """A straightforward converter: PIL opens and resizes, WebDataset's TarWriter encodes and
    writes. Returns the number of images."""
    paths = [
        Path(folder) / name
        for folder, _, names in os.walk(source)
        if not folder.endswith(".originals")
        for name in sorted(names)
    ]
    for number in itertools.count():
        mine = paths[number * per_shard : (number + 1) * per_shard]
        if not mine:
            return len(paths)
        with webdataset.TarWriter(str(target / f"{number:06d}.tar")) as writer:
            for place, path in enumerate(mine):
                with Image.open(path) as image:
                    small = image.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
                label = path.parent.name
                writer.write({"__key__": f"{number:06d}-{place:06d}", "png": small, "cls": label})
    raise AssertionError("the count does not end")


def shard_folder(source: Path, workspace: Path, side: int, per_shard: int) -> int:
    """The project's own sharding of the same folder, in this process: it lists the files with their
    checksums, finds damaged ones, and writes digests and an index. Returns the number of images."""
    config = DataConfig(
        source=str(source), resolution=side, classes="folder", shard_images=per_shard
    )
    return Index.load(shard(config, workspace)).samples
