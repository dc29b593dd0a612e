"""Small pictures and sources for the tests of the data code."""

from __future__ import annotations

import io
import zipfile
from array import array
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gan_train.config import DataConfig
from gan_train.data.index import Index
from gan_train.data.sharding import shard


def noise(number: int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Image.Image:
    """A picture of its own for every number."""
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], *channels), np.uint8)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def class_files(count: int, classes: str = "abc", size: int = 8) -> dict[str, bytes]:
    """`count` PNGs in class folders below a top folder."""
    return {
        f"top/{classes[n % len(classes)]}/{n:04d}.png": encoded(noise(n, (size, size)))
        for n in range(count)
    }


def write_folder(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def config(source: Path, **changes: Any) -> DataConfig:
    settings = {"resolution": 8, "shard_images": 10, "classes": "folder", **changes}
    return DataConfig(source=str(source), **settings)


def without_checksums(index: Index) -> Index:
    """The index as it was written before there were checksums."""
    shards = (shard.model_copy(update={"checksums": array("I")}) for shard in index.shards)
    return index.model_copy(update={"shards": tuple(shards)})


def stored(folder: Path, count: int, **changes: Any) -> tuple[Index, Path]:
    """Shards of `count` noise images, and their index."""
    source = write_zip(folder / "source.zip", class_files(count))
    directory = shard(config(source, **changes), folder / "workspace")
    return Index.load(directory), directory
