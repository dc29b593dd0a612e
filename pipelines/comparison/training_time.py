"""Reads from a run's event log how long it trained, without saving, scoring and start-up.

The log tells how fast training was at each tick, by a clock that stands still while a checkpoint is
saved and scored (`Trainer.start_timer`). The time between two ticks is the number of images between
them, divided by the speed at the second. Images that a restarted run repeats count once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

from gan_train.runs.events import Event, present


def training_seconds(events: Iterable[Event], nimg: int) -> float:
    """Seconds of training until `nimg` images were seen; 0 before the first tick.

    For images after the last tick, the speed of that tick is taken.
    """
    seconds, before, speed = 0.0, 0, 0.0
    for event in events:
        if event["kind"] == "metrics" and before < event["nimg"] <= nimg:
            speed = event["values"]["images_per_second"]
            seconds += (event["nimg"] - before) / speed
            before = event["nimg"]
    return seconds + ((nimg - before) / speed if speed else 0.0)


class Stopwatch:
    """Measures the training time of a run while it goes on.

    Between two events the time goes on by the clock on the wall, unless a checkpoint is being saved
    and scored, which is done at `places`, counted in images.
    """

    def __init__(self, places: Sequence[int], clock: Callable[[], float] = time.monotonic) -> None:
        self._places, self._clock = places, clock
        self._events: list[Event] = []
        self._saved = 0  # images at the newest checkpoint
        self._since: float | None = None  # when training was last seen to go on
        self.nimg = 0
        """Images seen."""

    def take(self, event: Event, live: bool = True) -> None:
        """Take in an event of the log; events come oldest first. `live` tells that it was written
        while this stopwatch ran. A cut takes back the time of the images that it abandons."""
        self._events.append(event)
        self.nimg = max(self.nimg, event["nimg"])
        now = self._clock()
        if event["kind"] == "cut":
            self._events, self.nimg = present(self._events), event["nimg"]
            self._saved = min(self._saved, event["nimg"])
            self._since = now
        elif event["kind"] == "checkpoint":
            self._saved = event["nimg"]
            self._since = now
        elif event["kind"] == "metrics":
            saving = any(self._saved < place <= event["nimg"] for place in self._places)
            self._since = None if saving else now
        if event["kind"] == "end" or not live:
            self._since = None

    def seconds(self) -> float:
        """Training time until now."""
        counted = training_seconds(self._events, self.nimg)
        return counted + (0.0 if self._since is None else self._clock() - self._since)
