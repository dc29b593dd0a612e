"""The event log as a spool: what has been delivered, and what has not.

The log itself is the spool (`gan_train/runs/events.py`). Beside it stands `mlflow.json`, the
position up to which everything arrived. It moves forward only after delivery, so a kill in between
makes the same events be delivered again, never lost: whoever delivers must not mind a repetition.
Nothing here knows MLflow.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gan_train.files.atomic import read_json, write_json
from gan_train.runs.events import LOG_NAME

CURSOR_NAME = "mlflow.json"


@dataclass(frozen=True)
class Cursor:
    """How far delivery to one tracking server has come."""

    key: str
    """Made up once per training, before anything is created: finds what a killed attempt made."""
    tracking_uri: str
    run_id: str | None = None
    offset: int = 0
    """Bytes of the log that have arrived."""
    status: str | None = None
    """How training ended, if it ended without saying so in the log (`FAILED`, `KILLED`)."""


def load_cursor(run_dir: Path, tracking_uri: str) -> Cursor:
    """The stored cursor, or a fresh one, stored. Another tracking server gets the whole log."""
    path = run_dir / CURSOR_NAME
    if path.exists():
        cursor = Cursor(**read_json(path))
        if cursor.tracking_uri == tracking_uri:
            return cursor
        cursor = replace(cursor, tracking_uri=tracking_uri, run_id=None, offset=0)
    else:
        cursor = Cursor(uuid.uuid4().hex, tracking_uri)
    save_cursor(run_dir, cursor)
    return cursor


def save_cursor(run_dir: Path, cursor: Cursor) -> None:
    """Write aside, force to disk, rename."""
    write_json(run_dir / CURSOR_NAME, asdict(cursor))


def read_events(run_dir: Path, offset: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
    """Complete events from `offset` on, each with the position behind it.

    A last line without its newline is still being written and is left for the next time.
    """
    path = run_dir / LOG_NAME
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            yield json.loads(line), offset


def last_event(run_dir: Path) -> dict[str, Any] | None:
    """The newest complete event; reads no more than the end of the log."""
    path = run_dir / LOG_NAME
    if not path.exists():
        return None
    with path.open("rb") as file:
        size = file.seek(0, 2)
        block = 4096
        while True:
            file.seek(max(0, size - block))
            tail = file.read()
            lines = tail[: tail.rfind(b"\n") + 1].splitlines()
            if len(lines) > 1 or (lines and block >= size):
                event: dict[str, Any] = json.loads(lines[-1])
                return event
            if block >= size:
                return None
            block *= 2


def pending(run_dir: Path, offset: int) -> bool:
    """True when a complete event stands behind `offset`."""
    return next(read_events(run_dir, offset), None) is not None
