"""The index of a stored data set: what every shard holds, and what the images are.

A WebDataset tar does not say how many samples it should have: a tar that was cut between two
members, or has zeroed blocks, reads without an error. So `index.json` beside the shards keeps
counts, sizes, digests and the place of every sample. A shard's digest tells whether it is whole
when it is verified; the checksums of its samples tell it again whenever they are read. Nothing here
decodes images.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sys
import zlib
from array import array
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    model_validator,
)

from gan_train.adversary import ImageShape
from gan_train.errors import UserError
from gan_train.files.atomic import write_aside
from gan_train.files.digests import VerifiedFiles

INDEX_NAME = "index.json"
IMAGE_EXTENSIONS = ("png", "jpg", "webp")
"""The endings that an image in a shard may have. Its label is a second member, `<key>.cls`."""

_REMEDY = "run `gan-train shard` with the same configuration: it rewrites what is damaged"
# a bit that flips on a disk changes no file's times, so that a shard counts as verified
_READ_ALL = _REMEDY.replace("shard`", "shard --verify`")


def sample_key(shard: int, number: int) -> str:
    """The key of a shard's `number`-th sample: ASCII and without dots, which WebDataset needs."""
    return f"{shard:06d}-{number:06d}"


def shard_name(shard: int) -> str:
    """The file name of the shard with that number."""
    return f"shard-{shard:06d}.tar"


class DamagedShard(UserError):
    """A shard is not what the index says. The message names the shard, the damage and a remedy."""

    def __init__(self, message: str) -> None:
        # the only argument, so that the error can be sent to another process and raised there
        super().__init__(message if message.endswith(_READ_ALL) else f"{message}; {_READ_ALL}")


Part = Literal["A", "B", "A_held_out", "B_held_out"]
"""Part A always exists; B exists with a second source, and the others with held-out images."""


def _packed(value: Any) -> Any:
    if isinstance(value, array) and value.typecode == "Q":
        return value
    if not isinstance(value, list | tuple):
        raise ValueError("offsets must be a list")
    try:
        return array("Q", value)
    except (TypeError, OverflowError) as error:
        raise ValueError("offsets must be whole numbers from 0 on") from error


if TYPE_CHECKING:
    _Array = array[int]
else:
    _Array = array  # before Python 3.12 it takes no type arguments

Offsets = Annotated[
    _Array, PlainValidator(_packed), PlainSerializer(lambda packed: packed.tolist(), list[int])
]
"""Whole numbers of 8 bytes each in memory, and a list in JSON. As objects of Python they would take
five times the memory, in every process that reads images."""


def _unpacked(value: Any) -> Any:
    if isinstance(value, array) and value.typecode == "I":
        return value
    if not isinstance(value, str):
        raise ValueError("checksums must be a text in base64")
    packed = array("I")
    packed.frombytes(base64.b64decode(value, validate=True))
    return _little_endian(packed)


def _little_endian(packed: _Array) -> _Array:
    """The numbers as they are stored, or as they were before."""
    if sys.byteorder == "big":
        packed = packed[:]
        packed.byteswap()
    return packed


Checksums = Annotated[
    _Array,
    PlainValidator(_unpacked),
    PlainSerializer(lambda packed: base64.b64encode(_little_endian(packed)).decode(), str),
]
"""CRC-32s of 4 bytes each in memory, and their bytes in base64 in JSON."""


class ShardInfo(BaseModel):
    """What is known of one shard. The tar header of sample i begins at byte `offsets[i]`.

    `checksums[i]` is the CRC-32 of all bytes from there to those of the next sample, or to the end
    of the tar. It notices every flipped bit, all damage within 32 bits in a row, and of any other
    damage all but one case in four thousand million. A shard that was written before there were
    checksums has none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^shard-[0-9]{6,}\.tar$")  # never a path that leaves the folder
    samples: int = Field(ge=1)
    bytes: int = Field(ge=1024, lt=1 << 63)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    offsets: Offsets
    checksums: Checksums = Field(default_factory=lambda: array("I"))
    part: Part = "A"

    @model_validator(mode="after")
    def _consistent(self) -> ShardInfo:
        if len(self.offsets) != self.samples:
            raise ValueError("a shard has not one offset per sample")
        if len(self.checksums) not in (0, self.samples):
            raise ValueError("a shard has not one checksum per sample")
        begins = np.append(np.frombuffer(self.offsets, np.uint64), np.uint64(self.bytes))
        if (begins[1:] <= begins[:-1]).any():
            raise ValueError("the offsets do not ascend to the end of the shard")
        return self

    @property
    def number(self) -> int:
        """The shard's number, with which the keys of its samples begin."""
        return int(self.name.removeprefix("shard-").removesuffix(".tar"))

    def verify(self, directory: Path, known: VerifiedFiles | None = None) -> None:
        """Raise `DamagedShard` unless the tar in `directory` has the recorded size and digest. A
        tar whose digest is in `known` is not read again."""
        path = directory / self.name
        if not path.is_file():
            raise DamagedShard(f"{path} is missing")
        if (size := path.stat().st_size) != self.bytes:
            raise DamagedShard(f"{path} is damaged: {size} bytes, recorded are {self.bytes}")
        if (known or VerifiedFiles()).sha256(path) != self.sha256:
            raise DamagedShard(f"{path} is damaged: its SHA-256 is not the recorded one")

    def with_checksums(self, directory: Path) -> ShardInfo:
        """The same shard with checksums of its samples, which are read. Raises `DamagedShard`
        unless what is read has the recorded digest."""
        checksums, digest = array("I"), hashlib.sha256()
        with (directory / self.name).open("rb") as file:
            for number in range(self.samples):
                begin, end = self.byte_range(number, 1)
                file.seek(begin)
                data = file.read(end - begin)
                digest.update(data)
                checksums.append(zlib.crc32(data))
        if digest.hexdigest() != self.sha256:
            path = directory / self.name
            raise DamagedShard(f"{path} is damaged: its SHA-256 is not the recorded one")
        return self.model_copy(update={"checksums": checksums})

    def byte_range(self, first: int, count: int) -> tuple[int, int]:
        """The bytes at which the samples from `first` to `first + count - 1` begin and end."""
        after = first + count
        return self.offsets[first], self.offsets[after] if after < self.samples else self.bytes

    def damaged_sample(self, data: memoryview, first: int, count: int) -> int | None:
        """The number of the first sample whose bytes are not those that were written; None if all
        are, or if there are no checksums. `data` has the bytes of `byte_range(first, count)`."""
        if not self.checksums:
            return None
        base = self.offsets[first]
        for number in range(first, first + count):
            begin, end = self.byte_range(number, 1)
            if zlib.crc32(data[begin - base : end - base]) != self.checksums[number]:
                return number
        return None


class IndexedAddition(BaseModel):
    """The shards that a set which grows got at one time; they follow those of the addition before.
    `content_hash` is that of these shards alone."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shards: int = Field(ge=1)
    samples: int = Field(ge=1)
    content_hash: str = Field(pattern="^[0-9a-f]{64}$")

    @staticmethod
    def of(shards: Sequence[ShardInfo], transform: dict[str, Any]) -> IndexedAddition:
        """The addition of these shards."""
        samples = sum(shard.samples for shard in shards)
        digest = content_hash(shards, transform)
        return IndexedAddition(shards=len(shards), samples=samples, content_hash=digest)


class Index(BaseModel):
    """What is known of a whole stored data set.

    `content_hash` identifies the stored data: it covers the shards' digests in order, and how the
    pixels were made. `classes` has the sorted names of the classes, and is empty for unlabelled
    data; a label is a position in it. `class_counts` has the number of samples of each class:
    a conditional generator is scored on images of every class, as often as the data have it.
    `additions` tells of a set that has grown (`data.grow`) what came when, oldest first.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    content_hash: str = Field(pattern="^[0-9a-f]{64}$")
    samples: int = Field(ge=1)
    resolution: int = Field(ge=1)
    channels: Literal[1, 3]
    classes: tuple[str, ...]
    class_counts: tuple[int, ...]
    transform: dict[str, Any]
    quarantined: int = Field(ge=0)
    shards: tuple[ShardInfo, ...]
    additions: tuple[IndexedAddition, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Index:
        if self.samples != sum(shard.samples for shard in self.shards):
            raise ValueError("the shards do not add up to `samples`")
        if len(self.class_counts) != len(self.classes):
            raise ValueError("`class_counts` does not count every class")
        if self.classes and sum(self.class_counts) != self.samples:
            raise ValueError("the classes do not add up to `samples`")
        if self.content_hash != content_hash(self.shards, self.transform):
            raise ValueError("`content_hash` does not belong to the shards and the transform")
        if self.additions:
            added = [IndexedAddition.of(shards, self.transform) for shards in self._added()]
            count = sum(addition.shards for addition in self.additions)
            if count != len(self.shards) or added != list(self.additions):
                raise ValueError("`additions` does not belong to the shards")
        return self

    def _added(self) -> Iterator[tuple[ShardInfo, ...]]:
        """The shards of each addition."""
        shards = iter(self.shards)
        for addition in self.additions:
            yield tuple(islice(shards, addition.shards))

    @property
    def image_shape(self) -> ImageShape:
        """The channels, resolution and classes for which networks are built."""
        return ImageShape(self.channels, self.resolution, self.classes)

    def part(self, name: Part) -> Index | None:
        """The shards of one part as a data set of its own; None if the part has no shards."""
        shards = tuple(shard for shard in self.shards if shard.part == name)
        if shards == self.shards:
            return self
        if not shards:
            return None
        changes = {
            "shards": shards,
            "samples": sum(shard.samples for shard in shards),
            "content_hash": content_hash(shards, self.transform),
            "additions": tuple(
                IndexedAddition.of(own, self.transform)
                for added in self._added()
                if (own := [shard for shard in added if shard.part == name])
            ),
        }
        return self.model_copy(update=changes)

    @staticmethod
    def load(directory: Path) -> Index:
        """Read `index.json`. Raises UserError when it is missing, unreadable or inconsistent."""
        path = Path(directory) / INDEX_NAME
        if not path.is_file():
            raise UserError(f"{path} does not exist: no finished shards there; {_REMEDY}")
        try:
            return Index.model_validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise UserError(f"{path} is damaged: {where} {first['msg']}; {_REMEDY}") from error

    def save(self, directory: Path) -> None:
        """Replace `index.json` in one step. The same index gives the same bytes."""
        text = self.model_dump_json(exclude=None if self.additions else {"additions"})
        write_aside(Path(directory) / INDEX_NAME, text.encode() + b"\n")

    def verify(self, directory: Path) -> None:
        """Read every shard and compare its SHA-256. Raises `DamagedShard` for the first bad one."""
        for shard in self.shards:
            shard.verify(Path(directory))


def content_hash(shards: Sequence[ShardInfo], transform: dict[str, Any]) -> str:
    """The SHA-256 of the shards' digests, in order, and of the transform."""
    identity = [[shard.sha256 for shard in shards], transform]
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
