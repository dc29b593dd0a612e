"""The tars that shards are: how a member is written, and how it is recognised again.

The bytes are those that WebDataset's `TarWriter` writes for an owner `gan-train` and the time 0.
Python's tarfile, on which it stands, takes longer for the header of a small image than its decoder
takes for the pixels. So headers are made from one of tarfile's own, in which three fields change.
"""

from __future__ import annotations

import tarfile
import zlib
from typing import BinaryIO

_BLOCK, _OWNER = tarfile.BLOCKSIZE, "gan-train"
_SIZE, _TIME, _SUM, _REST = 124, 136, 148, 156  # where fields of a header begin


def _template() -> bytes:
    info = tarfile.TarInfo()
    info.mode, info.uname, info.gname = 0o444, _OWNER, _OWNER
    return info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")


_TEMPLATE = _template()
_MODE_AND_IDS, _TIME_0 = _TEMPLATE[100:_SIZE], _TEMPLATE[_TIME:_SUM]
_KIND_AND_OWNER = _TEMPLATE[_REST:]
# a checksum is the sum of all bytes, those of the checksum itself counted as spaces
_FIXED_SUM = sum(_MODE_AND_IDS + _TIME_0 + b" " * 8 + _KIND_AND_OWNER)


def in_tar(size: int) -> int:
    """The bytes that a member of `size` bytes takes: its header, and its data in blocks of 512."""
    return _BLOCK + -(-size // _BLOCK) * _BLOCK


def header(name: bytes, size: int) -> bytes:
    """The 512 bytes before a member's data. `name` has at most 100 ASCII characters."""
    assert len(name) <= 100
    length = b"%011o\0" % size
    checksum = _FIXED_SUM + sum(name) + sum(length)
    before = name.ljust(100, b"\0") + _MODE_AND_IDS + length + _TIME_0
    return before + b"%06o\0 " % checksum + _KIND_AND_OWNER


def write_member(file: BinaryIO, name: str, data: bytes, crc: int = 0) -> int:
    """Write a member at the end of a tar; returns the CRC-32 `crc` with the written bytes added."""
    member = header(name.encode("ascii"), len(data)) + data + bytes(-len(data) % _BLOCK)
    file.write(member)
    return zlib.crc32(member, crc)


def write_end(file: BinaryIO, crc: int = 0) -> int:
    """Write two blocks of zeros after the last member, and more up to the end of a record; returns
    the CRC-32 `crc` with them added."""
    least = 2 * _BLOCK
    end = bytes(least + -(file.tell() + least) % tarfile.RECORDSIZE)
    file.write(end)
    return zlib.crc32(end, crc)


def member_at(data: bytes, at: int, name: bytes) -> tuple[bytes, int] | None:
    """The content of the member of that name whose header begins at byte `at`, and the byte after
    it. None if `write_member` would have written another header, or the data are cut off."""
    found = data[at : at + _BLOCK]
    digits = found[_SIZE : _TIME - 1]
    if not digits.isdigit() or b"8" in digits or b"9" in digits:
        return None
    size = int(digits, 8)
    end = at + in_tar(size)
    if found != header(name, size) or end > len(data):
        return None
    return data[at + _BLOCK : at + _BLOCK + size], end
