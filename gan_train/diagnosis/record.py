"""The event log of a run in the form in which signs of disease are looked for. Pure functions."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from gan_train.metrics.protocol import comparable
from gan_train.metrics.scores import Score, headline, scores_of

FALLBACK_SE, FALLBACK_IMAGES = 0.01, 2000
"""The standard error of a deciding score where none was measured: so large a share of it for so
many images, and larger for fewer by the root of their ratio. Fréchet distances of one generator,
on 2,000 and on 400 fresh samples each time, scattered by 0.9 and 2.1 percent."""
SIGMA = 2.0
"""So many standard errors of a difference count as its interval: 95 percent of a normal one."""

TICKS = 1000
"""So many of the newest ticks count. A sign may be older; then it is told to be since the first of
these."""

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
    """What the log of a run tells, oldest first. `ticks` are the newest ones, and `visits` the
    checkpoints that were scored alike, at full size."""

    ticks: Sequence[Tick]
    visits: Sequence[Visit]
    classes: int
    """The number of classes of the data set; 0 where there are none, or the log is too old."""
    images: int
    """The number of images of the data set; 0 where the log is too old."""
    not_finite: Mapping[str, Any] | None
    """What was found where training diverged, if that is how the log ends."""


def record_of(events: Iterable[Mapping[str, Any]], most: int | None = TICKS) -> Record:
    """The record of the present events of a run (`runs/events.py`), which may end anywhere, with
    at most so many ticks."""
    ticks: deque[Mapping[str, Any]] = deque(maxlen=most)
    scored: dict[int, Mapping[str, Any]] = {}
    start: Mapping[str, Any] = {}
    not_finite = None
    for event in events:
        kind = event["kind"]
        if kind == "start":
            start = event
        elif kind == "metrics":
            ticks.append(event)
            not_finite = None
        elif kind == "checkpoint":
            scored[event["nimg"]] = event  # the newest, where it was scored twice
        elif kind == "diverged":
            not_finite = event
    return Record(
        [Tick(event["nimg"], _numbers(event["values"])) for event in ticks],
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
    protocol = event.get("protocol") or {}
    scores = scores_of(_numbers(event["scores"]), protocol)
    decides = headline(scores)
    se = 0.0
    if decides is not None:
        images = protocol.get("images", FALLBACK_IMAGES)
        share = FALLBACK_SE * math.sqrt(FALLBACK_IMAGES / max(images, 1))
        se = share * abs(decides.value) if decides.error is None else decides.error
    return Visit(event["nimg"], scores, decides, se)


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(x) for name, x in values.items() if isinstance(x, int | float)}


def better(new: Visit, old: Visit) -> bool:
    """Whether the deciding score of `new` is better than that of `old` by more than the interval
    of their difference."""
    return new.cost < old.cost - SIGMA * math.hypot(new.se, old.se)


def fall_at_most(new: Visit, old: Visit) -> float:
    """By how much `new` may be better than `old`, at the better end of the interval of their
    difference."""
    return old.cost - new.cost + SIGMA * math.hypot(new.se, old.se)


def lately(items: Sequence[T], shows: Callable[[T], bool], gap: int = 0) -> list[T]:
    """The items that show a sign, in the longest end of the sequence where no more than `gap`
    items in a row do not."""
    found: list[T] = []
    missing = 0
    for item in reversed(items):
        if shows(item):
            found.append(item)
            missing = 0
        elif (missing := missing + 1) > gap:
            break
    return found[::-1]
