"""The one way to write files and folders: a killed process leaves the old one or the new one.

A file is written aside under another name, forced to the disk and renamed. While it is written it
is locked, so that what a killed writer left behind (nobody holds its lock) can be told from a file
in the making.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

_ASIDE = ".part"


@contextmanager
def aside(path: Path) -> Iterator[BinaryIO]:
    """A binary file to write, which becomes `path` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}-{os.urandom(4).hex()}{_ASIDE}")
    try:
        with _create_locked(part) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    force_to_disk(path.parent)  # the rename itself


def _create_locked(part: Path) -> BinaryIO:
    """A new file, locked. Before it is locked, another process may take it for a leftover and
    delete it (`remove_leftovers`); it is then made again."""
    while True:
        file = part.open("xb")
        fcntl.flock(file, fcntl.LOCK_EX)
        if part.exists():
            return file
        file.close()


def write_aside(path: Path, data: bytes) -> None:
    """Replace `path` by `data` in one step."""
    with aside(path) as file:
        file.write(data)


@contextmanager
def folder_aside(path: Path) -> Iterator[Path]:
    """An empty folder to fill, which becomes `path` when the block ends without an error.

    Its files are forced to the disk first. A folder that stands at `path` is deleted just before,
    and so is what a killed process has left of an earlier attempt: one process at a time may do so.
    """
    part = path.with_name(path.name + _ASIDE)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        for file in sorted(part.rglob("*")):
            force_to_disk(file)
        force_to_disk(part)
        if path.exists():
            shutil.rmtree(path)
        part.replace(path)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    force_to_disk(path.parent)  # the rename itself


def remove_leftovers(directory: Path) -> None:
    """Delete the files that killed writers left in `directory`, but none that is being written."""
    for part in directory.glob(f"*{_ASIDE}"):
        with contextlib.suppress(FileNotFoundError), part.open("rb") as file:  # finished since
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            part.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by a JSON file in one step. The same value gives the same bytes."""
    write_aside(path, json.dumps(value, indent=1, sort_keys=True).encode())


def read_json(path: Path) -> Any:
    """The value that `write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def force_to_disk(path: Path) -> None:
    """Wait until a file's content, or a folder's entries, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
