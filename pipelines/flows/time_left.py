"""Predicts how long a run still goes on, from its schedule and its event log. Nothing here reads
files or clocks.

Images cost more in later stages, so the speed so far says little about a growing run. Every stage
therefore has a cost of its own: measured if the log has ticks of it, else extrapolated from the
last stage that was measured. Saving and scoring count as well, once the run has done them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import median

from gan_train.adversary import Stage
from gan_train.runs.events import Event
from gan_train.training.schedule import stage_at

_RECENT = 8
"""The speed of a stage is the median of so many ticks, so that a disturbed one does not count."""
_LATER_SCORINGS = 0.5
"""The share of the first scoring's time that later ones are expected to take. The first one also
measures the real images, which is up to two thirds of it, unless an earlier run did so."""


def relative_cost(stage: Stage) -> float:
    """The cost of an image in a stage, in a unit that is the same for all stages of a schedule.

    Every phase is a pass over the networks. Twice the resolution makes a pass longer by a factor
    of 1.4. The factor would be 1 if starting operations took all the time, and 2 if arithmetic did,
    with four times the pixels and half the channels.
    """
    passes = sum(1 / phase.every for phase in stage.phases)
    return passes * float(stage.resolution) ** 0.5


class Forecast:
    """Predicts the time that is left of one run from its events, which it takes oldest first."""

    def __init__(self, stages: Sequence[Stage], end: int, scorings: Iterable[int]) -> None:
        """The schedule ends after `end` images; `scorings` are the places, in images, where a
        checkpoint is saved and scored."""
        self._stages, self._scorings = stages, tuple(scorings)
        self.end = end
        self._ticks: dict[float, list[float]] = {}  # relative cost -> seconds per image
        self._newest = 0.0  # the relative cost that was measured last
        self._scored: list[float] = []  # seconds of each scoring
        self._saved = 0  # images at the newest checkpoint; a batch may overshoot its place
        self._before: Event | None = None
        self.nimg = 0
        """The number of images seen, by the newest event. A resumed run goes back to its newest
        checkpoint: code that resumes a run sets this."""

    def take(self, event: Event) -> None:
        """Learn from one event of the log. A cut moves the run back to its place."""
        if event["kind"] == "metrics":
            # a tick's images come before it, so they may belong to an earlier stage
            stage, _ = stage_at(self._stages, event["nimg"] - 1, self.end)
            self._newest = relative_cost(stage)
            seconds = 1 / event["values"]["images_per_second"]
            self._ticks.setdefault(self._newest, []).append(seconds)
        elif event["kind"] == "checkpoint":
            before = self._before
            if before is not None and before["nimg"] == event["nimg"]:
                self._scored.append((event["time_ms"] - before["time_ms"]) / 1000)
            self._saved = max(self._saved, event["nimg"])
        elif event["kind"] == "cut":
            self.nimg = event["nimg"]
            self._saved = min(self._saved, event["nimg"])
        self._before = event
        self.nimg = max(self.nimg, event["nimg"])

    def seconds(self) -> float | None:
        """Seconds from the newest event to the end of the run; None before the first tick."""
        if not self._ticks:
            return None
        total, at = 0.0, self.nimg
        while at < self.end:
            stage, until = stage_at(self._stages, at, self.end)
            total += (until - at) * self._seconds_per_image(relative_cost(stage))
            at = until
        left = sum(place > self._saved for place in self._scorings)
        return total + self._scoring() * left

    def _seconds_per_image(self, cost: float) -> float:
        if cost in self._ticks:
            return median(self._ticks[cost][-_RECENT:])
        return median(self._ticks[self._newest][-_RECENT:]) * cost / self._newest

    def _scoring(self) -> float:
        """Seconds that the next scoring is expected to take; 0 before the first one."""
        if len(self._scored) == 1:
            return _LATER_SCORINGS * self._scored[0]
        return self._scored[-1] if self._scored else 0.0


def in_words(seconds: float) -> str:
    """The remaining time as text, such as `5 min left`; in hours from 100 minutes on."""
    minutes = math.ceil(seconds / 60)
    return f"{minutes} min left" if minutes < 100 else f"{seconds / 3600:.1f} h left"
