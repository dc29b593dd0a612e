"""Lists and reads the files of a source before sharding: a folder, a zip or a tar, here or in a
bucket.

A source is not trusted: nothing outside it is read, and no file is unpacked under a name that an
archive gives. Every file is listed with its size and CRC-32. So the list identifies the content,
whether a folder or an archive holds it, and reading a file shows whether it changed since it was
listed.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import struct
import tarfile
import time
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple, Protocol

from gan_train.data.compressed import DAMAGED, memory_of, plain_source
from gan_train.errors import UserError
from gan_train.files.atomic import read_json, write_json
from gan_train.files.digests import VerifiedFiles
from gan_train.files.locks import locked
from gan_train.files.store import Store, attach, is_url, local_copy, origin_of, path_of

_READ, _BLOCK = 1 << 20, 512
_READERS = 16  # files of a bucket that are read at once
_ZIP_METHODS = (
    *(zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED),
    *(zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA),
)
_LARGEST_DICTIONARY = 256 << 20  # bytes; a file may ask for 16 times as many
_LISTING = "listing.json"
_LEFT_BY_SYSTEMS = {"__MACOSX", "Thumbs.db", "desktop.ini"}


class SourceFile(NamedTuple):
    """A file of a source: its path within the source, its size in bytes, its CRC-32, and in a tar
    the byte at which its data begin."""

    path: str
    size: int
    crc: int
    offset: int = 0


class UnreadableFile(Exception):
    """One file of an archive is damaged. The text is the reason, for the quarantine report."""


def local_place(place: str) -> Path:
    """The path by which this machine opens a source. An archive in a bucket is fetched when it has
    changed; a folder in a bucket becomes a folder without files, attached to it."""
    path = path_of(place)
    if path is not None:
        return path
    folder = local_copy(place)
    bucket, _, name = place.rstrip("/").rpartition("/")
    entry = Store(bucket).look(name) if is_url(bucket) else None
    if entry is None:
        attach(folder, Store(place))
        return folder
    archive = folder / f"{hashlib.sha256(entry.tag.encode()).hexdigest()[:16]}-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock"):
        if not archive.exists():
            Store(bucket).fetch(name, archive)
    return archive


class Source(Protocol):
    """A folder or an archive."""

    def files(self, known: VerifiedFiles | None = None) -> list[SourceFile]:
        """All files, sorted by path, without hidden ones and those that operating systems leave
        behind (`Thumbs.db`). Files whose checksums are in `known` are not read again.

        Raises UserError for links, devices and paths that leave the source.
        """

    def read(self, file: SourceFile) -> bytes:
        """The content of a listed file. Raises UserError if it changed since it was listed, and
        `UnreadableFile` if the archive is damaged in this file."""


def open_source(path: Path) -> Source:
    """The source at a path, which is a folder, a zip or a plain tar.

    A zip stays open, so that a process reads its directory once, unless the file changes. Raises
    UserError for a path that cannot be read.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"data.source: cannot read {path}: {error.strerror}") from error
    # the process is part of the key, because forked ones would share the position in an open file
    return _open(path, status.st_mtime_ns, status.st_size, os.getpid())


@lru_cache(maxsize=3)  # the two sources of a translation, and the test pictures
def _open(path: Path, mtime_ns: int, size: int, process: int) -> Source:
    if path.is_dir():
        store = origin_of(path)
        return _Folder(path) if store is None else _Bucket(path, store)
    return _Zip(path) if zipfile.is_zipfile(path) else _Tar(path)


def trusted_since(verify_days: float) -> float:
    """The time `verify_days` ago, in seconds since 1970. Files that were read later are trusted."""
    return time.time() - 86400 * verify_days


def list_source(
    path: Path, workspace: Path, since: float, store: str | None = None
) -> tuple[Path, list[SourceFile]]:
    """The path at which to open a source (see `plain_source`), and all its files.

    The checksums of its files are remembered in `workspace/sources/listings`. A file is read again
    when it has changed, or was last read before `since`. Those of a folder in a bucket are
    remembered in the bucket of the workspace, too, if it has one (`store`), for all machines.
    """
    plain = plain_source(path, workspace, since)
    origin = origin_of(plain) if plain.is_dir() else None
    if origin is not None and store is not None:
        with _shared_listing(plain, origin, Store(store)):
            return plain, open_source(plain).files()
    known = memory_of(plain, workspace, since)
    files = open_source(plain).files(known)
    known.save()
    return plain, files


@contextmanager
def _shared_listing(folder: Path, origin: Store, workspace: Store) -> Iterator[None]:
    """Have what is remembered of a folder in a bucket from the workspace's bucket, if this machine
    knows nothing of it, and tell the others what the block has learned."""
    listing = folder / _LISTING
    key = f"sources/listings/{hashlib.sha256(origin.url.encode()).hexdigest()[:16]}.json"
    if not listing.exists():
        with suppress(FileNotFoundError):
            workspace.fetch(key, listing)
    before = listing.read_bytes() if listing.exists() else b""
    yield
    if listing.read_bytes() != before:
        workspace.send(listing, key)


class _Folder:
    def __init__(self, root: Path) -> None:
        self._root = root.resolve()
        # the folders that files were read from, with links resolved, and their inodes
        self._folders: dict[str, tuple[str, int]] = {}

    def files(self, known: VerifiedFiles | None = None) -> list[SourceFile]:
        found, known, folders = [], known or VerifiedFiles(), [""]
        while folders:
            folder = folders.pop()  # within the source; with a slash behind it, if it is not ""
            for entry in self._entries(folder):
                path = folder + entry.name
                if _passed_over(entry.name):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(f"{path}/")
                elif _leads_to_folder(entry):
                    raise _refused(self._root, f"{entry.path}: a link to a folder")
                else:
                    # a file in a folder of the source lies within it; only a link can leave it
                    plain = entry.is_file(follow_symlinks=False)
                    found.append(self._listed(path, entry.path if plain else None, known))
        return sorted(found)

    def _entries(self, folder: str) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(self._root / folder) as entries:
                return list(entries)
        except OSError as error:
            raise UserError(
                f"data.source: cannot read {error.filename}: {error.strerror}"
            ) from error

    def _listed(self, path: str, plain: str | None, known: VerifiedFiles) -> SourceFile:
        place = plain or self._inside(path)
        try:
            return SourceFile(path, *known.value(path, place, _whole))
        except PermissionError as error:
            raise UserError(f"data.source: cannot read {place}: {error.strerror}") from error

    def _within(self, path: str) -> Path:
        """The path with links resolved. Raises UserError unless it lies within the source."""
        try:
            place = (self._root / path).resolve(strict=True)
        except (OSError, RuntimeError) as error:  # the latter for a circle, before Python 3.13
            raise _refused(self._root, f"{path}: a broken link, or gone") from error
        if not place.is_relative_to(self._root):
            raise _refused(self._root, f"{path}: a link that leaves the source")
        return place

    def _inside(self, path: str) -> Path:
        """The path with links resolved. Raises UserError unless it is a file within the source."""
        place = self._within(path)
        if not place.is_file():  # to open a pipe would block for ever
            raise _refused(self._root, f"{path}: not a file")
        return place

    def read(self, file: SourceFile) -> bytes:
        folder, _, name = file.path.rpartition("/")
        place, inode = self._folders.get(folder, ("", 0))
        try:
            # the same inode as before: no folder on the way has become a link
            if not place or os.stat(place).st_ino != inode:  # noqa: PTH116 - fast, see digests.py
                place = str(self._within(folder))
                self._folders[folder] = place, Path(place).stat().st_ino
            handle = os.open(f"{place}/{name}", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:  # a link, or gone
            return _as_listed(self._inside(file.path).read_bytes(), file)
        with os.fdopen(handle, "rb", buffering=0) as opened:
            # a byte more than is listed, to notice that a file has grown
            return _as_listed(opened.read(file.size + 1), file)


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # links in a circle
        return False


class _Bucket:
    """A folder in a bucket. What was read of its files is remembered in `folder`, by their tags."""

    def __init__(self, folder: Path, store: Store) -> None:
        self._memory, self._store = folder / _LISTING, store

    def files(self, known: VerifiedFiles | None = None) -> list[SourceFile]:
        entries = {}
        for entry in self._store.entries():
            name = _safe(self._memory.parent, entry.key)
            if name is not None:
                entries[name] = entry
        remembered = read_json(self._memory) if self._memory.exists() else {}
        new = [name for name, each in entries.items() if remembered.get(name, [""])[0] != each.tag]
        with ThreadPoolExecutor(_READERS, "bucket") as threads:
            whole = threads.map(lambda name: self._store.read(entries[name].key), new)
            for name, data in zip(new, whole, strict=True):
                remembered[name] = [entries[name].tag, len(data), zlib.crc32(data)]
        write_json(self._memory, {name: remembered[name] for name in entries})
        return sorted(SourceFile(name, *remembered[name][1:]) for name in entries)

    def read(self, file: SourceFile) -> bytes:
        try:
            return _as_listed(self._store.read(file.path), file)
        except FileNotFoundError as error:
            raise _changed(file) from error


class _Zip:
    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError) as error:
            raise UserError(f"data.source: {path} is damaged: {error}") from error
        members = [
            (safe, info)
            for info in self._zip.infolist()
            if not info.filename.endswith("/") and (safe := _safe(path, info.filename))
        ]
        size = path.stat().st_size
        if any(
            info.header_offset < 0 or info.header_offset + info.compress_size > size
            for _, info in members
        ):
            raise UserError(f"data.source: {path} is damaged: a file lies beyond its ends")
        _refuse_twins(path, (safe for safe, _ in members))
        self._members = dict(members)

    def files(self, known: VerifiedFiles | None = None) -> list[SourceFile]:
        # a zip's own directory has sizes and checksums, so no file is read
        for name, info in self._members.items():
            kind = stat.S_IFMT(info.external_attr >> 16)  # Unix mode; 0 from other systems
            if kind not in (0, stat.S_IFREG):
                raise _refused(self._path, f"{name}: a link or a device")
            if info.flag_bits & 1:
                raise _refused(self._path, f"{name}: encrypted")
            if info.compress_type not in _ZIP_METHODS:
                raise _refused(self._path, f"{name}: compressed by an unknown method")
        return sorted(
            SourceFile(name, info.file_size, info.CRC) for name, info in self._members.items()
        )

    def read(self, file: SourceFile) -> bytes:
        info = self._members.get(file.path)
        if info is None or (info.file_size, info.CRC) != (file.size, file.crc):
            raise _changed(file)
        if info.compress_type == zipfile.ZIP_LZMA and self._dictionary(info) > _LARGEST_DICTIONARY:
            raise UnreadableFile("its LZMA dictionary takes too much memory")
        try:
            return _as_listed(self._zip.read(info), file)
        except (*DAMAGED, NotImplementedError, UnicodeDecodeError, struct.error) as error:
            raise UnreadableFile(f"damaged in the zip: {error}") from error
        except OSError as error:
            if error.errno is not None:
                raise
            raise UnreadableFile(f"damaged in the zip: {error}") from error  # of bz2

    def _dictionary(self, info: zipfile.ZipInfo) -> int:
        """The bytes of memory that a file asks for that is packed by LZMA (APPNOTE 5.8)."""
        with self._path.open("rb") as file:
            file.seek(info.header_offset + 26)
            lengths = file.read(4)  # of the name and of other fields, which lie before the data
            file.seek(sum(struct.unpack("<HH", lengths)) if len(lengths) == 4 else 0, os.SEEK_CUR)
            return int.from_bytes(file.read(9)[5:], "little")


class _Tar:
    def __init__(self, path: Path) -> None:
        self._path = path

    def files(self, known: VerifiedFiles | None = None) -> list[SourceFile]:
        known = known or VerifiedFiles()
        return [SourceFile(*file) for file in known.value("", self._path, self._read_through)]

    def _read_through(self, file: BinaryIO) -> list[SourceFile]:
        found, end = [], 0
        try:
            with tarfile.open(self._path, "r:") as tar:
                for member in tar:
                    name = _safe(self._path, member.name)
                    end = member.offset_data + (
                        0 if member.isdir() else -(-member.size // _BLOCK) * _BLOCK
                    )
                    if not member.isdir() and (not member.isreg() or member.issparse()):
                        raise _refused(self._path, f"{member.name}: a link or a device")
                    if member.isreg() and name:
                        file.seek(member.offset_data)
                        size, crc = _size_and_crc(file, member.size)
                        found.append(SourceFile(name, size, crc, member.offset_data))
                _check_end(self._path, file, end)
        except tarfile.TarError as error:
            raise UserError(
                f"data.source: {self._path} is no folder, zip or tar, or is damaged: {error}"
            ) from error
        _refuse_twins(self._path, (file.path for file in found))
        return sorted(found)

    def read(self, file: SourceFile) -> bytes:
        with self._path.open("rb") as tar:
            tar.seek(file.offset)
            return _as_listed(tar.read(file.size), file)


def _check_end(path: Path, file: BinaryIO, end: int) -> None:
    """Raise UserError unless the tar ends with zeros, from byte `end` to its last.

    A tar that was cut between two members has no zeros there. A tar with a zeroed or broken header
    has other bytes after it. Python's reader reports neither.
    """
    file.seek(end)
    rest = file.read(_BLOCK)
    if not rest or any(rest) or any(any(part) for part in iter(lambda: file.read(_READ), b"")):
        raise UserError(f"data.source: {path} is damaged or cut off at byte {end}; fetch it again")


def _size_and_crc(file: BinaryIO, size: int) -> tuple[int, int]:
    """How many bytes, at most `size`, follow in the file, and their CRC-32."""
    crc, left = 0, size
    while left and (part := file.read(min(left, _READ))):
        crc, left = zlib.crc32(part, crc), left - len(part)
    return size - left, crc


def _whole(file: BinaryIO) -> tuple[int, int]:
    """The size and the CRC-32 of a whole file."""
    return _size_and_crc(file, os.fstat(file.fileno()).st_size)


def _as_listed(data: bytes, file: SourceFile) -> bytes:
    if len(data) != file.size or zlib.crc32(data) != file.crc:
        raise _changed(file)
    return data


def _safe(source: Path, name: str) -> str | None:
    """The plain form of a member's name, or None if the member is skipped (see `Source.files`).
    Raises UserError for a name that leads out of the source."""
    parts = re.split(r"[/\\]", name)
    if not parts[0] or ".." in parts or "\0" in name or re.match("[A-Za-z]:", name):
        raise _refused(source, f"{name!r}: leaves the source")
    plain = PurePosixPath(name)  # drops "./"
    return None if any(map(_passed_over, plain.parts)) else str(plain)


def _passed_over(name: str) -> bool:
    return name.startswith(".") or name in _LEFT_BY_SYSTEMS


def _refuse_twins(source: Path, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise _refused(source, f"{name}: stands there twice")
        seen.add(name)


def _refused(source: Path, what: str) -> UserError:
    return UserError(
        f"data.source: {source} is refused because of {what}. Remove it from the source, or put "
        "ordinary files in its place"
    )


def _changed(file: SourceFile) -> UserError:
    return UserError(f"data.source changed while it was read ({file.path}); run again")
