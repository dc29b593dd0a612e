"""A full disk costs no state that was there, and the message says what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.small_disk import run_on


@pytest.mark.small_disk
@pytest.mark.fault(
    "a full disk during a checkpoint, a score, the event log and sharding",
    "what was there stays whole, without half files; the message tells place, room and remedy, and "
    "the status is 4; with room again, the work goes on",
)
def test_a_full_disk(
    tiny_source: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    said = run_on(disk, "3m", "tests.faults.on_a_small_disk", str(tiny_source), str(disk))
    found = json.loads(said.splitlines()[-1])
    training = found["training"]
    assert training["status"] == 4 and training["whole"] and training["parts"] == []
    for word in ("no room on the disk of", "checkpoints", "kB are free", "kB are needed", "Delete"):
        assert word in training["told"], training["told"]
    assert found["again"] == 0 and found["reached"] == f"{128:012d}"
    for what in ("event log", "scores", "sharding"):
        assert "no room on the disk of" in found[what]["told"], what
        assert found[what]["as_before"], what
    assert found["event log"]["written later"]
    record_property("recovered_s", found["recovered_s"])
    record_property("lost", "the work since the last checkpoint")
