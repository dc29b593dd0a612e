"""Mutated tars and zips: as shards, of which only what was written is read, and as sources, of
which no file lies outside."""

from __future__ import annotations

import sys
import zipfile
from contextlib import suppress
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from gan_train.data.images import BadImage
from gan_train.data.index import DamagedShard, Index
from gan_train.data.reader import decode_all, read_range
from gan_train.data.sources import UnreadableFile, open_source
from gan_train.errors import UserError
from tests.fuzz.runner import Target, main
from tests.unit.data.pictures import class_files, stored, without_checksums
from tests.unit.data.test_sources import write_tar

SAMPLES = 6
ALLOWED = (UserError, BadImage)
TOKENS = (
    *(
        b"000000-000000.cls\0",
        b"000000-000003.png\0",
        b"ustar\x0000",
        b"ustar  \0",
        b"0" * 11 + b"\0",
    ),
    *(b"77777777777\0", b"../../etc/passwd\0", b"/etc/passwd\0", b"PK\x01\x02", b"PK\x03\x04"),
    *(b"PK\x05\x06", b"PK\x06\x06", b"30 path=../x\n", b"20 size=99999999999\n", bytes(512)),
    *(b"x", b"g", b"L", b"K", b"S", b"GNU.sparse.map=0,1", b"\x80\xff\xff\xff\xff\xff\xff\xff"),
)


def _set(folder: Path) -> tuple[Index, Path]:
    folder.mkdir()
    return stored(folder, SAMPLES, shard_images=SAMPLES)


def seeds() -> list[bytes]:
    """A shard, and a tar and a zip of pictures."""
    with TemporaryDirectory() as place:
        folder, files = Path(place), class_files(4)
        index, directory = _set(folder / "set")
        tar = write_tar(folder / "a.tar", {**files, "é" * 60 + ".png": b"x"})  # with a PAX header
        whole = [(directory / index.shards[0].name).read_bytes(), tar.read_bytes()]
        for method in (0, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
            with zipfile.ZipFile(folder / "a.zip", "w", method) as archive:
                for name, data in {**files, "é.png": b"y" * 99}.items():
                    archive.writestr(name, data)
            whole.append((folder / "a.zip").read_bytes())
        return whole


def target(folder: Path) -> Target:
    """Reads an archive, from this folder, as a shard and as a source."""
    index, directory = _set(folder / "set")
    old, whole = without_checksums(index), read_range(index, directory, 0, 0, SAMPLES)

    def read(data: bytes) -> None:
        (directory / index.shards[0].name).write_bytes(data)
        for sample in range(SAMPLES):
            with suppress(DamagedShard):
                assert read_range(index, directory, 0, sample, 1) == whole[sample : sample + 1]
            with suppress(DamagedShard):
                decode_all(old, read_range(old, directory, 0, sample, 1))
        with suppress(DamagedShard):
            read_range(old, directory, 0, 0, SAMPLES)
        archive = folder / "source"
        archive.write_bytes(data)
        source = open_source(archive)
        for file in source.files():
            path = PurePosixPath(file.path)
            assert not path.is_absolute() and ".." not in path.parts and "\0" not in file.path
            with suppress(UnreadableFile):
                assert len(source.read(file)) == file.size

    return read


if __name__ == "__main__":
    with TemporaryDirectory() as place:
        sys.exit(main("archives", target(Path(place)), seeds(), ALLOWED, TOKENS))
