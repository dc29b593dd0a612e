"""The index of a stored data set: what every shard holds, and what the images are.

A WebDataset tar does not say how many samples it should have: a tar that was cut between two
members, or has zeroed blocks, reads without an error. So `index.json` beside the shards keeps
counts, sizes, digests and the place of every sample. Nothing here reads images.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

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
        super().__init__(message if message.endswith(_REMEDY) else f"{message}; {_REMEDY}")


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


class ShardInfo(BaseModel):
    """What is known of one shard. The tar header of sample i begins at byte `offsets[i]`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^shard-[0-9]{6,}\.tar$")  # never a path that leaves the folder
    samples: int = Field(ge=1)
    bytes: int = Field(ge=1024)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    offsets: Offsets
    part: Part = "A"

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
        if any(shard.samples != len(shard.offsets) for shard in self.shards):
            raise ValueError("a shard has not one offset per sample")
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
