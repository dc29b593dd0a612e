"""A run's event log, brought to MLflow from beside the training, which it never holds up.

The workers only append to the log (`gan_train/runs/events.py`). Here, in the driver, a thread
follows it. While the server is away the log is the spool. What is sent twice stands once
(`tracking.py`), and the position moves on only after delivery (`spool.py`): killing either side
loses nothing and doubles nothing.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from gan_train.config import Config
from gan_train.data.index import Index
from gan_train.files.locks import locked
from gan_train.runs.events import LOG_NAME
from pipelines.registry.spool import (
    Cursor,
    last_event,
    load_cursor,
    pending,
    read_events,
    save_cursor,
)
from pipelines.registry.tracking import Tracking, failures, tracking_uri

log = logging.getLogger(__name__)

POLL_S = 1.0
RETRY_S = 5.0
DEADLINE_S = 20.0
_VALUES_PER_BATCH = 500
_STATUS = {"finished": "FINISHED", "stopped": "KILLED"}


def batches(run_dir: Path, offset: int) -> Iterator[tuple[list[dict[str, Any]], int]]:
    """Events behind `offset`, neighbouring metrics together; each list with the place behind it."""
    held: list[dict[str, Any]] = []
    values = 0
    end = offset
    for event, behind in read_events(run_dir, offset):
        together = event["kind"] == "metrics" and values < _VALUES_PER_BATCH
        if held and not together:
            yield held, end
            held, values = [], 0
        held.append(event)
        values += len(event["values"]) if event["kind"] == "metrics" else _VALUES_PER_BATCH
        end = behind
    if held:
        yield held, end


def _ended(run_dir: Path) -> tuple[str, int] | None:
    """Status and time of the training's end, if the log ends with it, or with scores that were
    measured after it."""
    last = last_event(run_dir)
    if last is not None and last["kind"] == "checkpoint":
        before = [event for event, _ in read_events(run_dir) if event["kind"] != "checkpoint"]
        last = before[-1] if before else None
    if last is None or last["kind"] != "end":
        return None
    return _STATUS.get(last["status"], "FAILED"), last["time_ms"]


class Delivery:
    """Passes over the log of one run. The connection is made once and kept."""

    def __init__(self, config: Config, run_dir: Path, index: Index, ids: Mapping[str, str]) -> None:
        self.config, self.run_dir, self.index, self.ids = config, run_dir, index, ids
        self.tracking: Tracking | None = None
        self.cursor: Cursor | None = None

    def due(self) -> bool:
        """True when a pass would have something to do. Cheap."""
        return self.cursor is None or pending(self.run_dir, self.cursor.offset)

    def once(self, status: str | None = None) -> str:
        """Deliver all that the log holds now; returns the MLflow run's id.

        `status` is what the driver knows of the training: `RUNNING`, `FAILED`, `KILLED`, or
        nothing beyond the log. Raises one of `tracking.failures()`; what has arrived until then
        is remembered.
        """
        with locked(self.run_dir / "mlflow.lock"):
            cursor = load_cursor(self.run_dir, tracking_uri(self.config))
            path = self.run_dir / LOG_NAME
            if cursor.offset > (path.stat().st_size if path.exists() else 0):
                cursor = replace(cursor, offset=0)  # an older log was put back: all of it again
            if status is not None and status != cursor.status:
                cursor = replace(cursor, status=status)
                save_cursor(self.run_dir, cursor)
            if self.tracking is None:
                # runs that begin together would make the same data set in MLflow twice
                with locked(self.config.workspace / "tracking.lock"):
                    self.tracking = Tracking(
                        self.config, self.run_dir, self.index, self.ids, cursor.key, cursor.run_id
                    )
            if cursor.run_id is None:
                cursor = replace(cursor, run_id=self.tracking.run_id)
                save_cursor(self.run_dir, cursor)
            for events, behind in batches(self.run_dir, cursor.offset):
                self.tracking.deliver(events)
                cursor = replace(cursor, offset=behind)
                save_cursor(self.run_dir, cursor)
            self.cursor = cursor
            ended = _ended(self.run_dir)
            if status == "RUNNING" or ended is None:
                self.tracking.set_status(cursor.status or "RUNNING")
            elif cursor.status in ("FAILED", "KILLED"):
                self.tracking.set_status(cursor.status)
            else:
                self.tracking.set_status(*ended)
            return self.tracking.run_id


def ship(config: Config, run_dir: Path, index: Index, ids: Mapping[str, str]) -> bool:
    """Deliver what is left of the log. True when all of it has arrived; False, with a warning, when
    the server is away."""
    try:
        Delivery(config, run_dir, index, ids).once()
    except failures() as error:
        _warn(config, run_dir, error)
        return False
    return True


def _warn(config: Config, run_dir: Path, error: Exception) -> None:
    first = str(error).splitlines()[0] if str(error) else type(error).__name__
    log.warning(
        "MLflow at %s does not take what it is sent; it is kept in %s and sent later: %s",
        tracking_uri(config),
        run_dir / LOG_NAME,
        first[:300],
    )


class Shipper:
    """Follows the log of a running training from a thread; use it as a context manager.

    Leaving the block ships what is left for at most `DEADLINE_S` seconds and never raises for an
    absent server: what remains stays in the log, and `ship` delivers it later.
    """

    def __init__(self, config: Config, run_dir: Path, index: Index, ids: Mapping[str, str]) -> None:
        self._config, self._run_dir = config, run_dir
        self._delivery = Delivery(config, run_dir, index, ids)
        self._status = "RUNNING"
        self._stop = threading.Event()
        self._arrived = False
        self._thread = threading.Thread(target=self._follow, name="mlflow-shipper", daemon=True)

    @property
    def mlflow_run_id(self) -> str | None:
        """The MLflow run's id, once the server has been reached."""
        tracking = self._delivery.tracking
        return tracking.run_id if tracking else None

    def __enter__(self) -> Shipper:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:  # interrupts and cancellations are no Exceptions
            self._status = "FAILED" if issubclass(kind, Exception) else "KILLED"
        else:
            self._status = ""
        self._stop.set()
        self._thread.join(DEADLINE_S)
        if not self._arrived:
            log.warning(
                "not all of %s has reached MLflow at %s; nothing is lost, and the next run with "
                "the same folder sends the rest",
                self._run_dir / LOG_NAME,
                tracking_uri(self._config),
            )

    def _follow(self) -> None:
        away = False
        while True:
            last = self._stop.is_set()
            try:
                if last or self._delivery.due():
                    self._delivery.once(self._status or None)
                    if away:
                        log.warning("MLflow at %s is back", tracking_uri(self._config))
                    away = False
            except failures() as error:
                if not away:
                    _warn(self._config, self._run_dir, error)
                away = True
            if last:
                self._arrived = not away
                return
            self._stop.wait(RETRY_S if away else POLL_S)
