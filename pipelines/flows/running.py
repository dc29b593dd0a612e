"""Runs a training in the background: a handle to follow it, stop it and wait for it.

Training blocks, so it runs in a daemon thread. The caller keeps the main thread, the only one that
takes signals. The workers are asked to end by the file STOP in the run's folder: they save a
checkpoint and write an `end` into the event log.
"""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Generic, TypeVar

from gan_train.runs.events import Event, EventReader
from pipelines.compute import cluster
from pipelines.compute.cluster import THREAD, RayEnded
from pipelines.compute.training import STOP, WORKER_LOG, clear
from pipelines.flows.progress import Warnings

POLL_S = 0.2
GRACE_S = 25.0
"""Seconds that an interrupt waits for checkpoints; a Prefect worker kills the flow after 30 s."""
LEAVE_S = 5.0
"""Seconds of these that an interrupt waits for Ray to end the workers, once they have saved. As
many are left to the threads of trainings whose Ray has ended."""

T = TypeVar("T")
Trained = TypeVar("Trained")


class RunningTraining(Generic[T]):
    """The training of one run, with the events and warnings that it writes from now on."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self._events = EventReader.at_end(run_dir)
        self._warnings = Warnings(run_dir / WORKER_LOG)
        self._future: Future[T] = Future()
        self._trains_from: int | None = None  # the log's length when workers began

    def start(self, work: Callable[[], T]) -> None:
        """Begin `work`, which calls `train` once or more, in a thread of its own.

        The thread has the caller's context variables, in which Prefect keeps the flow run. It is a
        daemon, so that a second interrupt can always end the process.
        """
        context = contextvars.copy_context()

        def run() -> None:
            try:
                self._future.set_result(context.run(work))
            except BaseException as error:  # `result` raises it, and `error` returns it
                self._future.set_exception(error)

        threading.Thread(target=run, daemon=True, name=THREAD + self.run_dir.name).start()

    def train(self, fit: Callable[[], Trained]) -> Trained:
        """Call `fit`, which trains until the schedule ends or STOP appears, and return its result.
        Call it in the thread. Files STOP and REFUSED of an earlier attempt are removed first."""
        clear(self.run_dir)
        self._trains_from = EventReader.at_end(self.run_dir).offset
        try:
            trained = fit()
        except RayEnded:  # the workers may outlive Ray for as long as they take to save
            raise
        except BaseException:
            self._trains_from = None
            raise
        self._trains_from = None
        return trained

    @property
    def trains(self) -> bool:
        """Whether workers train right now."""
        return self._trains_from is not None and not self.done

    @property
    def done(self) -> bool:
        """Whether the work has returned or failed."""
        return self._future.done()

    def wait(self, seconds: float) -> None:
        """Return when the work has returned or failed, or after `seconds`. An interrupt ends it."""
        wait([self._future], seconds)

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
        """The workers' warnings since the last call, without those that were returned before."""
        return self._warnings.new()

    def stop(self) -> None:
        """Ask the workers to save a checkpoint and end."""
        (self.run_dir / STOP).touch()

    def saving(self) -> bool:
        """Whether there still is something to save: workers train, and have not logged their end.

        The log is asked because Ray may have got the same signal as the caller, as from a Prefect
        worker, and then never says that the workers are done.
        """
        since = self._trains_from
        if since is None:
            return False
        told = EventReader(self.run_dir, since).new()
        # an end that other events follow was that of a smaller or larger group of workers
        return not told or told[-1]["kind"] != "end"


def save_and_end(trainings: Collection[RunningTraining[T]], grace_s: float = GRACE_S) -> None:
    """Stop all trainings, and wait at most `grace_s` seconds until their workers have saved and
    ended. Call it within `stop_signals.one_term`: Prefect would hear each SIGTERM anew, and the
    second would end the wait."""
    deadline = time.monotonic() + grace_s
    while time.monotonic() < deadline and any(training.saving() for training in trainings):
        for training in trainings:  # repeated, because a training that just begins removes STOP
            training.stop()
        time.sleep(POLL_S)
    for training in trainings:
        training.wait(min(LEAVE_S, max(0.0, deadline - time.monotonic())))


def leave_ray(trainings: Collection[RunningTraining[T]]) -> None:
    """Leave a Ray that has ended, so that it does not end this process, once the threads of the
    trainings have noticed it, too."""
    deadline = time.monotonic() + LEAVE_S
    for training in trainings:
        training.wait(max(0.0, deadline - time.monotonic()))
    cluster.leave()
