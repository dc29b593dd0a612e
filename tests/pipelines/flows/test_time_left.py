"""The time that is left of a run, as its schedule and its log so far tell it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gan_train import recipes
from gan_train.adversary import ImageShape, Losses, Phase, Stage
from gan_train.runs.events import Event
from gan_train.training.schedule import checkpoints, schedule_end
from pipelines.flows.time_left import Forecast, in_words, relative_cost

DEMO_LOG = Path(__file__).with_name("demo_log.txt")
"""The log of a whole run of the demo on two cores: kind, images, milliseconds, images a second.
From 69 kimg on, other programs took half of the machine, which nothing before tells: in the last
third that is much of the time that was left, so the first two thirds are compared."""
COMPARED = 52_000
GROWTH = [
    "family.fade_kimg=5",
    "family.stable_kimg={4: 8, 8: 8, 16: 10, 32: 36}",
    "family.milestones_from=4",
]
"""The demo's schedule when that log was written."""


def demo_events() -> Iterator[Event]:
    for line in DEMO_LOG.read_text(encoding="utf-8").splitlines():
        kind, nimg, time_ms, *speed = line.split()
        event: Event = {"kind": kind, "nimg": int(nimg), "time_ms": int(time_ms)}
        yield event | ({"values": {"images_per_second": float(speed[0])}} if speed else {})


def demo_forecast() -> Forecast:
    config = recipes.load("demo", GROWTH)
    shape = ImageShape(1, config.data.resolution, tuple("ABCDEFGHIJ"))
    stages = config.family.build(shape, config.train.batch).stages()
    end = schedule_end(config, stages)
    return Forecast(stages, end, checkpoints(config, stages, end))


def test_the_demo_is_predicted_from_its_first_line_on() -> None:
    """By the speed so far alone, its first lines say three times too much."""
    forecast, ratios = demo_forecast(), []
    *events, last = demo_events()
    assert forecast.seconds() is None
    for event in events:
        forecast.take(event)
        predicted = forecast.seconds()
        assert predicted is not None
        if event["nimg"] < COMPARED:
            ratios.append(predicted * 1000 / (last["time_ms"] - event["time_ms"]))
    assert len(ratios) > 50
    assert min(ratios) > 0.65, "of which the disturbance at the end is a fifth"
    assert max(ratios) < 1.5
    assert 1 / 1.3 < ratios[0] < 1.3


def nothing(*given: Any) -> Losses:
    raise NotImplementedError


def stage(nimg: int, resolution: int, *every: int) -> Stage:
    phases = tuple(Phase(f"phase{i}", "G", nothing, e) for i, e in enumerate(every or (1,)))
    return Stage(f"{resolution}", nimg, resolution, 1, phases)


def tick(nimg: int, speed: float, time_ms: int = 0) -> Event:
    return {
        "kind": "metrics",
        "nimg": nimg,
        "time_ms": time_ms,
        "values": {"images_per_second": speed},
    }


def test_later_stages_cost_what_they_are_expected_to_until_they_are_measured() -> None:
    forecast = Forecast([stage(100, 8), stage(100, 32)], 200, [])
    forecast.take(tick(50, 10.0))
    assert forecast.seconds() == pytest.approx(50 / 10 + 100 / 5)
    forecast.take(tick(120, 2.0))
    assert forecast.seconds() == pytest.approx(80 / 2)


def test_a_phase_now_and_then_counts_as_often_as_it_comes() -> None:
    assert relative_cost(stage(1, 16, 1, 1, 4)) == pytest.approx(2.25 * relative_cost(stage(1, 16)))


def test_the_images_after_the_last_stage_are_of_its_kind() -> None:
    forecast = Forecast([stage(100, 8)], 300, [])
    forecast.take(tick(200, 10.0))
    assert forecast.seconds() == pytest.approx(10.0)


def test_a_scoring_counts_once_it_was_seen_and_until_it_is_over() -> None:
    forecast = Forecast([stage(300, 8)], 300, [100, 200, 300])
    forecast.take(tick(100, 10.0, time_ms=1000))
    forecast.take({"kind": "checkpoint", "nimg": 100, "time_ms": 61_000})
    assert forecast.seconds() == pytest.approx(20 + 2 * 30), "the first takes longer than others"
    forecast.take(tick(203, 10.0, time_ms=71_300))
    assert forecast.seconds() == pytest.approx(9.7 + 2 * 30), "the second one is under way"
    forecast.take({"kind": "checkpoint", "nimg": 203, "time_ms": 91_300})
    assert forecast.seconds() == pytest.approx(9.7 + 20)


def test_a_cut_takes_the_run_back() -> None:
    forecast = Forecast([stage(300, 8)], 300, [100, 300])
    forecast.take(tick(100, 10.0))
    forecast.take({"kind": "checkpoint", "nimg": 100, "time_ms": 10_000})
    forecast.take(tick(250, 10.0))
    assert forecast.seconds() == pytest.approx(5 + 5)
    forecast.take({"kind": "cut", "nimg": 110, "time_ms": 0})
    assert forecast.nimg == 110
    assert forecast.seconds() == pytest.approx(19 + 5)


def test_one_disturbed_tick_changes_nothing() -> None:
    forecast = Forecast([stage(1000, 8)], 1000, [])
    for nimg, speed in ((100, 10.0), (200, 10.0), (300, 0.1)):
        forecast.take(tick(nimg, speed))
    assert forecast.seconds() == pytest.approx(70.0)


def test_the_words() -> None:
    assert [in_words(seconds) for seconds in (1, 60, 61, 5940, 9000)] == [
        *("1 min left", "1 min left", "2 min left", "99 min left", "2.5 h left")
    ]
