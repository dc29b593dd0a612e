"""The training time of a run that left its past: what was abandoned does not count."""

from __future__ import annotations

from typing import Any

from pipelines.comparison.training_time import Stopwatch


def tick(nimg: int, speed: float) -> dict[str, Any]:
    return {"kind": "metrics", "nimg": nimg, "values": {"images_per_second": speed}}


def test_a_cut_takes_back_the_time_of_what_it_abandons() -> None:
    now = [0.0]
    watch = Stopwatch([], lambda: now[0])
    for nimg in (1000, 2000, 3000):
        watch.take(tick(nimg, 100.0))
    assert watch.seconds() == 30.0
    watch.take({"kind": "cut", "nimg": 2000})
    watch.take(tick(2000, 50.0))
    assert watch.nimg == 2000
    assert watch.seconds() == 10.0 + 20.0
