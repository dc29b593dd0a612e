"""The event log as a spool: what has been delivered to MLflow, and what has not.

The log itself is the spool (`gan_train/runs/events.py`). Beside it stands `mlflow.json`, the
position up to which everything arrived. It moves forward only after delivery, so a kill in between
makes the same events be delivered again, never lost: whoever delivers must not mind a repetition.

An MLflow run holds one past. A cut in the log abandons events; those that were not delivered yet
are left out, and where some were, `look` says so, and a new MLflow run must tell the present from
its beginning. Nothing here knows MLflow.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from gan_train.files.atomic import read_json, write_json
from gan_train.runs.events import LOG_NAME, Event, read_with_offsets

CURSOR_NAME = "mlflow.json"

Placed = tuple[Event, int]
"""An event, and the byte position behind it in the log."""


@dataclass(frozen=True)
class Cursor:
    """How far delivery to one tracking server has come. Positions are bytes of the log."""

    key: str
    """Made up once for each MLflow run, before it is created: finds what a killed attempt made."""
    tracking_uri: str
    run_id: str | None = None
    offset: int = 0
    """What stands before this position has arrived, or was abandoned before it was sent."""
    status: str | None = None
    """How training ended, if it ended without saying so in the log (`FAILED`, `KILLED`)."""
    sending: int = 0
    """The position up to which a delivery was begun; what lies between may have arrived."""
    heeded: int = 0
    """The position up to which cuts are taken account of."""
    follows: str | None = None
    """The MLflow run that told a past which was abandoned, and which this one replaces."""


def load_cursor(run_dir: Path, tracking_uri: str) -> Cursor:
    """The stored cursor, or a fresh one, stored. Another tracking server gets the whole log, and so
    does the same one when an older, shorter log was put back."""
    path = run_dir / CURSOR_NAME
    stored = Cursor(**read_json(path)) if path.exists() else None
    cursor = stored or Cursor(uuid.uuid4().hex, tracking_uri)
    if cursor.tracking_uri != tracking_uri:
        cursor = Cursor(cursor.key, tracking_uri, status=cursor.status)
    log = run_dir / LOG_NAME
    if cursor.offset > (log.stat().st_size if log.exists() else 0):
        cursor = replace(cursor, offset=0, sending=0, heeded=0)
    if cursor != stored:
        save_cursor(run_dir, cursor)
    return cursor


def save_cursor(run_dir: Path, cursor: Cursor) -> None:
    """Write aside, force to disk, rename."""
    write_json(run_dir / CURSOR_NAME, asdict(cursor))


@dataclass(frozen=True)
class Outlook:
    """What is to be delivered next."""

    events: Sequence[Placed]
    """Events of the present behind the cursor, oldest first."""
    end: int
    """The position behind all that was read."""
    cut: bool
    """Whether a cut was read."""
    abandoned_from: int | None
    """Where something that was delivered has been abandoned: the number of images from which on."""


def look(run_dir: Path, cursor: Cursor) -> Outlook:
    """Read the log behind the cursor, and heed the cuts that are new there."""
    tail = list(read_with_offsets(run_dir, cursor.offset))
    end = tail[-1][1] if tail else cursor.offset
    known = max(cursor.offset, cursor.heeded)
    cuts = [event["nimg"] for event, behind in tail if event["kind"] == "cut" and behind > known]
    abandoned_from = None
    if cuts and cursor.run_id is not None:
        arrived = max(cursor.offset, cursor.sending)
        before = [
            placed for placed in read_with_offsets(run_dir) if placed[1] <= max(arrived, known)
        ]
        delivered = [event for event, behind in without_abandoned(before) if behind <= arrived]
        if any(event["nimg"] >= min(cuts) for event in delivered):
            abandoned_from = min(cuts)
    cut = any(event["kind"] == "cut" for event, _ in tail)
    return Outlook(without_abandoned(tail), end, cut, abandoned_from)


def without_abandoned(events: Sequence[Placed]) -> list[Placed]:
    """The events that no later one of these cuts off, without the cuts themselves."""
    kept: list[Placed] = []
    lowest = math.inf
    for event, behind in reversed(events):
        if event["kind"] == "cut":
            lowest = min(lowest, event["nimg"])
        elif event["nimg"] < lowest:
            kept.append((event, behind))
    return kept[::-1]
