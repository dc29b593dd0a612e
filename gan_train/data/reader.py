"""Reads samples from shards on this machine. Those of a bucket come there by `shard_cache.py`.

A byte range of a tar whose headers are as sharding writes them is cut up at once (see `tars.py`);
any other is read as a WebDataset stream, which also tells what is damaged. The content of a tar is
never trusted. Members whose names have other endings than those in an allow-list are skipped.
WebDataset's `.decode()`, which unpickles, is not used, nor its `gopen`, which runs `pipe:`
commands; no other module opens shards for reading. Every sample's bytes are compared with its
checksum in the index. The keys must be the expected ones, so that a shard without checksums that is
cut off or zeroed raises an error, too, instead of giving fewer samples.
"""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

import numpy as np
from numpy.typing import NDArray
from webdataset.tariterators import group_by_keys, tar_file_expander

from gan_train.data.images import BadImage, decode
from gan_train.data.index import IMAGE_EXTENSIONS, DamagedShard, Index, ShardInfo, sample_key
from gan_train.data.order import Epoch, Ints, Order
from gan_train.data.shard_cache import Ahead, discard, fetch
from gan_train.data.tars import member_at
from gan_train.errors import UserError

_MEMBERS = (*IMAGE_EXTENSIONS, "cls")
_IMAGES = tuple(extension.encode() for extension in IMAGE_EXTENSIONS)
_LONGEST = max(map(len, _IMAGES))
_OPENINGS = 5
LARGE_BLOCK = 4 << 20
"""The most bytes of a block that is read at once. Every lane holds a block, half of it on average:
with 48 lanes, at most some 100 MB. An image of a larger block is large enough to be read alone."""


def open_shard(url: str) -> BinaryIO:
    """Open a shard at a plain path or a `file://` address.

    Raises UserError for any other scheme; in particular, `pipe:` never runs a command.
    """
    # a path that begins with a slash has no scheme, even if there are colons in it
    parts = None if url.startswith("/") else urlsplit(url)
    if parts is None or not parts.scheme:
        return Path(url).open("rb")
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return Path(unquote(parts.path)).open("rb")
    raise UserError(
        f"shard {url!r} cannot be opened: {parts.scheme}: is not allowed; "
        "allowed are plain paths and file:// on this machine"
    )


@dataclass(frozen=True)
class Encoded:
    """An image file, its label (0 for unlabelled data), and where it lies, for messages."""

    image: bytes
    label: int
    where: str


def read_range(
    index: Index, directory: Path | str, shard: int, first: int, count: int
) -> list[Encoded]:
    """The samples from `first` to `first + count - 1` of `index.shards[shard]`, in stored order.

    Raises `DamagedShard` unless exactly these samples are there, with the bytes that were written,
    each with one image and, for labelled data, a label. In a cache, a damaged shard is fetched once
    more before it is refused.
    """
    info = index.shards[shard]
    url = f"{directory}/{info.name}"
    data = _bytes(directory, info, first, count)
    damaged = info.damaged_sample(memoryview(data), first, count)
    if damaged is not None and discard(Path(directory), info):
        data = _bytes(directory, info, first, count)
        damaged = info.damaged_sample(memoryview(data), first, count)
    if damaged is not None:
        key = sample_key(info.number, damaged)
        raise DamagedShard(f"{url} is damaged: sample {key} has other bytes than were written")
    expected = [sample_key(info.number, number) for number in range(first, first + count)]
    usual = _cut(url, data, expected, len(index.classes))
    if usual is not None:
        return usual
    stream = [{"url": url, "stream": io.BytesIO(data)}]
    try:
        members = tar_file_expander(stream, select_files=lambda name: name.endswith(_MEMBERS))
        samples = list(group_by_keys(members))
    except (tarfile.TarError, ValueError, EOFError) as error:
        raise DamagedShard(f"{url} is damaged: {error}") from error
    if [sample["__key__"] for sample in samples] != expected:
        raise DamagedShard(
            f"{url} is damaged: samples {expected[0]} to {expected[-1]} should follow one another, "
            f"found are {len(samples)} samples"
        )
    return [_encoded(sample, len(index.classes)) for sample in samples]


def _bytes(directory: Path | str, info: ShardInfo, first: int, count: int) -> bytes:
    """The bytes of samples of a shard. In a cache, the shard is fetched if need be, and again if
    another process removes it before it is open."""
    url = f"{directory}/{info.name}"
    begin, end = info.byte_range(first, count)
    for _ in range(_OPENINGS):
        try:
            with open_shard(url) as file:
                file.seek(begin)
                return file.read(end - begin)
        except FileNotFoundError as error:
            if not fetch(Path(directory), info):
                raise DamagedShard(f"{url} is missing") from error
    raise DamagedShard(f"{url} is removed before it can be read: enlarge data.node_cache_gb")


def _cut(url: str, data: bytes, keys: list[str], classes: int) -> list[Encoded] | None:
    """The samples with these keys in the bytes of a tar; None unless every header is as sharding
    writes it, and nothing but zeros follows."""
    samples, at = [], 0
    for key in keys:
        begin, text = key.encode() + b".", b"0"
        if classes:
            label = member_at(data, at, begin + b"cls")
            if label is None:
                return None
            text, at = label
        extension = data[at + len(begin) : at + len(begin) + _LONGEST].rstrip(b"\0")
        image = member_at(data, at, begin + extension)
        if image is None or extension not in _IMAGES:
            return None
        content, at = image
        samples.append(_checked(f"{url}, sample {key}", content, text, classes))
    return None if data[at:].strip(b"\0") else samples


def _encoded(sample: dict[str, object], classes: int) -> Encoded:
    where = f"{sample['__url__']}, sample {sample['__key__']}"
    images = [sample[extension] for extension in IMAGE_EXTENSIONS if extension in sample]
    if len(images) != 1 or ("cls" in sample) != (classes > 0):
        raise DamagedShard(f"{where} is damaged: it has not the members it should have")
    image, text = images[0], sample.get("cls", b"0")
    assert isinstance(image, bytes) and isinstance(text, bytes)
    return _checked(where, image, text, classes)


def _checked(where: str, image: bytes, text: bytes, classes: int) -> Encoded:
    label = int(text) if text.isdigit() else -1
    if not 0 <= label < max(classes, 1):
        raise DamagedShard(f"{where} is damaged: {text!r} is not one of {classes} classes")
    return Encoded(image, label, where)


def decode_all(index: Index, samples: list[Encoded]) -> tuple[NDArray[np.uint8], Ints]:
    """Images uint8 [n, C, R, R] and labels int64 [n] of these samples. Raises `DamagedShard` for an
    image that cannot be decoded."""
    shape = (len(samples), index.channels, index.resolution, index.resolution)
    images = np.empty(shape, dtype=np.uint8)  # [n, C, R, R]
    for row, sample in enumerate(samples):
        try:
            images[row] = decode(sample.image, index.channels, index.resolution)
        except BadImage as error:
            raise DamagedShard(f"{sample.where} is damaged: {error}") from error
    return images, np.array([sample.label for sample in samples], dtype=np.int64)


class BlockReader:
    """Reads the samples at given positions of an `Order`, a block of a lane at a time.

    It holds one block of each lane as encoded bytes, because decoded blocks of large images would
    take ten times the memory. Of a block of more than `LARGE_BLOCK` bytes it holds nothing: each of
    its samples is read when its turn comes.
    """

    def __init__(self, index: Index, directory: Path | str, order: Order) -> None:
        self._index, self._directory, self._order = index, directory, order
        self._ahead = Ahead(index, Path(directory))
        self._longest = max(shard.samples for shard in index.shards)
        self._shard_begins = np.cumsum([0] + [shard.samples for shard in index.shards])
        # for each lane: the epoch and number of its block, the samples of the block that were not
        # used yet, by stored number, and the stored numbers in the order of training
        self._held: dict[int, tuple[tuple[int, int], dict[int, Encoded], list[int]]] = {}

    def read(self, positions: Ints) -> tuple[NDArray[np.uint8], Ints]:
        """Images uint8 [n, C, R, R] and labels int64 [n] at these positions, which must ascend, and
        lie after those of the last call. Raises `DamagedShard` as `read_range` and `decode_all` do.
        """
        order, samples = self._order, list[Encoded]()
        epochs = positions // order.samples
        for number in np.unique(epochs).tolist():
            epoch = order.epoch(number)
            located = epoch.locate(positions[epochs == number])
            self._look_ahead(epoch, *located[:2])
            for lane, block, turn in zip(*(each.tolist() for each in located), strict=True):
                if lane not in self._held or self._held[lane][0] != (number, block):
                    reading, turns = epoch.block(lane, block)
                    self._held[lane] = (number, block), self._load(reading), reading[turns].tolist()
                _, found, shuffled = self._held[lane]
                number_of = shuffled[turn]
                samples.append(found.pop(number_of) if found else self._one(number_of))
        return decode_all(self._index, samples)

    def _look_ahead(self, epoch: Epoch, lanes: Ints, blocks: Ints) -> None:
        """Have the shards fetched that these blocks of these lanes are in, all at once, and those
        that the lanes come to within the length of a shard."""
        if not self._ahead.fetches:
            return
        for distance in (0, 1, self._longest):
            for lane, block in set(zip(lanes.tolist(), blocks.tolist(), strict=True)):
                stored = epoch.later(lane, block, distance)
                if stored is not None:
                    self._ahead.want(self._shard_of(stored))

    def _shard_of(self, stored: int) -> int:
        return int(np.searchsorted(self._shard_begins, stored, side="right")) - 1

    def _load(self, stored: Ints) -> dict[int, Encoded]:
        """The samples with these stored numbers, by number; none if they take more than
        `LARGE_BLOCK` bytes. The numbers must follow one another in the stream."""
        shards = np.searchsorted(self._shard_begins, stored, side="right") - 1
        cuts = np.flatnonzero(np.diff(shards)) + 1
        runs = [
            (run, int(shard), int(run[0] - self._shard_begins[shard]))
            for run, shard in zip(np.split(stored, cuts), shards[np.append(0, cuts)], strict=True)
        ]
        sizes = (self._bytes_of(shard, first, len(run)) for run, shard, first in runs)
        if sum(sizes) > LARGE_BLOCK:
            return {}
        found: dict[int, Encoded] = {}
        for run, shard, first in runs:
            samples = read_range(self._index, self._directory, shard, first, len(run))
            found.update(zip(run.tolist(), samples, strict=True))
        return found

    def _bytes_of(self, shard: int, first: int, count: int) -> int:
        begin, end = self._index.shards[shard].byte_range(first, count)
        return end - begin

    def _one(self, stored: int) -> Encoded:
        """The sample with that stored number."""
        shard = self._shard_of(stored)
        first = stored - int(self._shard_begins[shard])
        (sample,) = read_range(self._index, self._directory, shard, first, 1)
        return sample
