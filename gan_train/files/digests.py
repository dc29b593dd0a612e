"""Checksums of files, and a memory of them, so that an unchanged file is not read again.

A record in the memory is valid as long as the file's size, times and inode are unchanged. They do
not show a bit that was damaged on the disk, so records older than the time `since` are ignored:
with `since` a month ago, every file is read in full once a month; with `since` now, at once.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from gan_train.files.atomic import write_aside

Value = TypeVar("Value")

RESOLUTION_NS = 2_000_000_000
"""No file system keeps times more coarsely than FAT, which counts them in steps of 2 seconds."""

log = logging.getLogger(__name__)


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, streamed."""
    with path.open("rb") as file:
        return _sha256(file)


def _sha256(file: BufferedReader) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()


class Stamp(NamedTuple):
    """What a file system tells about a file without reading it. Any change of the content changes
    the stamp, unless it comes within the resolution of the file system's clock. Times are in
    nanoseconds."""

    size: int
    modified: int
    changed: int
    inode: int

    @staticmethod
    def of(status: os.stat_result) -> Stamp:
        """The stamp of a file with this status."""
        return Stamp(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


class VerifiedFiles:
    """Remembers a value for each of some files, such as the digest of its content, by name.

    The memory is a file that `save` writes aside and renames. Several processes may save it: the
    last one wins, and files that only another one has read are read again. A memory that is missing
    or damaged counts as empty.
    """

    def __init__(
        self, memory: Path | None = None, since: float = 0.0, *, ours: bool = False
    ) -> None:
        """Load the memory from its file. Without a file nothing outlives this object.

        Records from before `since`, in seconds since 1970, are ignored. `ours` tells that the files
        lie in a folder that this project writes, so that a file may be new and must be remembered.
        """
        self._memory, self._since, self._ours = memory, since, ours
        self._records = _loaded(memory) if memory is not None else {}
        self._used: dict[str, list[Any]] = {}

    def value(self, name: str, path: Path | str, read: Callable[[BufferedReader], Value]) -> Value:
        """The result of `read` for the file at `path`. It comes from the memory if the file is
        known by this name and has not changed. The value must survive being written as JSON.

        A file that changed so recently that another change might leave its times as they are is not
        remembered. With `ours`, the method waits until it can be, mostly some milliseconds.
        """
        if (known := self._known(name, Stamp.of(_status(path)))) is not None:
            self._used[name] = known
            value: Value = known[-1]
            return value
        with Path(path).open("rb") as file:
            before = Stamp.of(os.fstat(file.fileno()))
            newest = max(before.modified, before.changed)
            settled = newest < time.time_ns() - RESOLUTION_NS or (
                self._ours and _clock_passes(newest, Path(path).parent)
            )
            now, value = time.time(), read(file)
            after = Stamp.of(os.fstat(file.fileno()))
        self._used.pop(name, None)
        if settled and before == after:
            self._used[name] = [*after, now, value]
        return value

    def sha256(self, path: Path) -> str:
        """Hexadecimal SHA-256 of a file; see `value`."""
        return self.value(path.name, path, _sha256)

    def save(self) -> None:
        """Write the records that were used since the memory was loaded, and drop all others. Where
        the file cannot be written, a warning is logged, and the files are read again next time."""
        if self._memory is None or self._used == self._records:
            return
        text = json.dumps(self._used, separators=(",", ":")).encode()
        try:
            write_aside(self._memory, _head(text) + text)
        except OSError as error:
            log.warning("what was verified is not remembered: %s", error)
        self._records = dict(self._used)

    def _known(self, name: str, stamp: Stamp) -> list[Any] | None:
        record = self._used.get(name) or self._records.get(name)
        if record is None or tuple(record[:-2]) != stamp:
            return None
        return record if self._since <= record[-2] <= time.time() else None


def _status(path: Path | str) -> os.stat_result:
    # a source has a path for each of its files, and to make it a Path takes longer than to ask
    return os.stat(path)  # noqa: PTH116


def _head(text: bytes) -> bytes:
    """The first line of a memory: its format, and the digest of the text that follows."""
    digest = hashlib.sha256(text).hexdigest()
    return json.dumps({"format": 1, "sha256": digest}).encode() + b"\n"


def _loaded(memory: Path) -> dict[str, list[Any]]:
    """The records of a memory: a stamp, the time of the reading in seconds, and the value."""
    try:
        data = memory.read_bytes()
    except OSError:
        return {}
    _, _, text = data.partition(b"\n")
    records: dict[str, list[Any]] = json.loads(text) if data == _head(text) + text else {}
    return records


def _clock_passes(newest: int, folder: Path) -> bool:
    """Wait until a file that changes in the folder gets a later time than `newest`. False if that
    takes longer than the resolution, as when `newest` lies in the future."""
    end = time.monotonic() + 1.5e-9 * RESOLUTION_NS
    with tempfile.TemporaryFile(dir=folder) as probe:
        while True:
            os.utime(probe.fileno())
            if os.fstat(probe.fileno()).st_ctime_ns > newest:
                return True
            if time.monotonic() > end:
                return False
            time.sleep(0.001)
