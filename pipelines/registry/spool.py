"""Keeps account of which events of a run's log have been delivered to MLflow.

The log itself is the spool (`gan_train/runs/events.py`). The file `mlflow.json` beside it holds the
position up to which everything has arrived. The position moves only after a delivery, so after a
kill in between the same events are delivered again: delivery must be repeatable without effect.

A cut in the log abandons events. Abandoned events that were not delivered yet are left out. If some
were delivered, `look` says so, and a new MLflow run must take the events that count from the first
one on. Nothing here imports MLflow.
"""

from __future__ import annotations

import logging
import math
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from gan_train.files.atomic import read_json, write_json
from gan_train.runs.events import LOG_NAME, Event, read_with_offsets

CURSOR_NAME = "mlflow.json"

log = logging.getLogger(__name__)

Placed = tuple[Event, int]
"""An event, and the byte position behind it in the log."""


@dataclass(frozen=True)
class Cursor:
    """How far delivery to one tracking server has come. Positions are bytes of the log."""

    key: str
    """A random name, stored before the MLflow run is made: finds the run of a killed attempt."""
    tracking_uri: str
    run_id: str | None = None
    offset: int = 0
    """Events before this position have arrived, or were abandoned before they were sent."""
    status: str | None = None
    """How training ended, if it ended without saying so in the log (`FAILED`, `KILLED`)."""
    sending: int = 0
    """The position up to which a delivery was begun: events behind `offset` may have arrived."""
    heeded: int = 0
    """The position up to which cuts have been acted on."""
    follows: str | None = None
    """The id of the MLflow run that this one replaces, because its events were abandoned."""
    lost: bool = False
    """Whether the file was damaged: the MLflow run is then found by what the log says of it."""


def load_cursor(run_dir: Path, tracking_uri: str) -> Cursor:
    """The stored cursor, or else a new one, which is stored. It is new for another tracking server,
    if the log is shorter than the stored position, and if the file is damaged: the whole log is
    then sent, which leaves what has arrived as it is."""
    path = run_dir / CURSOR_NAME
    stored, lost = None, False
    if path.exists():
        try:
            stored = Cursor(**read_json(path))
        except (ValueError, TypeError):
            lost = True
            log.warning("%s is damaged; the whole log is sent to MLflow again", path)
    cursor = stored or Cursor(uuid.uuid4().hex, tracking_uri, lost=lost)
    if cursor.tracking_uri != tracking_uri:
        cursor = Cursor(cursor.key, tracking_uri, status=cursor.status)
    events = run_dir / LOG_NAME
    if cursor.offset > (events.stat().st_size if events.exists() else 0):
        cursor = replace(cursor, offset=0, sending=0, heeded=0)
    if cursor != stored:
        save_cursor(run_dir, cursor)
    return cursor


def save_cursor(run_dir: Path, cursor: Cursor) -> None:
    """Store the cursor: write a new file, force it to disk, rename it."""
    write_json(run_dir / CURSOR_NAME, asdict(cursor))


@dataclass(frozen=True)
class Outlook:
    """What is to be delivered next."""

    events: Sequence[Placed]
    """Events behind the cursor that were not abandoned, oldest first."""
    end: int
    """The position behind all that was read."""
    cut: bool
    """Whether a cut was read."""
    abandoned_from: int | None
    """The number of images from which on delivered events were abandoned; None if none were."""


def look(run_dir: Path, cursor: Cursor) -> Outlook:
    """Read the log behind the cursor, and find which events new cuts have abandoned."""
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
    """The events that no later cut among them abandons, without the cuts themselves."""
    kept: list[Placed] = []
    lowest = math.inf
    for event, behind in reversed(events):
        if event["kind"] == "cut":
            lowest = min(lowest, event["nimg"])
        elif event["nimg"] < lowest:
            kept.append((event, behind))
    return kept[::-1]
