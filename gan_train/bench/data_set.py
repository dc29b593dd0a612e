"""Makes the synthetic data set of `gan-train bench-data`, as shards and as a plain folder.

A few hundred distinct pictures stand for all: under a key of its own each in the shards, as hard
links in the folder. So a data set of any size is made quickly; what reads it does not know.
"""

from __future__ import annotations

import hashlib
import io
import os
from array import array
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from gan_train.data.index import Index, ShardInfo, content_hash, sample_key, shard_name
from gan_train.data.tars import in_tar, write_end, write_member

DISTINCT, CLASSES = 500, 10
_PER_FOLDER = 1000


@dataclass(frozen=True)
class Pictures:
    """Encoded pictures, and their class: picture n of a data set is number n modulo `DISTINCT`."""

    side: int
    files: tuple[bytes, ...]

    def file(self, number: int) -> bytes:
        """The PNG of a picture."""
        return self.files[number % DISTINCT]


def label_of(number: int) -> int:
    """The class of a picture."""
    return number % DISTINCT % CLASSES


def draw(side: int) -> Pictures:
    """Smooth colour pictures with a little noise, which compress about as well as photographs."""
    down, right = np.mgrid[:side, :side] / side  # [R, R]
    files = []
    for number in range(DISTINCT):
        random = np.random.default_rng(number)
        waves = [
            np.sin(2 * np.pi * (a * down + b * right) + c)
            for a, b, c in random.uniform(0, 3, (3, 3))
        ]
        noise = random.normal(0, 6, (side, side, 3))
        pixels = 128 + 90 * np.stack(waves, axis=-1) + noise  # [R, R, 3]
        file = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "PNG")
        files.append(file.getvalue())
    return Pictures(side, tuple(files))


def write_shards(pictures: Pictures, folder: Path, images: int, shards: int) -> Index:
    """Write a data set of shards into the folder, as the project's own sharding does, and return
    its index."""
    folder.mkdir(parents=True)
    cuts = [images * number // shards for number in range(shards + 1)]
    infos = [
        _write_shard(pictures, folder, number, cuts[number], cuts[number + 1])
        for number in range(shards)
    ]
    counts = np.bincount([label_of(number) for number in range(DISTINCT)], minlength=CLASSES)
    counts = images // DISTINCT * counts + np.bincount(
        [label_of(number) for number in range(images % DISTINCT)], minlength=CLASSES
    )
    transform = {"resolution": pictures.side}
    index = Index(
        content_hash=content_hash(infos, transform),
        samples=images,
        resolution=pictures.side,
        channels=3,
        classes=tuple(str(label) for label in range(CLASSES)),
        class_counts=tuple(counts.tolist()),
        transform=transform,
        quarantined=0,
        shards=tuple(infos),
    )
    index.save(folder)
    return index


def _write_shard(pictures: Pictures, folder: Path, number: int, begin: int, end: int) -> ShardInfo:
    tar, offsets, checksums = io.BytesIO(), [], array("I")
    for place in range(end - begin):
        key, label = sample_key(number, place), str(label_of(begin + place)).encode()
        offsets.append(tar.tell())
        crc = write_member(tar, f"{key}.cls", label)
        checksums.append(write_member(tar, f"{key}.png", pictures.file(begin + place), crc))
    checksums[-1] = write_end(tar, checksums[-1])
    data = tar.getvalue()
    assert offsets[-1] + in_tar(1) + in_tar(len(pictures.file(end - 1))) < len(data)
    (folder / shard_name(number)).write_bytes(data)
    return ShardInfo(
        name=shard_name(number),
        samples=end - begin,
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        offsets=tuple(offsets),
        checksums=checksums,
    )


def write_folder(pictures: Pictures, folder: Path, images: int) -> None:
    """Write the same data set as one file a picture, in class folders of subfolders."""
    originals = folder / ".originals"  # hidden, and so no part of the data set
    originals.mkdir(parents=True)
    for number in range(min(images, DISTINCT)):
        (originals / f"{number}.png").write_bytes(pictures.file(number))
    made: set[str] = set()
    for number in range(images):
        inside = f"{folder}/{number // _PER_FOLDER:06d}/{label_of(number)}"
        if inside not in made:
            Path(inside).mkdir(parents=True)
            made.add(inside)
        os.link(originals / f"{number % DISTINCT}.png", f"{inside}/{number:09d}.png")
