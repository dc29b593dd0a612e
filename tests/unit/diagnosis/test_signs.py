"""Each sign of disease, in logs that show it and in logs that nearly do."""

from __future__ import annotations

from typing import Any

import pytest

from gan_train.diagnosis.signs import KINDS, broken, diagnose
from tests.unit.diagnosis.logs import FD, Event, checkpoint, scored, start, ticks, variety

SURE = {"loss/D": [0.3, 0.01, 0.015, 0.01, 0.015], "loss/G": [2.0, 8, 8, 8, 8]}
LOW = variety(0.3)
NO_CLASS = variety(0.95, accuracy=0.11)


def names(events: list[Event], patience_kimg: float | None = None) -> list[str]:
    return [one.name for one in diagnose([start(), *events], patience_kimg)]


def sure_of_reals(sign: float) -> list[Event]:
    return ticks({"logit/real_sign": [sign] * 5})


ILL: list[tuple[str, list[Event], int, str]] = [
    ("discriminator wins", ticks(SURE), 2000, "loss/D was at most 0.015 in 4 ticks"),
    ("augmentation at its bound", ticks({"augment_p": [0.2, 0.8, 0.9]}), 2000, "strength is 0.9"),
    (
        "norms run away",
        ticks({"gradient_norm/G": [9.0, 1, 1, 2, 1, 1, 1, 40, 90]}),
        8000,
        "gradient_norm/G is 90, and 1 in the run so far",
    ),
    ("norms run away", ticks({"logit/fake": [-1.0, -150, -900]}), 2000, "logit/fake is 900"),
    (
        "mode collapse",
        scored(90, 60, 50, each=[variety(0.9), LOW, LOW]),
        20_000,
        "two samples differ by 30% of what two real images differ by",
    ),
    (
        "mode collapse",
        scored(90, 60, 50, 50, 60, each=[variety(0.9), *([variety(0.9, 0.2)] * 4)]),
        20_000,
        "entropy of the classes of samples is 21% of that of real images",
    ),
    (
        "classes ignored",
        scored(90, 60, 40, 40, 40, 40, each=[NO_CLASS] * 6),
        10_000,
        "11% of samples show the class asked for; guessing gives 10%, real images 90%",
    ),
    (
        "overfitting",
        [*scored(90, 50, 60, 70), *sure_of_reals(0.99)],
        30_000,
        f"{FD} rose from 50 at 20 kimg to 70",
    ),
    (
        "overfitting",
        ticks({"probability/real": [0.92, 0.5, 0.91, 0.92, 0.93, 0.95]}, after=98_000),
        101_000,
        "D is 95% sure of real images, and each of the 1,000 was shown 104 times",
    ),
    ("no progress", scored(90, 91, 89, 90), 10_000, "90 ± 0.9 at 10 kimg"),
    (
        "not finite",
        [*ticks(SURE)[:1], {"kind": "diverged", "nimg": 1500, "what": "loss/D not finite"}],
        1500,
        "loss/D not finite",
    ),
]


@pytest.mark.parametrize(("name", "events", "since", "evidence"), ILL, ids=lambda x: str(x)[:25])
def test_each_disease_is_named(name: str, events: list[Event], since: int, evidence: str) -> None:
    (found, *_) = diagnose([start(), *events])
    assert (found.name, found.since) == (name, since)
    assert evidence in found.evidence
    assert found.kind.remedy in found.sentence()


HEALTHY: dict[str, list[Event]] = {
    "nothing": [],
    "not for long": ticks({"loss/D": [0.3, 0.01, 0.3, 0.3, 0.01, 0.01, 0.3, 0.01]}),
    "no longer": ticks({"loss/D": [0.01] * 9 + [0.3, 0.3]}),
    "a critic": ticks({"loss/D": [0.0] * 5, "loss/gp": [0.1] * 5, "logit/real": [300.0] * 5}),
    "no more": ticks({"augment_p": [0.9, 0.9, 0.7]}),
    "one peak": ticks({"gradient_norm/G": [1.0, 1, 1, 1, 1, 1, 1, 90, 1]}),
    "learns variety": scored(300, 200, 150, each=[variety(x) for x in (0.1, 0.2, 0.4)]),
    "one low": scored(90, 60, each=[variety(0.9), LOW]),
    "learns classes": scored(
        300, 200, 199, each=[variety(0.9, accuracy=x) for x in (0.1, 0.15, 0.25)]
    ),
    "draws first": scored(300, 250, 200, 160, 161, each=[NO_CLASS] * 5),
    "hardly begun": [
        start(images=10**6),
        *scored(90, 60, 40, 40, 40, 40, each=[NO_CLASS] * 6),
    ],
    "blurs, so that few classes are seen": scored(300, 200, 150, each=[variety(0.9, 0.3)] * 3),
    "never had more variety": scored(300, 200, 150, each=[variety(0.4)] * 3),
    "sure, but early": sure_of_reals(0.95),
    "worse, but D is not sure": [*scored(90, 50, 60, 70), *sure_of_reals(0.5)],
    "slow progress": scored(90, 86, 82, 79),
    "lower resolutions": [
        checkpoint(k, 90, **LOW) | {"resolution": 8.0, "alpha": 1.0} for k in (1, 2, 3, 4)
    ],
    "went on after a divergence": [
        {"kind": "diverged", "nimg": 900, "what": "loss/D not finite"},
        *ticks({"loss/D": [1.0]}),
    ],
}


@pytest.mark.parametrize("case", HEALTHY)
def test_healthy_logs_are_no_alarm(case: str) -> None:
    assert names(HEALTHY[case]) == []


def test_networks_that_have_not_learned_anything_are_not_called_collapsed() -> None:
    """They lack variety and classes, too. Once four checkpoints show no progress, all is told."""
    poor = variety(0.1, 0.3, 0.1)
    assert names(scored(300, 301, 299, each=[poor] * 3)) == []
    told = names(scored(300, 301, 299, 300, each=[poor] * 4))
    assert told == ["no progress", "mode collapse", "classes ignored"]


def test_scores_that_would_not_show_progress_do_not_say_that_there_is_none() -> None:
    """A fall from 216 to 185 lies within the intervals of few images, and so may one to 170."""

    def run(se: float, *fds: float) -> list[Event]:
        return [checkpoint(4 * (i + 1), x, **{f"{FD}_se": se}) for i, x in enumerate(fds)]

    assert names(run(12.0, 216, 205, 199, 185)) == []
    assert names(run(12.0, 216, 214, 218, 215)) == ["no progress"], "a fifth is excluded"
    assert names(run(20.0, 216, 214, 218, 215)) == [], "these scores tell nothing"
    assert names(run(4.0, 216, 205, 199, 185)) == [], "this is progress"


def test_when_training_may_end() -> None:
    run = scored(90, 50, 40, 40.5, 39.8, 40.2, 40, 39.9)
    (found,) = diagnose([start(), *run])
    assert (found.name, found.since) == ("plateau", 30_000)
    assert found.kind.advice
    assert names(run[:5]) == []  # half of a run, and four checkpoints
    assert names(run[:5], patience_kimg=20) == ["plateau"]
    assert names(run[:4], patience_kimg=20) == []


def test_a_measured_error_counts() -> None:
    """A fall from 40 to 39 is progress if scores are known to 0.1, and none if to 1."""

    def run(se: float) -> list[Event]:
        return [checkpoint(10 * (i + 1), x, **{f"{FD}_se": se}) for i, x in enumerate((40, 40, 39))]

    assert names(run(0.1), patience_kimg=15) == []
    assert names([checkpoint(1, 50.0), *run(1.0)], patience_kimg=15) == ["plateau"]


def test_only_spoiled_states_are_broken() -> None:
    run = [start(), *scored(90, 60, 50, 40, each=[variety(0.9), LOW, LOW, variety(0.9)])]
    assert broken(run, 20_000) is None, "one may be chance"
    assert "mode collapse (two samples differ" in (broken(run, 30_000) or "")
    assert broken(run, 40_000) is None
    assert broken([start(), *ticks(SURE), checkpoint(5, 9.0)], 5000) is None, "told, but used"
    assert {name for name, kind in KINDS.items() if kind.broken} == {
        *("not finite", "mode collapse", "classes ignored", "norms run away")
    }


def test_other_protocols_and_odd_values_are_left_out() -> None:
    odd: list[dict[str, Any]] = [
        checkpoint(10, 90, **LOW) | {"protocol": {"images": 9}},
        checkpoint(20, 90, **LOW),
        {"kind": "metrics", "nimg": 1, "time_ms": 1, "values": {"loss/D": "?", "x": None}},
        {"kind": "checkpoint", "nimg": 30_000, "scores": {"pair_distance": "?"}},
    ]
    assert names(odd) == []
