"""The event log of a run in the form in which signs of disease are looked for. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from gan_train.metrics.protocol import comparable
from gan_train.metrics.scores import Score, headline, scores_of

FALLBACK_SE = 0.02
"""The standard error of a deciding score, as a share of it, where none was measured: that of the
Fréchet distance of 2,000 images, by resampling, was between 1 and 2 percent."""
SIGMA = 2.0
"""So many standard errors of a difference count as its interval: 95 percent of a normal one."""

T = TypeVar("T")


@dataclass(frozen=True)
class Tick:
    """The curves of a tick, after `nimg` images."""

    nimg: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class Visit:
    """The scores of a checkpoint, after `nimg` images, and the one that decides, if it is there."""

    nimg: int
    scores: Mapping[str, Score]
    decides: Score | None
    se: float
    """The standard error of the deciding score."""

    @property
    def cost(self) -> float:
        """The deciding score, of which lower is better; infinite where it is no number."""
        return math.inf if self.decides is None else self.decides.measure.cost(self.decides.value)


@dataclass(frozen=True)
class Record:
    """What the log of a run tells, oldest first. `visits` are the checkpoints that were scored
    alike, at full size."""

    ticks: Sequence[Tick]
    visits: Sequence[Visit]
    classes: int
    """The number of classes of the data set; 0 where there are none, or the log is too old."""
    images: int
    """The number of images of the data set; 0 where the log is too old."""
    not_finite: Mapping[str, Any] | None
    """What was found where training diverged, if that is how the log ends."""


def record_of(events: Iterable[Mapping[str, Any]]) -> Record:
    """The record of the present events of a run (`runs/events.py`), which may end anywhere."""
    ticks: list[Tick] = []
    scored: dict[int, Mapping[str, Any]] = {}
    start: Mapping[str, Any] = {}
    not_finite = None
    for event in events:
        kind = event["kind"]
        if kind == "start":
            start = event
        elif kind == "metrics":
            ticks.append(Tick(event["nimg"], _numbers(event["values"])))
            not_finite = None
        elif kind == "checkpoint":
            scored[event["nimg"]] = event  # the newest, where it was scored twice
        elif kind == "diverged":
            not_finite = event
    return Record(
        ticks,
        _visits(list(scored.values()), start.get("resolution")),
        start.get("classes", 0),
        start.get("images", 0),
        not_finite,
    )


def _visits(events: Sequence[Mapping[str, Any]], resolution: int | None) -> list[Visit]:
    """The scored checkpoints whose scores may be compared with the newest one's, at full size."""
    if not events:
        return []
    newest = events[-1].get("protocol") or {}
    full = resolution or max(event.get("resolution", 0) for event in events)
    return [
        _visit(event)
        for event in events
        if event.get("resolution", full) == full
        and event.get("alpha", 1.0) == 1.0
        and comparable(event.get("protocol") or {}, newest) is None
    ]


def _visit(event: Mapping[str, Any]) -> Visit:
    values = _numbers(event["scores"])
    scores = scores_of(values, event.get("protocol") or {})
    decides = headline(scores)
    se = 0.0
    if decides is not None:
        se = abs(values.get(f"{decides.name}_se", FALLBACK_SE * decides.value))
    return Visit(event["nimg"], scores, decides, se)


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(x) for name, x in values.items() if isinstance(x, int | float)}


def better(new: Visit, old: Visit) -> bool:
    """Whether the deciding score of `new` is better than that of `old` by more than the interval
    of their difference."""
    return new.cost < old.cost - SIGMA * math.hypot(new.se, old.se)


def lately(items: Sequence[T], shows: Callable[[T], bool]) -> Sequence[T]:
    """The longest end of the sequence in which every item shows a sign."""
    begin = len(items)
    while begin and shows(items[begin - 1]):
        begin -= 1
    return items[begin:]
