"""Attends to a training that runs in the background: progress, cancellation, the end.

Training blocks, so it runs in a thread; the main thread follows the event log and takes signals. An
interrupt (Ctrl-C, a cancelled flow run) becomes the file STOP: the workers save a checkpoint and
end, and only then does the interrupt go on.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

from gan_train.runs import run_folder
from gan_train.runs.events import LOG_NAME
from gan_train.runs.run_folder import Event
from pipelines.compute.training import STOP, WORKER_LOG, Outcome, clear
from pipelines.flows.progress import Display, LineReader, Warnings
from pipelines.flows.time_left import Forecast

POLL_S = 0.2
GRACE_S = 25.0
"""How long an interrupt waits for the checkpoint; a Prefect worker kills after 30 s."""


@dataclass
class Attention:
    """What the caller wants to hear of while the training runs; called from its own thread."""

    on_event: Callable[[Event], None] = lambda event: None
    cancelled: Callable[[], bool] = lambda: False
    every_s: float = 10.0
    """How often `cancelled` is asked and `on_progress` told."""
    on_progress: Callable[[float], None] = lambda fraction: None
    _due: float = field(default=0.0, repr=False)

    def due(self) -> bool:
        """True once every `every_s` seconds."""
        now = time.monotonic()
        if now < self._due:
            return False
        self._due = now + self.every_s
        return True


@dataclass(frozen=True)
class Ended:
    """How the training ended: at the end of its schedule, or stopped on the way."""

    finished: bool
    nimg: int
    outcome: Outcome


def attend(
    training: Callable[[], Outcome], run_dir: Path, forecast: Forecast, attention: Attention
) -> Ended:
    """Run `training` to the end, or until an interrupt; `forecast` knows its schedule.

    Raises what `training` raises, and passes interrupts on after the workers saved a checkpoint.
    """
    clear(run_dir)
    events = LineReader(run_dir / LOG_NAME, skip=True)
    warnings = Warnings(run_dir / WORKER_LOG)
    before = run_folder.read_events(run_dir)
    for event in before:
        forecast.take(event)
    forecast.nimg = run_folder.reached(before)
    display = Display(forecast)
    running = _in_thread(training)

    def look() -> None:
        for line in events.new():
            event = json.loads(line)
            display.show(event)
            attention.on_event(event)
        for message in warnings.new():
            display.say(message)
        if attention.due():
            attention.on_progress(display.done / display.total)
            if attention.cancelled():
                (run_dir / STOP).touch()

    ends = _ends(run_dir)

    def ended() -> bool:
        return _ends(run_dir) > ends

    try:
        while not running.done():
            look()
            time.sleep(POLL_S)
        look()
        outcome = running.result()
    finally:
        if not running.done():
            display.say("stopping: the workers save a checkpoint ...")
            (run_dir / STOP).touch()
            deadline = time.monotonic() + GRACE_S
            # Ray itself may have got the signal, too, and never tell that the workers are done
            while not running.done() and not ended() and time.monotonic() < deadline:
                time.sleep(POLL_S)
            display.say(f"go on later with --resume {run_dir.name}")
        display.close()
    after = run_folder.read_events(run_dir)
    return Ended(run_folder.finished(after), max((e["nimg"] for e in after), default=0), outcome)


def _ends(run_dir: Path) -> int:
    return sum(event["kind"] == "end" for event in run_folder.read_events(run_dir))


def _in_thread(work: Callable[[], Outcome]) -> Future[Outcome]:
    """Run in a daemon thread, so that a second interrupt can always leave."""
    future: Future[Outcome] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # handed to whoever asks for the result
            future.set_exception(error)

    threading.Thread(target=run, daemon=True, name="training").start()
    return future
