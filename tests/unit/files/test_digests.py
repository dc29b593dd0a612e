"""What was read is remembered as long as the file is the same, and not a moment longer."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path

import pytest

from gan_train.files import digests
from gan_train.files.digests import VerifiedFiles, sha256_of


@pytest.fixture
def old_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as settled as soon as they are written, as if they were written long ago."""
    monkeypatch.setattr(digests, "RESOLUTION_NS", 0)


class Reader:
    """Reads a whole file, and counts how often."""

    def __init__(self) -> None:
        self.reads = 0

    def __call__(self, file: BufferedReader) -> str:
        self.reads += 1
        return file.read().decode()


def asked(memory: Path, file: Path, read: Reader, since: float = 0.0) -> str:
    """What a new process is told of the file."""
    known = VerifiedFiles(memory, since)
    value = known.value("name", file, read)
    known.save()
    return value


@pytest.mark.usefixtures("old_clock")
def test_a_file_is_read_once(tmp_path: Path) -> None:
    file, memory, read = tmp_path / "file", tmp_path / "folder" / "memory", Reader()
    file.write_text("content")
    assert [asked(memory, file, read) for _ in range(3)] == ["content"] * 3
    assert read.reads == 1


def in_place(file: Path) -> None:
    file.write_text("CONTENT")


def in_place_with_its_old_time(file: Path) -> None:
    status = file.stat()
    file.write_text("CONTENT")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def replaced_with_its_old_time(file: Path) -> None:
    status = file.stat()
    other = file.with_name("other")
    other.write_text("CONTENT")
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(file)


@pytest.mark.usefixtures("old_clock")
@pytest.mark.parametrize(
    "change", [in_place, in_place_with_its_old_time, replaced_with_its_old_time]
)
def test_a_file_that_changed_is_read_again(tmp_path: Path, change: Callable[[Path], None]) -> None:
    file, memory, read = tmp_path / "file", tmp_path / "memory", Reader()
    file.write_text("content")
    assert asked(memory, file, read) == "content"
    time.sleep(0.02)  # more than the step of the clock that gives files their times
    change(file)
    assert asked(memory, file, read) == "CONTENT"


def test_a_file_that_could_change_within_one_step_of_the_clock_is_read_again(
    tmp_path: Path,
) -> None:
    file, memory, read = tmp_path / "file", tmp_path / "memory", Reader()
    file.write_text("content")
    assert [asked(memory, file, read) for _ in range(2)] == ["content"] * 2
    assert read.reads == 2 and not memory.exists()


def test_a_file_of_ours_is_remembered_once_the_clock_has_moved_on(
    tmp_path: Path,
) -> None:
    file, memory = tmp_path / "file", tmp_path / "memory"
    file.write_text("content")
    known = VerifiedFiles(memory, ours=True)
    assert known.sha256(file) == sha256_of(file)
    known.save()
    assert memory.exists()
    changed = file.stat().st_ctime_ns
    file.write_text("CONTENT")  # at once
    assert file.stat().st_ctime_ns > changed
    assert VerifiedFiles(memory).sha256(file) == sha256_of(file)


def test_a_time_in_the_future_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "RESOLUTION_NS", 10_000_000)
    file, memory = tmp_path / "file", tmp_path / "memory"
    file.write_text("content")
    os.utime(file, (time.time() + 3600,) * 2)
    known = VerifiedFiles(memory, ours=True)
    assert known.sha256(file) == sha256_of(file)
    known.save()
    assert not memory.exists()


@pytest.mark.usefixtures("old_clock")
def test_a_file_that_changes_while_it_is_read_is_not_remembered(tmp_path: Path) -> None:
    file, memory = tmp_path / "file", tmp_path / "memory"
    file.write_text("content")

    def read(reader: BufferedReader) -> str:
        text = reader.read().decode()
        file.write_text("something longer")
        return text

    known = VerifiedFiles(memory)
    assert known.value("name", file, read) == "content"
    known.save()
    assert asked(memory, file, Reader()) == "something longer"


@pytest.mark.usefixtures("old_clock")
def test_what_was_read_before_a_time_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, memory, read = tmp_path / "file", tmp_path / "memory", Reader()
    file.write_text("content")
    now = time.time()
    asked(memory, file, read)
    asked(memory, file, read, since=now)
    assert read.reads == 1
    asked(memory, file, read, since=time.time())
    assert read.reads == 2
    monkeypatch.setattr(time, "time", lambda: now - 3600)  # the machine's clock was set back
    asked(memory, file, read)
    assert read.reads == 3


@pytest.mark.usefixtures("old_clock")
@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "json", "noise"])
def test_a_damaged_memory_is_an_empty_one(tmp_path: Path, damage: str) -> None:
    file, memory, read = tmp_path / "file", tmp_path / "memory", Reader()
    file.write_text("content")
    asked(memory, file, read)
    whole = memory.read_bytes()
    assert b"content" in whole
    memory.write_bytes(
        {
            "cut": whole[:-5],
            "flip": whole.replace(b"content", b"contenT"),
            "empty": b"",
            "json": b'{"name": [7]}',
            "noise": bytes(range(256)),
        }[damage]
    )
    assert asked(memory, file, read) == "content"
    assert read.reads == 2 and memory.read_bytes() != b""
    assert asked(memory, file, read) == "content"
    assert read.reads == 2


@pytest.mark.usefixtures("old_clock")
def test_a_memory_that_cannot_be_written_is_told_and_does_no_harm(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "no-folder").write_text("in the way")
    file, read = tmp_path / "file", Reader()
    file.write_text("content")
    assert asked(tmp_path / "no-folder" / "memory", file, read) == "content"
    assert "not remembered" in caplog.text


@pytest.mark.usefixtures("old_clock")
def test_only_what_was_asked_for_stays_in_the_memory(tmp_path: Path) -> None:
    memory, read = tmp_path / "memory", Reader()
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    known = VerifiedFiles(memory)
    for name in ("a", "b"):
        known.value(name, tmp_path / name, read)
    known.save()
    known = VerifiedFiles(memory)
    known.value("b", tmp_path / "b", read)
    known.save()
    assert read.reads == 2
    known = VerifiedFiles(memory)
    known.value("b", tmp_path / "b", read)
    assert read.reads == 2
    known.value("a", tmp_path / "a", read)
    assert read.reads == 3
