"""Compressed tars as plain ones, in which files are found by their place."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import shutil
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gan_train.errors import UserError
from gan_train.files.atomic import aside
from gan_train.files.digests import VerifiedFiles

DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, gzip.BadGzipFile)
"""What the readers of archives raise for a damaged one."""
_COMPRESSED: dict[bytes, Callable[[Path], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}
_READ = 1 << 20


def memory_of(path: Path, workspace: Path, since: float) -> VerifiedFiles:
    """The remembered checksums of the source at an absolute path, which may be an unpacked tar."""
    key = hashlib.sha256(str(path).encode()).hexdigest()[:16]
    sources = workspace.resolve() / "sources"
    ours = path.parent == sources
    return VerifiedFiles(sources / "listings" / f"{key}.jsonl", since, ours=ours)


def plain_source(path: Path, workspace: Path, since: float = 0.0) -> Path:
    """The absolute path to open. A compressed tar is first turned into a plain tar in
    `workspace/sources`, because a file in it is found only by reading all that comes before.

    Raises UserError when the path does not exist, or is a compressed tar that is damaged.
    """
    path = path.expanduser().resolve()
    if path.is_dir() or (path.is_file() and zipfile.is_zipfile(path)):
        return path
    if not path.is_file():
        raise UserError(f"data.source: {path} does not exist")
    with path.open("rb") as file:
        magic = file.read(6)
    unpack = next((how for start, how in _COMPRESSED.items() if magic.startswith(start)), None)
    if unpack is None:
        return path
    known = memory_of(path, workspace, since)
    plain = workspace.resolve() / "sources" / f"{known.sha256(path)[:16]}.tar"
    known.save()
    if not plain.exists():
        try:
            with unpack(path) as packed, aside(plain) as file:
                shutil.copyfileobj(packed, file, _READ)
        except (*DAMAGED, ValueError) as error:
            raise UserError(f"data.source: {path} is damaged: {error}") from error
    return plain
