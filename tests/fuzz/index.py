"""Mutated indexes and receipts of shards: refused, or consistent in themselves."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import ValidationError

from gan_train.data.index import INDEX_NAME, Index
from gan_train.data.sharding import ShardReceipt
from gan_train.errors import UserError
from tests.fuzz.runner import Target, main
from tests.unit.data.pictures import stored, without_checksums

ALLOWED = (UserError,)
TOKENS = (
    *(b'"samples":', b'"offsets":[', b'"checksums":"', b'"part":"B"', b'"classes":[]', b"AAAA"),
    *(
        b"null",
        b"true",
        b"[]",
        b"{}",
        b'""',
        b"-1",
        b"1e999",
        b"0.5",
        b"99999999999999999999",
        b"NaN",
    ),
    *(b"[" * 300, b"{" * 30, b"\\ud800", b"\xff", b",", b":", b"1,", b'"version":1,'),
)


def seeds() -> list[bytes]:
    """The index of a small set as it is written now and as it was before there were checksums, and
    a receipt."""
    with TemporaryDirectory() as folder:
        index, directory = stored(Path(folder), 12, shard_images=5)
        files = [directory / INDEX_NAME, directory / "shard-000001.json"]
        whole = [path.read_bytes() for path in files]
    return [*whole, without_checksums(index).model_dump_json().encode()]


def target(folder: Path) -> Target:
    """Reads an index, from this folder, or a receipt."""

    def read(data: bytes) -> None:
        with suppress(ValidationError):
            ShardReceipt.model_validate_json(data)
        (folder / INDEX_NAME).write_bytes(data)
        index = Index.load(folder)
        assert index.image_shape.classes == index.classes
        for shard in index.shards:
            assert shard.number >= 0 and "/" not in shard.name
            ends = [shard.byte_range(sample, 1)[1] for sample in range(shard.samples)]
            assert ends == sorted(ends) and ends[-1] == shard.bytes
            shard.damaged_sample(memoryview(b""), 0, shard.samples)

    return read


if __name__ == "__main__":
    with TemporaryDirectory() as place:
        sys.exit(main("index", target(Path(place)), seeds(), ALLOWED, TOKENS))
