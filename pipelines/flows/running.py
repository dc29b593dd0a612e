"""A training under way: the one handle by which it is followed, stopped and waited for.

Training blocks, so it runs in a daemon thread, and whoever started it keeps the main thread, which
alone takes signals. The workers are asked to end by the file STOP in the run's folder: they save a
checkpoint and write an `end` into the event log.
"""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future
from pathlib import Path
from typing import Generic, TypeVar

from gan_train.runs.events import Event, EventReader
from pipelines.compute.training import STOP, WORKER_LOG, clear
from pipelines.flows.progress import Warnings

POLL_S = 0.2
GRACE_S = 25.0
"""How long an interrupt waits for the checkpoints; a Prefect worker kills after 30 s."""

T = TypeVar("T")
Trained = TypeVar("Trained")


class RunningTraining(Generic[T]):
    """The training of one run, and what it tells of itself from now on."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self._events = EventReader.at_end(run_dir)
        self._warnings = Warnings(run_dir / WORKER_LOG)
        self._future: Future[T] = Future()
        self._trains_from: int | None = None  # while workers train: where in the log they began

    def start(self, work: Callable[[], T]) -> None:
        """Begin `work`, which calls `train` once or more, in a thread of its own.

        The thread has the context of the caller, which Prefect keeps a flow run in. It is a daemon,
        so that a second interrupt can always leave.
        """
        context = contextvars.copy_context()

        def run() -> None:
            try:
                self._future.set_result(context.run(work))
            except BaseException as error:  # handed to whoever asks for the result
                self._future.set_exception(error)

        threading.Thread(target=run, daemon=True, name=self.run_dir.name).start()

    def train(self, fit: Callable[[], Trained]) -> Trained:
        """Call `fit`, which trains until the schedule ends or STOP appears, and return its result.
        For the thread: what an earlier attempt left to end itself by is removed first."""
        clear(self.run_dir)
        self._trains_from = EventReader.at_end(self.run_dir).offset
        try:
            return fit()
        finally:
            self._trains_from = None

    @property
    def trains(self) -> bool:
        """Whether workers train right now."""
        return self._trains_from is not None

    @property
    def done(self) -> bool:
        """Whether the work has returned or failed."""
        return self._future.done()

    def result(self) -> T:
        """What the work returned; raises what it raised. Waits for its end."""
        return self._future.result()

    def error(self) -> BaseException | None:
        """What the work raised; None if it returned. Waits for its end."""
        return self._future.exception()

    def events(self) -> list[Event]:
        """The events of the log since the last call."""
        return self._events.new()

    def warnings(self) -> list[str]:
        """The workers' warnings since the last call, each said once in all."""
        return self._warnings.new()

    def stop(self) -> None:
        """Ask the workers to save a checkpoint and end."""
        (self.run_dir / STOP).touch()

    def saving(self) -> bool:
        """Whether there still is something to save: workers train, and have not told their end.

        Ray may have got the same signal as the caller, and then never tells that they are done.
        """
        since = self._trains_from
        if self.done or since is None:
            return False
        told = EventReader(self.run_dir, since).new()
        return not any(event["kind"] == "end" for event in told)


def save_and_end(trainings: Collection[RunningTraining[T]], grace_s: float = GRACE_S) -> None:
    """Stop all of them, and wait until their workers have saved, but no longer than `grace_s`."""
    deadline = time.monotonic() + grace_s
    while time.monotonic() < deadline and any(training.saving() for training in trainings):
        for training in trainings:  # again and again: one that just begins removes STOP
            training.stop()
        time.sleep(POLL_S)
