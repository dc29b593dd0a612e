"""The event log of a run: a JSON-lines file that rank 0 appends to, and any process may read.

`EventLog` writes, and never waits for a reader; everything else here reads. `pipelines/registry`
copies the log to MLflow; without MLflow the log is the only record. It has one event on each line:

    {"kind": "start", "nimg": 0, "time_ms": 1700000000000, "precision": "bf16",
     "device": "NVIDIA H100", "images": 8897, "classes": 26, "resolution": 32}
    {"kind": "metrics", "nimg": 4000, "time_ms": ..., "values": {"loss/D": 1.2}}
    {"kind": "image", "nimg": 4000, "time_ms": ..., "path": "samples/000004000.png"}
    {"kind": "checkpoint", "nimg": 4000, "time_ms": ..., "path": "checkpoints/000004000",
     "scores": {...}, "precision": "bf16", "resolution": 8, "alpha": 1.0}
    {"kind": "passed_over", "nimg": 4000, "time_ms": ..., "checkpoints": {"000008000": "why"}}
    {"kind": "diagnosis", "nimg": 4000, "time_ms": ..., "found": [{"name": "mode collapse",
     "since": 2000, "evidence": "..."}]}
    {"kind": "diverged", "nimg": 4000, "time_ms": ..., "what": "loss/D not finite"}
    {"kind": "rolled_back", "nimg": 2000, "time_ms": ..., "number": 1, "why": "..."}
    {"kind": "cut", "nimg": 4000, "time_ms": ...}
    {"kind": "end", "nimg": 4000, "time_ms": ..., "status": "finished"}

Paths are relative to the run folder. A resumed run trains again on the images since its checkpoint.
If it repeats them bit for bit, its events are already in the log, and are not written twice. If it
does not (on a GPU, on another kind of processor, under changed settings), a `cut` is written: the
events before it in the file, at its `nimg` or later, no longer belong to the run. They are called
abandoned, and all others present.

A line that holds no event is damaged: readers leave it out, and the next writer copies it to
`events.damaged.jsonl` beside the log. It stays in the log, because followers count its bytes.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gan_train.files.atomic import append, write_aside

LOG_NAME = "events.jsonl"
DAMAGED_NAME = "events.damaged.jsonl"
"""Beside the log: its damaged lines, each with its number."""

Event = dict[str, Any]

log = logging.getLogger(__name__)

_VARYING = {"images_per_second", "memory_gib"}
"""Values of a `metrics` event that differ between machines, and from hour to hour."""
_BESIDE = {"checkpoint", "passed_over", "diagnosis", "diverged", "rolled_back"}
"""Kinds of which an event may come where the log has gone on without it."""
_FIELDS: dict[str, dict[str, type]] = {
    "metrics": {"values": dict},
    "image": {"path": str},
    "checkpoint": {"scores": dict},
    "passed_over": {"checkpoints": dict},
    "diagnosis": {"found": list},
    "diverged": {"what": str},
    "rolled_back": {"number": int, "why": str},
    "end": {"status": str},
}
_LONGEST = 16 << 20
"""No event comes near this number of bytes: a longer line is damaged, and is read in parts."""


# ---- reading -----------------------------------------------------------------------------------


def read_with_offsets(run_dir: Path, offset: int = 0) -> Iterator[tuple[Event, int]]:
    """All complete events of the file from byte `offset` on, including cuts and abandoned events,
    each with the byte position behind it.

    A last line without its newline is still being written, and is left out.
    """
    for event, _, behind in _lines(run_dir, offset):
        if event is not None:
            yield event, behind


def _lines(run_dir: Path, offset: int = 0) -> Iterator[tuple[Event | None, int, int]]:
    """The complete lines from byte `offset` on: the event, or None where the line is damaged, and
    the positions of its first byte and behind it."""
    path = run_dir / LOG_NAME
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(offset)
        begin = offset
        while line := file.readline(_LONGEST):
            offset += len(line)
            if not line.endswith(b"\n"):
                if len(line) < _LONGEST:
                    return  # it is still being written
                continue
            yield (parse(line) if offset - begin == len(line) else None), begin, offset
            begin = offset


def parse(line: bytes) -> Event | None:
    """The event in a line of the log; None if it holds none."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(event, dict) or not isinstance(kind := event.get("kind"), str):
        return None
    if type(nimg := event.get("nimg")) is not int or nimg < 0:
        return None
    fields = _FIELDS.get(kind, {})
    return event if all(isinstance(event.get(key), of) for key, of in fields.items()) else None


def present(events: Iterable[Event]) -> list[Event]:
    """The events that no later cut abandoned, without the cuts themselves."""
    kept: list[Event] = []
    for event in events:
        if event["kind"] == "cut":
            kept = [earlier for earlier in kept if earlier["nimg"] < event["nimg"]]
        else:
            kept.append(event)
    return kept


def lasting(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a `metrics` event that a repetition gives again."""
    return {key: value for key, value in values.items() if key not in _VARYING}


def read_events(run_dir: Path) -> list[Event]:
    """The events of the run so far, without cuts and abandoned events."""
    return present(event for event, _ in read_with_offsets(run_dir))


def last_event(run_dir: Path) -> Event | None:
    """The newest complete event of the file, or None. Only the end of the file is read."""
    path = run_dir / LOG_NAME
    if not path.exists():
        return None
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        block = 4096
        while True:
            file.seek(max(0, size - block))
            tail = file.read()
            lines = tail[: tail.rfind(b"\n") + 1].split(b"\n")
            whole = lines if block >= size else lines[1:]  # the first one may begin before
            for line in reversed(whole):
                if (event := parse(line)) is not None:
                    return event
            if block >= size:
                return None
            block *= 2


class EventReader:
    """Follows the log of a run, cuts and abandoned events included.

    `offset` is the byte position behind the last event that was read.
    """

    def __init__(self, run_dir: Path, offset: int = 0) -> None:
        self.run_dir, self.offset = run_dir, offset

    @classmethod
    def at_end(cls, run_dir: Path) -> EventReader:
        """A reader of the events that are appended from now on.

        An incomplete last line counts as not written yet: a resumed run overwrites it.
        """
        return cls(run_dir, end_of_lines(run_dir / LOG_NAME))

    def new(self) -> list[Event]:
        """The complete events since the last call, oldest first."""
        found = []
        for event, behind in read_with_offsets(self.run_dir, self.offset):
            found.append(event)
            self.offset = behind
        return found


def end_of_lines(path: Path) -> int:
    """The byte position behind the last newline of a file; 0 where there is none."""
    if not path.exists():
        return 0
    with path.open("rb") as file:
        end, block = file.seek(0, os.SEEK_END), 4096
        while end > 0:
            start = max(0, end - block)
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            end = start
    return 0


# ---- writing -----------------------------------------------------------------------------------


class EventLog:
    """Appends the events of one run. An incomplete last line, left by a kill, is removed first.

    Only one process may write the log of a run (`run_folder.exclusive`).
    """

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / LOG_NAME
        if self.path.exists():
            os.truncate(self.path, end_of_lines(self.path))
        self._set_aside()
        self._reached = -1  # the largest nimg of all present events
        self._held: dict[tuple[str, int], list[Event]] = {}  # the present events by kind and nimg
        self._ends: list[Event] = []  # the present ones in the order of the log
        self._told: list[Event] = []  # the events that this object was given at the newest nimg
        for event in read_events(run_dir):
            self._hold(event)

    def append(self, kind: str, nimg: int, **fields: Any) -> Event:
        """Write one event, unless the log has it already; returns it as the log has it.

        If the event contradicts the log, a `cut` is written first. It does if the log has another
        start or other metrics at this `nimg`, or has no event of this kind at this `nimg` but goes
        on beyond it. Three events never contradict the log: an `end` with another status at the
        same `nimg` (of a stopped run whose schedule now ends there); the `end` of a run that was
        stopped while it repeated what the log has, and may go on to repeat the rest; and the scores
        of a checkpoint, which may be measured again at any time, also under another protocol.
        """
        event = {"kind": kind, "nimg": nimg, "time_ms": time.time_ns() // 1_000_000, **fields}
        if self._told and self._told[0]["nimg"] != nimg:
            self._told = []
        known = self._held.get((kind, nimg), [])
        # of several ends only the newest counts: the run may have gone on, and back, since others
        held = [end for end in self._ends[-1:] if end["nimg"] == nimg] if kind == "end" else known
        if same := [old for old in held if _agree(event, old)]:
            self._told.append(same[-1])
            return same[-1]
        lines = [event]
        differs = kind in ("start", "metrics") and bool(known)
        beside = kind in _BESIDE or event.get("status") == "stopped"
        passed = not beside and not known and nimg < self._reached
        if differs or passed:
            # the cut also abandons this attempt's own events at the same nimg: write them again
            lines = [{"kind": "cut", "nimg": nimg, "time_ms": event["time_ms"]}, *self._told, event]
            self._held = {key: held for key, held in self._held.items() if key[1] < nimg}
            self._ends = [end for end in self._ends if end["nimg"] < nimg]
            self._reached = max((key[1] for key in self._held), default=-1)
        append(self.path, "".join(json.dumps(line) + "\n" for line in lines).encode())
        for line in lines:
            if line["kind"] != "cut":
                self._hold(line)
        self._told.append(event)
        return event

    def _set_aside(self) -> None:
        """Copy the damaged lines of the log beside it, and tell of them."""
        found = [(begin, behind) for event, begin, behind in _lines(self.path.parent) if not event]
        if not found:
            return
        kept = []
        with self.path.open("rb") as file:
            for begin, behind in found:
                file.seek(begin)
                line = file.read(min(behind - begin, _LONGEST)).decode(errors="backslashreplace")
                kept.append({"byte": begin, "bytes": behind - begin, "line": line})
        beside = self.path.with_name(DAMAGED_NAME)
        write_aside(beside, "".join(json.dumps(line) + "\n" for line in kept).encode())
        log.error(
            "DAMAGED EVENT LOG: %d lines of %s hold no event and are left out, the first at byte "
            "%d; they are in %s, and all others stand",
            *(len(found), self.path, found[0][0], beside.name),
        )

    def _hold(self, event: Event) -> None:
        self._held.setdefault((event["kind"], event["nimg"]), []).append(event)
        if event["kind"] == "end":
            self._ends.append(event)
        self._reached = max(self._reached, event["nimg"])


def _agree(a: Event, b: Event) -> bool:
    """Whether two events of one kind and nimg agree in all that both hold.

    Fields of only one of them do not count: another version of the program may log more.
    """
    both = (a.keys() & b.keys()) - {"time_ms", "values", "device", "environment"}
    if any(_text(a[key]) != _text(b[key]) for key in both):
        return False
    values, others = a.get("values", {}), b.get("values", {})
    common = (values.keys() & others.keys()) - _VARYING
    return all(_text(values[key]) == _text(others[key]) for key in common)


def _text(value: Any) -> str:
    """The value as the log has it. As text, NaN equals NaN, and a tuple equals a list."""
    return json.dumps(value, sort_keys=True)
