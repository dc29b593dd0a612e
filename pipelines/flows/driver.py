"""Follows a training that runs in the background: progress, cancellation, the end.

An interrupt (Ctrl-C, a cancelled flow run) stops the workers, and is raised again once they have
saved a checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from gan_train.runs import run_folder
from gan_train.runs.events import Event
from pipelines.compute.cluster import RayEnded, check_alive
from pipelines.compute.training import Outcome
from pipelines.flows.progress import Display
from pipelines.flows.running import RunningTraining, leave_ray, save_and_end
from pipelines.flows.time_left import Forecast

LOOK_S = 1.0
"""Seconds between two looks at what the workers have written; the end is noticed at once."""


@dataclass
class Attention:
    """Functions that are called while the training runs, in the caller's own thread."""

    on_event: Callable[[Event], None] = lambda event: None
    on_warning: Callable[[str], None] = lambda message: None
    """Is called with each warning of the workers."""
    cancelled: Callable[[], bool] = lambda: False
    every_s: float = 10.0
    """Seconds between two calls of `cancelled` and `on_progress`."""
    on_progress: Callable[[float], None] = lambda fraction: None
    """Is called with the share of the schedule that is done, from 0 to 1."""
    _due: float = field(default=0.0, repr=False)

    def due(self) -> bool:
        """True once in `every_s` seconds."""
        now = time.monotonic()
        if now < self._due:
            return False
        self._due = now + self.every_s
        return True


@dataclass(frozen=True)
class Ended:
    """How a training ended: at the end of its schedule, or stopped on the way."""

    finished: bool
    nimg: int
    """The number of images that the run has seen."""
    outcome: Outcome


def attend(
    training: Callable[[], Outcome], run_dir: Path, forecast: Forecast, attention: Attention
) -> Ended:
    """Run `training` to the end, or until an interrupt; `forecast` knows its schedule.

    Raises what `training` raises, an interrupt after the workers saved a checkpoint, and RayEnded
    when Ray has ended on this machine.
    """
    before = run_folder.read_events(run_dir)
    for event in before:
        forecast.take(event)
    forecast.nimg = run_folder.reached(before)
    display = Display(forecast)
    running: RunningTraining[Outcome] = RunningTraining(run_dir)
    running.start(lambda: running.train(training))

    def look() -> None:
        for event in running.events():
            display.show(event)
            attention.on_event(event)
        for message in running.warnings():
            display.say(message)
            attention.on_warning(message)
        if attention.due():
            attention.on_progress(display.done / display.total)
            if attention.cancelled():
                running.stop()

    lost = False
    try:
        while not running.done:
            look()
            check_alive(f"go on with --resume {run_dir.name}")
            running.wait(LOOK_S)
        look()
        outcome = running.result()
    except RayEnded:
        lost = True
        leave_ray([running])
        raise
    finally:
        if not (running.done or lost):
            display.say("stopping: the workers save a checkpoint ...")
            save_and_end([running])
            display.say(f"go on later with --resume {run_dir.name}")
        display.close()
    after = run_folder.read_events(run_dir)
    return Ended(run_folder.finished(after), max((e["nimg"] for e in after), default=0), outcome)
