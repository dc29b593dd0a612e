"""Writes files and folders whole: a killed process leaves no file or folder that is half written.

A file is written under another name ("aside"), forced to the disk and renamed. The writer holds a
lock on it meanwhile: a file with that kind of name and without a lock was left by a killed writer.
On a full disk what was written aside is removed, and `DiskFull` names the place.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError

from gan_train.errors import DiskFull

_ASIDE = ".part"
_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def full_disk_told(path: Path, needed: int | None = None) -> Iterator[None]:
    """Raise `DiskFull` where the block finds no room to write `path`, for which `needed` bytes are
    needed, if that is known.

    torch and safetensors raise errors of their own on a full disk, with the system's words in them.
    """
    try:
        yield
    except DiskFull:
        raise
    except (OSError, RuntimeError, SafetensorError) as error:
        told = getattr(error, "errno", None) in _FULL
        if not told and not any(os.strerror(number) in str(error) for number in _FULL):
            raise
        raise DiskFull(_no_room(path, needed)) from error


def _no_room(path: Path, needed: int | None) -> str:
    place = next(folder for folder in path.absolute().parents if folder.is_dir())
    free = f"{_size(shutil.disk_usage(place).free)} are free"
    need = "" if needed is None else f", {_size(needed)} are needed"
    return (
        f"no room on the disk of {place} for {path.name}: {free}{need}. What was there before is "
        "whole. Delete older runs or shards of that workspace, keep fewer checkpoints "
        "(train.keep_checkpoints), or name a workspace on another disk; then start again"
    )


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} kB"


@contextmanager
def aside(path: Path) -> Iterator[BinaryIO]:
    """A binary file to write, which becomes `path` when the block ends without an error.

    Raises `DiskFull` where there is no room."""
    with full_disk_told(path), _aside(path) as file:
        yield file


@contextmanager
def _aside(path: Path) -> Iterator[BinaryIO]:
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
    """A new file, locked. Between its creation and its lock, `remove_leftovers` in another process
    may delete it; in that case it is created again."""
    while True:
        file = part.open("xb")
        fcntl.flock(file, fcntl.LOCK_EX)
        if part.exists():
            return file
        file.close()


def write_aside(path: Path, data: bytes) -> None:
    """Replace `path` by `data` in one step. Raises `DiskFull` where there is no room."""
    with full_disk_told(path, len(data)), _aside(path) as file:
        file.write(data)


@contextmanager
def folder_aside(path: Path, needed: int | None = None) -> Iterator[Path]:
    """An empty folder to fill, which becomes `path` when the block ends without an error.

    Its files are forced to the disk first. An older folder at `path` is deleted just before the new
    one takes its place: a process that is killed then may leave neither. What a killed process left
    of an earlier attempt is deleted at the start, so only one process at a time may write it.
    Raises `DiskFull` where there is no room for it; `needed` tells its size in bytes.
    """
    with full_disk_told(path, needed), _folder_aside(path) as part:
        yield part


@contextmanager
def _folder_aside(path: Path) -> Iterator[Path]:
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
    """Delete files in `directory` that killed writers left, but no file that is being written."""
    for part in directory.glob(f"*{_ASIDE}"):
        with contextlib.suppress(FileNotFoundError), part.open("rb") as file:  # renamed meanwhile
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            part.unlink(missing_ok=True)


def append(path: Path, data: bytes) -> None:
    """Append whole lines to a file, or nothing: a full disk leaves no part of them. Raises
    `DiskFull`."""
    with full_disk_told(path, len(data)), path.open("ab", buffering=0) as file:
        end = file.tell()
        try:
            written = 0
            while written < len(data):
                written += file.write(data[written:])
        except OSError:
            file.truncate(end)
            raise


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
