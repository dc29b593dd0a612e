"""What is written aside is there whole, or what was there before is."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import BinaryIO

import pytest

from gan_train.files.atomic import folder_aside, read_json, remove_leftovers, write_json


def contents(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): path.read_text()
        for path in root.rglob("*")
        if path.is_file()
    }


def test_a_folder_is_there_when_all_of_it_is(tmp_path: Path) -> None:
    with folder_aside(tmp_path / "a" / "folder") as folder:
        (folder / "file").write_text("whole")
        assert not (tmp_path / "a" / "folder").exists()
    assert contents(tmp_path) == {"a/folder/file": "whole"}


def test_an_older_folder_is_replaced_and_one_that_fails_is_not(tmp_path: Path) -> None:
    for text in ("old", "new"):
        with folder_aside(tmp_path / "folder") as folder:
            (folder / text).write_text(text)
    assert contents(tmp_path) == {"folder/new": "new"}
    with pytest.raises(KeyError), folder_aside(tmp_path / "folder") as folder:
        (folder / "half").write_text("half")
        raise KeyError
    assert contents(tmp_path) == {"folder/new": "new"}


def test_what_a_killed_process_left_of_a_folder_is_not_taken_over(tmp_path: Path) -> None:
    with folder_aside(tmp_path / "folder") as folder:
        left = folder
    left.mkdir()
    (left / "leftover").write_text("half")
    with folder_aside(tmp_path / "folder") as folder:
        (folder / "file").write_text("whole")
    assert contents(tmp_path) == {"folder/file": "whole"}


def test_a_file_that_is_finished_meanwhile_is_no_leftover(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json(tmp_path / "a.json", 1)
    monkeypatch.setattr(Path, "glob", lambda folder, pattern: [folder / "a.json.1-2.part"])
    remove_leftovers(tmp_path)
    assert contents(tmp_path) == {"a.json": "1"}


def test_a_file_that_is_taken_for_a_leftover_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process looks between its creation and its lock."""
    flock, looked = fcntl.flock, []

    def late(file: BinaryIO, how: int) -> None:
        if how == fcntl.LOCK_EX and not looked:
            looked.append(file)
            remove_leftovers(tmp_path)
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    write_json(tmp_path / "a.json", 1)
    assert looked and contents(tmp_path) == {"a.json": "1"}


def test_the_same_value_gives_the_same_bytes(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": [1, 2.5, None], "a": "ä"})
    write_json(tmp_path / "b.json", {"a": "ä", "b": [1, 2.5, None]})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert read_json(tmp_path / "a.json") == {"a": "ä", "b": [1, 2.5, None]}
