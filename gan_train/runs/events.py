"""The event log of a run: an append-only JSON-lines file that anything may follow.

Rank 0 writes, and never waits for a reader. `pipelines/registry/shipping.py` brings the log to
MLflow; without MLflow it is the run's own record. One event a line:

    {"kind": "metrics", "nimg": 4000, "time_ms": 1700000000000, "values": {"loss/D": 1.2}}
    {"kind": "image", "nimg": 4000, "time_ms": ..., "path": "samples/000004000.png"}
    {"kind": "checkpoint", "nimg": 4000, "time_ms": ..., "path": "checkpoints/000004000",
     "scores": {...}, "resolution": 8, "alpha": 1.0}
    {"kind": "end", "nimg": 4000, "time_ms": ..., "status": "finished"}

Paths are relative to the run's folder. A resumed run repeats the images since its checkpoint bit
for bit, so events that the log already holds are not written again: each stands once.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

LOG_NAME = "events.jsonl"


class EventLog:
    """Appends events of one run; a torn last line (a kill in mid-write) is cut off on opening."""

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / LOG_NAME
        self._last: dict[str, int] = {}  # kind -> nimg of the newest event of that kind
        self._status: str | None = None  # of the newest end
        if self.path.exists():
            good = 0
            with self.path.open("rb") as file:
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    event = json.loads(line)
                    self._last[event["kind"]] = event["nimg"]
                    self._status = event.get("status", self._status)
                    good += len(line)
            os.truncate(self.path, good)

    def append(self, kind: str, nimg: int, **fields: Any) -> None:
        """Write one event unless the log already reached `nimg` for this kind.

        A run that was stopped, and whose schedule now ends where it stands, may say so.
        """
        last = self._last.get(kind, -1)
        ends_otherwise = kind == "end" and nimg == last and fields["status"] != self._status
        if nimg <= last and not ends_otherwise:
            return
        self._last[kind], self._status = nimg, fields.get("status", self._status)
        event = {"kind": kind, "nimg": nimg, "time_ms": time.time_ns() // 1_000_000, **fields}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")
