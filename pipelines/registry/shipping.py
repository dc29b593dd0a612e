"""Brings the event log of a run to MLflow while the run trains, and never holds the training up.

The workers only append to the log (`gan_train/runs/events.py`). Here, in the driver, a thread
follows the log. While the server is away, events wait in the log. An event that is sent twice is
recorded once (`tracking.py`), and the position in the log moves on only after delivery
(`spool.py`), so no kill, on either side, loses or doubles an event.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from gan_train.config import Config
from gan_train.data.index import Index
from gan_train.files.locks import locked
from gan_train.runs.events import LOG_NAME, Event, last_event, read_with_offsets
from gan_train.runs.shared import workspace_lock
from pipelines.registry.spool import Cursor, Placed, load_cursor, look, save_cursor
from pipelines.registry.tracking import Tracking, failures, tracking_uri

log = logging.getLogger(__name__)

LOOK_S, BEGIN_S = 0.2, 30.0
POLL_S = 1.0
RETRY_S = 5.0
DEADLINE_S = 20.0
_VALUES_PER_BATCH = 500
_AFTERWARDS = {"checkpoint", "passed_over", "diagnosis"}
"""Kinds of events that may stand behind the end of a training that has not gone on: scores that
were measured later (`gan-train evaluate`), and what a start told which repeated what the log has,
as where the last checkpoint had been damaged."""
_STATUS = {"finished": "FINISHED", "stopped": "KILLED"}


def batches(events: Iterable[Placed]) -> Iterator[tuple[list[Event], int]]:
    """Lists of events in the order of the log, with neighbouring metrics in one list; beside each
    list, the position behind its last event."""
    held: list[Event] = []
    values = 0
    end = 0
    for event, behind in events:
        together = event["kind"] == "metrics" and values < _VALUES_PER_BATCH
        if held and not together:
            yield held, end
            held, values = [], 0
        held.append(event)
        values += len(event["values"]) if event["kind"] == "metrics" else _VALUES_PER_BATCH
        end = behind
    if held:
        yield held, end


def ended(run_dir: Path) -> tuple[str, int] | None:
    """The MLflow status and the time at which training ended; None if it has not ended. Behind the
    end, the log may have events of `_AFTERWARDS`."""
    last = last_event(run_dir)
    if last is not None and last["kind"] in _AFTERWARDS:
        before = [e for e, _ in read_with_offsets(run_dir) if e["kind"] not in _AFTERWARDS]
        last = before[-1] if before else None
    if last is None or last["kind"] != "end":
        return None
    return _STATUS.get(last["status"], "FAILED"), last["time_ms"]


class Delivery:
    """Sends the log of one run to MLflow, in passes over one connection."""

    def __init__(self, config: Config, run_dir: Path, index: Index, ids: Mapping[str, str]) -> None:
        self.config, self.run_dir, self.index, self.ids = config, run_dir, index, ids
        self.tracking: Tracking | None = None
        self.cursor: Cursor | None = None

    def due(self) -> bool:
        """Whether a pass would have something to send; this is cheap to ask."""
        if self.cursor is None:
            return True
        return next(read_with_offsets(self.run_dir, self.cursor.offset), None) is not None

    def trains(self) -> None:
        """Note that training goes on: how an earlier attempt ended says nothing any more. MLflow
        is not told yet."""
        with locked(self.run_dir / "mlflow.lock"):
            cursor = load_cursor(self.run_dir, tracking_uri(self.config))
            if cursor.status is not None:
                self._keep(replace(cursor, status=None))

    def once(self, status: str | None = None) -> str:
        """Deliver all that the log holds now; returns the MLflow run's id.

        `status` is what the driver knows of the training: `RUNNING`, `FAILED`, `KILLED`, or
        nothing beyond the log. Raises one of `tracking.failures()`; the cursor remembers what
        has arrived until then.
        """
        with locked(self.run_dir / "mlflow.lock"):
            cursor = load_cursor(self.run_dir, tracking_uri(self.config))
            if status is not None and status != cursor.status:
                cursor = self._keep(replace(cursor, status=status))
            outlook = look(self.run_dir, cursor)
            if outlook.abandoned_from is not None:
                cursor = self._begin_anew(cursor, outlook.abandoned_from)
                outlook = look(self.run_dir, cursor)
            tracking = self._tracking(cursor)
            if cursor.lost and outlook.cut:  # what was abandoned may have arrived
                cursor = self._begin_anew(replace(cursor, run_id=tracking.run_id), 0)
                tracking = self._tracking(cursor)
            if cursor.run_id is None:
                cursor = self._keep(replace(cursor, run_id=tracking.run_id, lost=False))
            if outlook.cut and cursor.heeded < outlook.end:
                cursor = self._keep(replace(cursor, heeded=outlook.end))
            for events, behind in batches(outlook.events):
                cursor = self._keep(replace(cursor, sending=behind))
                tracking.deliver(events)
                cursor = self._keep(replace(cursor, offset=behind))
            if cursor.offset < outlook.end:  # behind the last list are abandoned events or a cut
                cursor = self._keep(replace(cursor, offset=outlook.end))
            self.cursor = cursor
            end = ended(self.run_dir)
            if status == "RUNNING" or end is None:
                tracking.set_status(cursor.status or "RUNNING")
            elif cursor.status in ("FAILED", "KILLED"):
                tracking.set_status(cursor.status)
            else:
                tracking.set_status(*end)
            return tracking.run_id

    def _keep(self, cursor: Cursor) -> Cursor:
        save_cursor(self.run_dir, cursor)
        return cursor

    def _tracking(self, cursor: Cursor) -> Tracking:
        """The MLflow run that the cursor belongs to, found or made."""
        if self.tracking is None:
            # runs that begin together would make the same data set in MLflow twice
            with workspace_lock(self.config, "tracking"):
                self.tracking = Tracking(self.config, self.run_dir, self.index, self.ids, cursor)
        return self.tracking

    def _begin_anew(self, cursor: Cursor, nimg: int) -> Cursor:
        """Close the MLflow run whose events were abandoned from `nimg` images on; returns the
        cursor of a new run that replaces it. The old run is marked first: after a kill in between,
        the old cursor leads here again."""
        self._tracking(cursor).abandon(nimg)
        self.tracking = None
        log.warning(
            "training went on otherwise from %s images than MLflow had been told: the run %s there "
            "is closed, and a new one tells all of it",
            *(f"{nimg:,}", cursor.run_id),
        )
        fresh = Cursor(uuid.uuid4().hex, cursor.tracking_uri, status=cursor.status)
        return self._keep(replace(fresh, follows=cursor.run_id))


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

    It begins with the first event that the workers add, or after `BEGIN_S` seconds: MLflow takes
    seconds to import, by which they would start later. Leaving the block ships what is left for at
    most `DEADLINE_S` seconds and never raises for an absent server: what remains stays in the log,
    and `ship` delivers it later.
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
        with suppress(OSError):  # a later pass notes it as well, unless it is the last one already
            self._delivery.trains()
        self._await_workers()
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

    def _await_workers(self) -> None:
        """Return once the workers have written an event, or soon. Those that repeat what the log of
        a resumed run holds write none for a while; a log that cannot be read is told of later."""
        end = time.monotonic() + BEGIN_S
        with suppress(OSError):
            before = last_event(self._run_dir)
            while time.monotonic() < end and not self._stop.wait(LOOK_S):
                if last_event(self._run_dir) != before:
                    return
