"""Writing files so that a killed process leaves either the old file, the new one, or a leftover.

A file is written aside, forced to the disk, then renamed. While it is written it is locked, so a
leftover of a killed writer (nobody holds its lock) can be told from a file in the making.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_ASIDE = ".part"


@contextmanager
def aside(path: Path) -> Iterator[BinaryIO]:
    """A binary file to write, which becomes `path` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}-{os.urandom(4).hex()}{_ASIDE}")
    try:
        with part.open("xb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
            file.flush()
            os.fsync(file.fileno())
            part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself
    finally:
        os.close(folder)


def write_aside(path: Path, data: bytes) -> None:
    """Replace `path` by `data` in one step."""
    with aside(path) as file:
        file.write(data)


def remove_leftovers(directory: Path) -> None:
    """Delete what killed writers left in `directory`; files still being written are locked."""
    for part in directory.glob(f"*{_ASIDE}"):
        with part.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            part.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, streamed."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
