"""Tars as sharding writes them: the bytes of WebDataset's writer, recognised when read."""

from __future__ import annotations

import io
import tarfile
import zlib

import pytest
from webdataset.writer import TarWriter

from gan_train.data.tars import header, in_tar, member_at, write_end, write_member

MEMBERS = [
    ("000000-000000.cls", b"7"),
    ("000000-000000.png", bytes(range(256)) * 9),
    ("000000-000001.jpg", b"x" * 512),
    ("1234567-000002.webp", b""),
    ("000000-000003.png", b"y" * 5000),
]


def written() -> bytes:
    file = io.BytesIO()
    crc = 0
    for name, data in MEMBERS:
        crc = write_member(file, name, data, crc)
    assert write_end(file, crc) == zlib.crc32(file.getvalue())
    return file.getvalue()


def test_the_bytes_are_those_of_webdataset() -> None:
    file = io.BytesIO()
    writer = TarWriter(file, user="gan-train", group="gan-train", mtime=0, encoder=False)
    for name, data in MEMBERS:
        key, _, extension = name.partition(".")
        writer.write({"__key__": key, extension: data})
    writer.close()
    assert written() == file.getvalue()


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 7000, 8177, 9000])
def test_the_end_fills_a_record(size: int) -> None:
    mine, theirs = io.BytesIO(), io.BytesIO()
    write_member(mine, "a.png", bytes(size))
    write_end(mine)
    with tarfile.open(fileobj=theirs, mode="w|", format=tarfile.USTAR_FORMAT) as tar:
        info = tarfile.TarInfo("a.png")
        info.size, info.mode, info.uname, info.gname = size, 0o444, "gan-train", "gan-train"
        tar.addfile(info, io.BytesIO(bytes(size)))
    assert mine.getvalue() == theirs.getvalue()


def test_members_are_recognised_one_after_another() -> None:
    data, at = written(), 0
    for name, content in MEMBERS:
        found = member_at(data, at, name.encode())
        assert found == (content, at + in_tar(len(content)))
        at = found[1]
    assert not data[at:].strip(b"\0")


@pytest.mark.parametrize("byte", [0, 20, 100, 104, 124, 130, 135, 140, 148, 156, 257, 265, 329])
def test_any_change_of_a_header_is_noticed(byte: int) -> None:
    data, begin = bytearray(written()), in_tar(1)
    assert member_at(bytes(data), begin, b"000000-000000.png") is not None
    data[begin + byte] ^= 1
    assert member_at(bytes(data), begin, b"000000-000000.png") is None


def test_other_members_are_not_recognised() -> None:
    data = written()
    assert member_at(data, 0, b"000000-000000.png") is None  # another name
    assert member_at(data[:513], 0, b"000000-000000.cls") is None  # its block is cut off
    assert member_at(data, len(data), b"000000-000000.cls") is None  # nothing is there
    assert member_at(data, len(data) - 512, b"000000-000000.cls") is None  # zeros
    for digits in (b"00000000009", b"+0000000001", b" 0000000001"):  # no octal number
        wrong = data[:124] + digits + data[135:]
        assert member_at(wrong, 0, b"000000-000000.cls") is None


def test_a_name_that_does_not_fit_is_a_mistake() -> None:
    with pytest.raises(AssertionError):
        header(b"n" * 101, 1)
